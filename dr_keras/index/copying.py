"""Copies an index to another place, which may be of another kind: from a folder to Milvus, or back."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from dr_keras.errors import InputError, RunError
from dr_keras.index.index import Index
from dr_keras.index.store import KEPT_FILES
from dr_keras.progress import bar

COPIED_IMAGES = 2048  # at a time; each is a transaction
COPIED_BYTES = 1 << 26  # of the vectors of these images
SHOWN = 3


@dataclass(frozen=True)
class CopyReport:
    """What a copy did.

    Attributes:
        copied: How many images were written.
        present: How many were there already, from an earlier attempt.
    """

    copied: int
    present: int

    def __str__(self) -> str:
        return f"{self.copied:,} images copied, {self.present:,} were there already; all are equal"


def copy_index(source: str | os.PathLike[str], target: str | os.PathLike[str], *, console: Console) -> CopyReport:
    """Copies an index, and compares every image of the copy with the original.

    Args:
        source: Where the index is.
        target: Where to copy it: a place without an index, or the copy that an earlier call has begun.
        console: Shows progress.

    Returns:
        What was done. After an interruption, the same call goes on.

    Raises:
        InputError: There is another index at the target, or one that has images that the source has not.
        RunError: One of them cannot be used, or the copy differs from the original.
    """
    with Index.open(source) as old, _opened(old, target) as new:
        known = {id: row for row, id, *_ in old.records.listing()}
        foreign = [id for _, id, *_ in new.records.listing() if id not in known]
        if foreign:
            some = ", ".join(foreign[:SHOWN])
            raise InputError(f"{new.place} has {len(foreign):,} images that {old.place} has not: {some}")
        copied = 0
        with bar(f"copying {len(known):,} images", len(known), console) as advance:
            for ids in _blocks(old, list(known)):
                copied += _copy(old, new, ids, [known[id] for id in ids])
                advance(len(ids))
        new.image_files.skip(old.image_files.skipped())
        for name in KEPT_FILES:
            if (data := old.read_file(name)) is not None and data != new.read_file(name):
                new.write_file(name, data)
        new.engine.update()
        new.refresh()
        with bar(f"comparing {len(known):,} images", len(known), console) as advance:
            for ids in _blocks(old, list(known)):
                if different := _different(old, new, ids, [known[id] for id in ids]):
                    raise RunError(f"{new.place} is not equal to {old.place}: {ids[different[0]]} differs, for example")
                advance(len(ids))
        if new.records.count() != len(known):
            raise RunError(f"{new.place} has {new.records.count():,} images, but {old.place} {len(known):,}")
    return CopyReport(copied, len(known) - copied)


def _opened(old: Index, target: str | os.PathLike[str]) -> Index:
    """The index at the target, open for writing, which is made if there is none."""
    if not Index.exists(target):
        return Index.create(
            target,
            old.dim,
            root=old.root,
            model=old.model,
            run=old.run,
            head=old.head,
            exif=old.exif,
            parts=old.parts,
        )
    new = Index.open(target, write=True)
    for name in ("dim", "model", "head", "parts", "root"):
        if getattr(new, name) != getattr(old, name):
            new.close()
            raise InputError(
                f"{new.place} is another index: its {name} is {getattr(new, name)}, and that of {old.place} "
                f"{getattr(old, name)}; copy to a new place"
            )
    return new


def _blocks(old: Index, ids: Sequence[str]) -> Iterator[Sequence[str]]:
    size = max(1, min(COPIED_IMAGES, COPIED_BYTES // (4 * old.dim)))
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _copy(old: Index, new: Index, ids: Sequence[str], rows: Sequence[int]) -> int:
    """Writes those images that the new index lacks or that differ there; returns how many."""
    different = _different(old, new, ids, rows)
    if not different:
        return 0
    entries = old.records.entries([rows[number] for number in different])
    vectors = _vectors(old, [rows[number] for number in different])
    there = new.records.rows_of([entry.id for entry in entries])
    lacking = [number for number, entry in enumerate(entries) if entry.id not in there]
    other = [number for number, entry in enumerate(entries) if entry.id in there]
    names = old.records.class_names()
    if lacking:
        chosen = [entries[number] for number in lacking]
        new.add(chosen, vectors[lacking], class_names={entry.label: names[entry.label] for entry in chosen})
    if other:
        new.update([entries[number] for number in other], vectors[other])
    return len(different)


def _different(old: Index, new: Index, ids: Sequence[str], rows: Sequence[int]) -> list[int]:
    """The numbers of the images that the new index lacks, or whose entries or vectors differ there."""
    there = new.records.rows_of(ids)
    both = [number for number, id in enumerate(ids) if id in there]
    own = [there[ids[number]] for number in both]
    wanted, found = old.records.entries([rows[number] for number in both]), new.records.entries(own)
    vectors, copies = _vectors(old, [rows[number] for number in both]), _vectors(new, own)
    same = {
        number
        for place, number in enumerate(both)
        if wanted[place] == found[place] and np.array_equal(vectors[place], copies[place])
    }
    return [number for number in range(len(ids)) if number not in same]


def _vectors(index: Index, rows: Sequence[int]) -> np.ndarray:
    """The vectors of images (n, D), or with those of their parts (n, 1 + P, D)."""
    whole = np.asarray(index.vectors[np.asarray(rows, np.int64)])
    parts = getattr(index, "part_vectors", None)
    return whole if parts is None else np.concatenate([whole[:, None], parts[np.asarray(rows, np.int64)]], axis=1)
