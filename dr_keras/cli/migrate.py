"""`dr-keras index migrate`: moves an index to another model."""

import argparse
import os
from typing import TYPE_CHECKING

from dr_keras.errors import InputError

if TYPE_CHECKING:
    from dr_keras.index.index import Index
    from dr_keras.index.migrate import Target

ABOUT = "move the index to the model of --run: all images are embedded anew, while the index stays in use until then"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to `parser`."""
    parser.add_argument(
        "--keep-old", action="store_true", help="keep the old index too, under a name that ends in .old or _old"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="do not switch yet, but say how the neighbors differ; the same command without it switches",
    )
    parser.add_argument(
        "--leave-out", action="store_true", help="leave out images whose files cannot be read, instead of stopping"
    )


def main(options: argparse.Namespace) -> int:
    """Moves the index to another model; returns the exit status."""
    from dr_keras.index.index import Index
    from dr_keras.index.migrate import compare, embed_anew, remove_finished_migration, switch
    from dr_keras.progress import stderr

    if not options.index or not options.run:
        raise InputError("migrate needs --index PATH, and --run NAME, the model to move to")
    place = options.index
    with Index.open(place) as index:
        old_place = index.old_place
        if options.keep_old and (os.path.exists(old_place) or Index.exists(old_place)):
            raise InputError(f"{old_place} exists; move it away, or go on without --keep-old")
        target = target_of(options, index)
        if index.model == target.model:
            remove_finished_migration(place)
            print(f"{place} is of {target.run} already")
            return 0
    console = stderr()
    with embed_anew(place, target, console=console, leave_out=options.leave_out) as fresh:
        if options.compare:
            with Index.open(place) as index:
                print(compare(index, fresh))
            return 0
        with Index.open(place, write=True) as index:
            left_out = switch(
                index, fresh, target, console=console, keep_old=options.keep_old, leave_out=options.leave_out
            )
            index.engine.update(options.engine)
            print(f"{len(index):,} images in {place} are of {target.run} now; {len(left_out):,} were left out")
    if options.keep_old:
        print(f"the old index is {old_place}")
    return 0


def target_of(options: argparse.Namespace, index: "Index") -> "Target":
    """The model that the flags name, by the head that they name, or else that of the index if the model has it."""
    from dr_keras.heads import GENERAL, TRAINED
    from dr_keras.index.migrate import Target
    from dr_keras.runs import open_run
    from dr_keras.search_model import Model

    run = open_run(options.run)
    head = options.head
    if head == "auto":
        head = GENERAL if index.head != TRAINED and run.general_file.is_file() else TRAINED
    model = Model(run, options.runtime, head)
    return Target(model.reader, run.embedding_dim(head), run.fingerprint(head), run.lasting_name(), head)
