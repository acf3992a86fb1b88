"""Checks that an index is still as it was written."""

from dataclasses import dataclass

import numpy as np

from dr_keras.index.records import checksum
from dr_keras.index.store import Store
from dr_keras.index.vector_file import LENGTH_TOLERANCE, damaged_segments, given, lengths

CHECK_BLOCK_ROWS = 8192  # vectors checked together; each with perhaps 83 of its parts


@dataclass(frozen=True)
class Damage:
    """Something wrong with an index.

    Attributes:
        id: The image whose vector is affected, or None if it is not about a single image.
        what: What is wrong.
    """

    id: str | None
    what: str


def check_integrity(store: Store) -> list[Damage]:
    """Finds what is wrong with a store: its database, its vectors, or a mismatch between the two."""
    damage = [Damage(None, text) for (text,) in store.db.execute("PRAGMA integrity_check") if text != "ok"]
    rows = store.db.execute("SELECT row, id, crc FROM images ORDER BY row").fetchall()
    seen = np.zeros(store.rows, bool)
    for start in range(0, len(rows), CHECK_BLOCK_ROWS):
        part = rows[start : start + CHECK_BLOCK_ROWS]
        inside = [entry for entry in part if 0 <= entry[0] < store.rows]
        damage += [Damage(id, "its row does not exist") for row, id, _ in part if row >= store.rows]
        places = [row for row, _, _ in inside]
        arrays = [array[places] for array in given(store.vectors, store.parts)]
        seen[places] = True
        # Damaged vectors can hold any values, so their length may overflow.
        with np.errstate(all="ignore"):
            length = np.stack([_farthest_from_1(array) for array in arrays], axis=1)
        for (_, id, crc), values, *vectors in zip(inside, length.tolist(), *arrays, strict=True):
            wrong = next((value for value in values if not abs(value - 1) < LENGTH_TOLERANCE), None)
            if checksum(id, *vectors) != crc:
                damage.append(Damage(id, "its vector or its id was altered: the checksum differs"))
            elif wrong is not None:
                damage.append(Damage(id, f"its vector is of length {wrong}"))
    if not damage and any(True for _ in damaged_segments(store.db, store.vectors, store.parts)):
        damage.append(Damage(None, "vectors of removed images were altered: a checksum differs"))
    hidden = {row for (row,) in store.db.execute("SELECT row FROM hidden")}
    lost = [row for row in np.flatnonzero(~seen).tolist() if row not in hidden]
    if lost:
        damage.append(Damage(None, f"{len(lost)} rows belong to no image and would be found, {lost[0]} first"))
    return damage


def _farthest_from_1(vectors: np.ndarray) -> np.ndarray:
    """Of vectors (n, D) or (n, P, D), the length that is farthest from 1, for each of the n."""
    found = lengths(vectors.reshape(-1, vectors.shape[-1])).reshape(len(vectors), -1)
    return np.take_along_axis(found, np.abs(found - 1).argmax(axis=1, keepdims=True), axis=1)[:, 0]
