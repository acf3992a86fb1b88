"""Looks whether an index is as it was written."""

from dataclasses import dataclass

import numpy as np

from dr_keras.index.records import checksum
from dr_keras.index.store import UNIT, Store, damaged_blocks, lengths

BLOCK = 65536  # vectors looked at together


@dataclass(frozen=True)
class Damage:
    """Something wrong with an index: `id` names the image where it is one's vector, `what` says what it is."""

    id: str | None
    what: str


def damage_of(store: Store) -> list[Damage]:
    """What is wrong with a store: its database, its vectors, or that they do not belong together."""
    damage = [Damage(None, text) for (text,) in store.db.execute("PRAGMA integrity_check") if text != "ok"]
    rows = store.db.execute("SELECT row, id, crc FROM images ORDER BY row").fetchall()
    seen = np.zeros(store.rows, bool)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        inside = [entry for entry in part if 0 <= entry[0] < store.rows]
        damage += [Damage(id, "its row is not there") for row, id, _ in part if row >= store.rows]
        vectors = np.ascontiguousarray(store.vectors[[row for row, _, _ in inside]])
        seen[[row for row, _, _ in inside]] = True
        # Damaged bits can be anything: their lengths may overflow, and are not finite then.
        with np.errstate(all="ignore"):
            length = lengths(vectors)
        for (_, id, crc), vector, value in zip(inside, vectors, length, strict=True):
            if checksum(id, vector) != crc:
                damage.append(Damage(id, "its vector or its id was altered: the checksum differs"))
            elif not abs(value - 1) < UNIT:
                damage.append(Damage(id, f"its vector has the length {value}"))
    if not damage and any(True for _ in damaged_blocks(store.db, store.vectors)):
        damage.append(Damage(None, "vectors of removed images were altered: a checksum differs"))
    hidden = {row for (row,) in store.db.execute("SELECT row FROM hidden")}
    lost = [row for row in np.flatnonzero(~seen).tolist() if row not in hidden]
    if lost:
        damage.append(Damage(None, f"{len(lost)} rows belong to no image and would be found, {lost[0]} first"))
    return damage
