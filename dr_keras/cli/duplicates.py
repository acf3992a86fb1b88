"""`dr-keras index duplicates`: finds duplicates, near-duplicates, and leaks between splits."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_keras.cli.ray_flags import add_ray, cluster_of
from dr_keras.errors import InputError

if TYPE_CHECKING:
    from dr_keras.duplicates.find import Elsewhere
    from dr_keras.ray_jobs.cluster import RayCluster

UNDO = "undo.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to `parser`."""
    parser.add_argument("folder", nargs="?", metavar="FOLDER")
    parser.add_argument(
        "--new", nargs="+", metavar="FILE", help="instead: say which images of --index these files are copies of"
    )
    parser.add_argument("--index", metavar="PATH", help="with --new: the index")
    parser.add_argument(
        "--move-to",
        metavar="FOLDER",
        help=f"move copies there, all but one of each group, and list them in its {UNDO}",
    )
    parser.add_argument(
        "--move", choices=("exact", "near"), default="exact", help="with --move-to: which copies (default: exact)"
    )
    parser.add_argument("--undo", metavar="FILE", help=f"instead: move the files back that this {UNDO} lists")
    parser.add_argument("--json", metavar="FILE", help="write the groups as JSON")
    parser.add_argument("--html", metavar="FILE", help="write an HTML page that shows the groups")
    parser.add_argument("--run", metavar="NAME", help="also compare embeddings by this run")
    parser.add_argument(
        "--max-distance",
        type=float,
        metavar="D",
        help="with --run: embeddings within this distance are near-duplicates",
    )
    add_ray(parser, "read the images")


def main(options: argparse.Namespace) -> int:
    """Finds and reports them; returns the exit status."""
    asked = [name for name in ("folder", "new", "undo") if getattr(options, name)]
    if len(asked) != 1:
        raise InputError("give one of FOLDER, --new FILE, and --undo FILE")
    return {"folder": in_folder, "new": of_new_files, "undo": moved_back}[asked[0]](options)


def of_new_files(options: argparse.Namespace) -> int:
    """Says which images of the index the files are copies of; the exit status is 1 if there are any."""
    from dr_keras.cli.opening import reader_of
    from dr_keras.index.index import Index
    from dr_keras.known_copies import known_copies

    if not options.index:
        raise InputError("--new needs --index PATH")
    with Index.open(options.index) as index:
        found = known_copies(index, reader_of(options, index), options.new)
    for one in found:
        for kind, ids in (("is equal to", one.exact), ("looks like", one.near)):
            for id in ids:
                print(f"{one.file} {kind} {id}")
        if not one.exact and not one.near:
            print(f"{one.file} has no copies")
    return 1 if any(one.exact or one.near for one in found) else 0


def moved_back(options: argparse.Namespace) -> int:
    """Moves files back."""
    from dr_keras.duplicates.moving import undo

    print(f"{undo(Path(options.undo)):,} files were moved back")
    return 0


def in_folder(options: argparse.Namespace) -> int:
    """Finds the duplicates of a folder."""
    from dr_keras.atomic_files import write_json
    from dr_keras.data.sources.archives import is_archive
    from dr_keras.duplicates.find import find_duplicates
    from dr_keras.duplicates.moving import move_copies
    from dr_keras.duplicates.report import save_report
    from dr_keras.loading import load
    from dr_keras.progress import stderr

    if not Path(options.folder).exists():
        raise InputError(f"there is no folder {options.folder}")
    if options.move_to and Path(options.folder).is_file() and is_archive(Path(options.folder)):
        raise InputError(f"--move-to moves files of a folder; unpack {options.folder} first")
    more: dict[str, Any] = {}
    console = stderr()
    if (cluster := cluster_of(options, console)) is not None:
        more = {"elsewhere": on_cluster(cluster, options.run)}
    elif options.run:
        reader = load(options.run).reader
        more = {"embed": reader.embed, "size": reader.size, "resize": reader.resize}
    if options.max_distance is not None:
        more["max_distance"] = options.max_distance
    found = find_duplicates(options.folder, console=console, **more)
    if options.json:
        write_json(Path(options.json), found.to_dict())
    if options.html:
        save_report(found, options.html)
    for name, meaning in (
        ("exact", "of equal files"),
        ("near", "of nearly equal images"),
        ("cross_class", "over several classes"),
        ("leaks", "over several splits"),
    ):
        count = len(getattr(found, name))
        print(f"{count:>7,} {'group' if count == 1 else 'groups'} {meaning}")
    for file in (options.json, options.html):
        if file:
            print(f"saved {file}")
    if options.move_to:
        moves = move_copies(found, Path(options.move_to), near=options.move == "near")
        print(f"{len(moves.moved):,} copies were moved to {options.move_to}; {len(moves.left):,} were left")
        for path, reason in moves.left.items():
            print(f"left: {path}: {reason}", file=sys.stderr)
    return 0


def on_cluster(cluster: "RayCluster", run: str | None) -> "Elsewhere":
    """Reads images by a cluster; with a run, it also embeds them."""
    from dr_keras.duplicates.find import Elsewhere
    from dr_keras.heads import TRAINED
    from dr_keras.ray_jobs.collection import embed_files, fingerprint_files
    from dr_keras.ray_jobs.model import SharedModel
    from dr_keras.runs import open_run

    vectors = partial(embed_files, cluster, SharedModel.of(open_run(run), "auto", TRAINED)) if run else None
    return Elsewhere(partial(fingerprint_files, cluster), vectors)
