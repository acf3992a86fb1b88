"""Writes the index of a run's own images in one go."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dr_keras.atomic_files import new_folder
from dr_keras.data.catalog import Catalog
from dr_keras.data.splits import SPLIT_NAMES, VALIDATION
from dr_keras.index.index import Index
from dr_keras.index.records import Entry, Stamp
from dr_keras.index.writer_lock import LOCK_FILE


def write_index(
    folder: str | os.PathLike[str],
    catalog: Catalog,
    vectors: np.ndarray,
    *,
    model: str = "",
    run: str = "",
    stamps: Sequence[Stamp] | None = None,
) -> None:
    """Writes the index of a catalog's images atomically, replacing an existing one.

    Args:
        folder: Where to write it.
        catalog: M images. A search returns training and monitor images; validation images can only be looked up.
        vectors: (M, D), their embeddings of unit length, row by row.
        model, run: As in `Index.create`.
        stamps: Hash, size and mtime_ns of each image's file, if known.

    Raises:
        InputError: The vectors are invalid, as in `Index.add`.
        RunError: The index cannot be written.
    """
    order = np.argsort(catalog.splits == VALIDATION, kind="stable").tolist()
    known = stamps or [(None, None, None)] * len(catalog)
    entries = [
        Entry(catalog.ids[row], catalog.classes[catalog.labels[row]], SPLIT_NAMES[catalog.splits[row]], *known[row])
        for row in order
    ]
    class_names = dict(zip(catalog.classes, catalog.class_names, strict=True))
    with new_folder(Path(folder)) as temporary:
        with Index.create(temporary, vectors.shape[1], root=catalog.root, model=model, run=run) as index:
            index.add(entries, vectors[order], class_names=class_names)
            index.engine.update()
        (temporary / LOCK_FILE).unlink()
