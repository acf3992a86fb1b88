"""The SQL statements that change an index's images; each function runs inside one transaction of the store."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from dr_keras.data.splits import SPLIT_NAMES, VALIDATION
from dr_keras.index.database import as_text
from dr_keras.index.records import Entry, Stamp, checksum
from dr_keras.index.store import Store

HELD_OUT = SPLIT_NAMES[VALIDATION]


def insert_images(store: Store, entries: Sequence[Entry], vectors: np.ndarray, class_names: Mapping[str, str]) -> None:
    """Adds images in new rows.

    Args:
        store: Inside a transaction.
        entries: n images whose ids are not in the index.
        vectors: (n, D) or (n, 1 + P, D) float32, as returned by `check_vectors`.
        class_names: The display names of the labels that have one.
    """
    values = [(as_text(entry.id), as_text(entry.name), *entry.values()) for entry in entries]
    name_classes(store, entries, class_names)
    first = store.append(vectors)
    crcs = [checksum(entry.id, vector) for entry, vector in zip(entries, vectors, strict=True)]
    store.db.executemany(
        "INSERT INTO images (row, id, name, label, split, hash, size, mtime_ns, attributes, crc) "
        "VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?)",
        ((first + n, *value, crc) for n, (value, crc) in enumerate(zip(values, crcs, strict=True))),
    )
    held_out = [(first + n,) for n, entry in enumerate(entries) if entry.split == HELD_OUT]
    store.db.executemany("INSERT INTO hidden VALUES (?)", held_out)
    unskip_files(store, [entry.id for entry in entries])


def update_images(store: Store, entries: Sequence[Entry], rows: Mapping[str, int]) -> None:
    """Replaces what is known about images, but not their vectors; `rows` has the row of each entry's id."""
    name_classes(store, entries, {})
    store.db.executemany(
        "UPDATE images SET label = CAST(? AS TEXT), split = ?, hash = ?, size = ?, mtime_ns = ?, attributes = ? "
        "WHERE row = ?",
        [(*entry.values(), rows[entry.id]) for entry in entries],
    )
    store.db.executemany("DELETE FROM hidden WHERE row = ?", [(row,) for row in rows.values()])
    held_out = [(rows[entry.id],) for entry in entries if entry.split == HELD_OUT]
    store.db.executemany("INSERT INTO hidden VALUES (?)", held_out)


def delete_images(store: Store, rows: Collection[int]) -> None:
    """Removes the images in the given rows; their vectors stay in the file but are hidden from searches."""
    places = [(row,) for row in rows]
    store.db.executemany("DELETE FROM images WHERE row = ?", places)
    store.db.executemany("INSERT OR IGNORE INTO hidden VALUES (?)", places)


def name_classes(store: Store, entries: Iterable[Entry], class_names: Mapping[str, str]) -> None:
    """Adds labels of `class_names` and `entries` that the index lacks; by default a label is its own display name."""
    labels = dict.fromkeys([*class_names, *(entry.label for entry in entries)])
    store.db.executemany(
        "INSERT OR IGNORE INTO classes VALUES (CAST(? AS TEXT), CAST(? AS TEXT))",
        [(as_text(label), as_text(class_names.get(label, label))) for label in labels],
    )


def clear_stamps(store: Store, rows: Iterable[int]) -> None:
    """Makes images look as if their files had changed."""
    store.db.executemany(
        "UPDATE images SET hash = NULL, size = NULL, mtime_ns = NULL WHERE row = ?", [(row,) for row in rows]
    )


def set_stamps(store: Store, stamps: Mapping[str, Stamp]) -> None:
    """Replaces the stamps of images, by id."""
    store.db.executemany(
        "UPDATE images SET hash = ?, size = ?, mtime_ns = ? WHERE id = CAST(? AS TEXT)",
        [(*stamp, as_text(id)) for id, stamp in stamps.items()],
    )


def skip_files(store: Store, files: Mapping[str, tuple[int | None, int | None, str]]) -> None:
    """Records files that could not be read, by id: size, mtime_ns and the reason."""
    rows = [(as_text(id), *what) for id, what in files.items()]
    store.db.executemany("INSERT OR REPLACE INTO skipped VALUES (CAST(? AS TEXT), ?, ?, ?)", rows)


def unskip_files(store: Store, ids: Iterable[str]) -> None:
    """Forgets that these files could not be read."""
    store.db.executemany("DELETE FROM skipped WHERE id = CAST(? AS TEXT)", [(as_text(id),) for id in ids])
