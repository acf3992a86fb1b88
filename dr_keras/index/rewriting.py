"""Rewrites the vectors of an index in one atomic step: without gaps, or with those of another model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras.atomic_files import sync_names
from dr_keras.errors import RunError
from dr_keras.index.database import renumber
from dr_keras.index.records import checksum
from dr_keras.index.store import Store
from dr_keras.index.vector_file import given, joined_checksum, write_rows


@dataclass(frozen=True)
class NewVectors:
    """The vectors of another model.

    Attributes:
        vectors: (R, D) float32.
        rows: The row of the vector of each image, by id; images that are not there are removed from the index.
        meta: What the index says of its vectors, such as `dim` and `model`.
        parts: (R, P, D) float32, those of the images' parts; None if the index keeps none.
    """

    vectors: np.ndarray
    rows: Mapping[str, int]
    meta: Mapping[str, Any]
    parts: np.ndarray | None = None


def rewrite(store: Store, new: NewVectors | None = None) -> None:
    """Rewrites the vectors without rows that belong to no image; renumbers the rows and drops the engine.

    Args:
        store: Open for writing.
        new: Vectors to put in the place of the old ones; by default, they stay the same.

    Raises:
        RunError: The index cannot be written; then it is as before.
    """
    generation = store.meta["generation"] + 1
    files = [store.folder / name for name in store.vector_names(generation)]
    old_files = store.vector_names(store.meta["generation"])
    old_engine = store.meta.get("engine_file")
    try:
        with store.transaction() as db:
            images = db.execute("SELECT row, id FROM images ORDER BY row").fetchall()
            if new is not None:
                lost = [(row,) for row, id in images if id not in new.rows]
                db.executemany("DELETE FROM images WHERE row = ?", lost)
                images = [(row, id) for row, id in images if id in new.rows]
            kept = np.fromiter((row for row, _ in images), np.int64, len(images))
            vectors, parts, chosen = store.vectors, store.parts, kept
            if new is not None:
                vectors, parts = new.vectors, new.parts
                chosen = np.fromiter((new.rows[id] for _, id in images), np.int64, len(images))
            crcs = [write_rows(*pair, chosen) for pair in zip(files, given(vectors, parts), strict=True)]
            sync_names(store.folder)
            renumber(db, kept)
            if new is not None:
                checks = (
                    (checksum(id, *(array[row] for array in given(vectors, parts))), number)
                    for number, ((_, id), row) in enumerate(zip(images, chosen.tolist(), strict=True))
                )
                db.executemany("UPDATE images SET crc = ? WHERE row = ?", checks)
                for key, value in new.meta.items():
                    store.set_meta(key, value)
            db.execute("DELETE FROM segments")
            if len(kept):
                db.execute("INSERT INTO segments VALUES (0, ?, ?)", (len(kept), joined_checksum(crcs)))
            store.set_meta("rows", len(kept))
            store.set_meta("generation", generation)
            store.forget_engine()
    except BaseException:
        # If the error came after the commit, while the result was read, the file is needed.
        try:
            committed = store.meta["generation"] == generation
        except RunError:
            committed = True  # or perhaps not; the next writer removes what is not in use
        if not committed:
            for file in files:
                file.unlink(missing_ok=True)
        raise
    for name in old_files:
        store.remove_file(name)
    if old_engine:
        store.remove_file(old_engine)
