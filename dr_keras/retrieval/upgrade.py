"""Brings an index of format 1 (index.json and two arrays) to today's form."""

import json
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

from dr_keras.data import TRAIN, VALIDATION
from dr_keras.data.catalog import Catalog
from dr_keras.errors import RunError
from dr_keras.retrieval.store import DATABASE, take_lock
from dr_keras.runs import Run


def is_old(folder: Path) -> bool:
    """Whether an index of the first format lies there."""
    return (folder / "index.json").is_file() and not (folder / DATABASE).exists()


def upgrade(folder: Path) -> None:
    """Writes the index anew beside the old files and removes those; it is the old one or the new one at any moment.

    Raises:
        RunError: it is damaged, the folder cannot be written, or another process is about it.
    """
    from dr_keras.retrieval.index import Index

    lock = take_lock(folder)
    try:
        if not is_old(folder):
            return  # another process was faster
        old = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("vectors", "labels")}
        for name, array in arrays.items():
            if zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) != old["checksums"][name]:
                raise RunError(f"{folder / name}.npy was altered or damaged: its checksum differs")
        rows = np.arange(len(old["ids"]))
        catalog = Catalog(
            root=Path(old["root"]),
            source=Path(old["root"]),
            ids=tuple(old["ids"]),
            labels=arrays["labels"],
            classes=tuple(old["classes"]),
            class_names=tuple(old["class_names"]),
            # Which images of the gallery were the monitor split is not known any more.
            splits=np.where(rows < old["gallery"], TRAIN, VALIDATION).astype(np.uint8),
        )
        run = Run(folder.parent)
        of_a_run = folder == run.index and run.config_file.is_file()
        with tempfile.TemporaryDirectory(dir=folder) as place:
            Index.of(
                Path(place) / "index",
                catalog,
                arrays["vectors"],
                model=run.fingerprint() if of_a_run else "",
                run=run.lasting_name() if of_a_run else "",
            )
            for file in sorted((Path(place) / "index").iterdir(), reverse=True):  # vectors-0.f32, then index.sqlite
                file.replace(folder / file.name)
        for name in ("index.json", "labels.npy", "vectors.npy"):
            (folder / name).unlink(missing_ok=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{folder} is an index of an earlier version and cannot be made one of this: {error}") from error
    finally:
        os.close(lock)
