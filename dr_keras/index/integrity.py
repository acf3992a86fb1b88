"""Checks that an index is still as it was written."""

from dataclasses import dataclass

import numpy as np

from dr_keras.index.records import checksum
from dr_keras.index.store import Store
from dr_keras.index.vector_file import LENGTH_TOLERANCE, damaged_segments, lengths

CHECK_BLOCK_ROWS = 65536  # vectors checked together


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
        vectors = np.ascontiguousarray(store.vectors[[row for row, _, _ in inside]])
        seen[[row for row, _, _ in inside]] = True
        # Damaged vectors can hold any values, so their length may overflow.
        with np.errstate(all="ignore"):
            length = lengths(vectors)
        for (_, id, crc), vector, value in zip(inside, vectors, length, strict=True):
            if checksum(id, vector) != crc:
                damage.append(Damage(id, "its vector or its id was altered: the checksum differs"))
            elif not abs(value - 1) < LENGTH_TOLERANCE:
                damage.append(Damage(id, f"its vector is of length {value}"))
    if not damage and any(True for _ in damaged_segments(store.db, store.vectors)):
        damage.append(Damage(None, "vectors of removed images were altered: a checksum differs"))
    hidden = {row for (row,) in store.db.execute("SELECT row FROM hidden")}
    lost = [row for row in np.flatnonzero(~seen).tolist() if row not in hidden]
    if lost:
        damage.append(Damage(None, f"{len(lost)} rows belong to no image and would be found, {lost[0]} first"))
    return damage
