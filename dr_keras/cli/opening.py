"""Opens the index that the flags of `dr-keras index` name, with the model that reads its images."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_keras.errors import InputError

if TYPE_CHECKING:
    from dr_keras.index.index import Index
    from dr_keras.index.sync import Reader


def place(options: argparse.Namespace) -> str | Path:
    """Where the index is that the flags name."""
    from dr_keras.runs import open_run

    return options.index or open_run(options.run).index


def reader_of(options: argparse.Namespace, index: "Index") -> "Reader":
    """How the model that made the index's vectors reads files."""
    from dr_keras.runs import open_run
    from dr_keras.search_model import Model

    run = open_run(options.run or index.run or None)
    model = Model(run, getattr(options, "runtime", "auto"), getattr(options, "head", "auto"))
    model.check(index)
    return replace(model.reader_for(index), exif=index.exif and not getattr(options, "no_exif", False))


def writable(options: argparse.Namespace, root: Path) -> tuple["Reader", "Index"]:
    """The index, which is created if there is none, and how its model reads files."""
    from dr_keras.index.index import Index

    if options.index and not Index.exists(options.index):
        if not root.is_dir():
            raise InputError(f"there is no folder {root}")
        index = create(options, root)
    else:
        index = Index.open(place(options), write=True)
    try:
        parts = getattr(options, "parts", None)
        if parts is not None and parts != index.parts:
            kept = f"parts down to 1/{index.parts} of the sides" if index.parts else "no parts"
            raise InputError(f"{index.place} keeps {kept} of its images, and --parts is for a new index")
        return reader_of(options, index), index
    except BaseException:
        index.close()
        raise


def create(options: argparse.Namespace, root: Path) -> "Index":
    """A new index for the images that the command names."""
    from dr_keras.heads import FITTED
    from dr_keras.index.fitted_head import fit_head_on
    from dr_keras.index.index import HEAD_FILE, Index
    from dr_keras.progress import stderr
    from dr_keras.runs import open_run
    from dr_keras.search_model import Model

    run = open_run(options.run)
    model = Model(run, options.runtime, options.head)
    shared: dict[str, Any] = {"root": root, "run": run.lasting_name()}
    shared["exif"] = not getattr(options, "no_exif", False)
    shared["parts"] = getattr(options, "parts", None) or 0
    if not getattr(options, "fit_head", False):
        paths = getattr(options, "paths", [root])
        head = model.head_for(*(path for path in paths if Path(path).is_dir()))
        return Index.create(options.index, run.embedding_dim(head), model=run.fingerprint(head), head=head, **shared)
    if run.config().embedding_dim:
        run.general_head()  # says how to fit one where there is none
        raise InputError(f"--fit-head is for networks without a linear layer; {run.path} has its own general head")
    fitted = fit_head_on(options.paths, model.reader, dim=options.general_dim, console=stderr())
    fingerprint = f"{run.fingerprint()} {FITTED} {fitted.checksum}"
    index = Index.create(options.index, fitted.dim, model=fingerprint, head=FITTED, **shared)
    index.write_file(HEAD_FILE, fitted.packed())
    return index
