"""Moves an index to another model: embeds everything anew beside the old vectors, which answer until the switch.

The new vectors grow in an index of their own, in the folder `migration` inside the index's folder, or in a collection
beside that of the index. A migration that was stopped or killed goes on there. The switch is one step of the index
itself.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from dr_keras.data.decoding import decode_with_parts
from dr_keras.data.image_ids import image_path
from dr_keras.errors import InputError
from dr_keras.index.exact_search import nearest
from dr_keras.index.index import Index
from dr_keras.index.records import NO_CLASS, Entry, Stamp
from dr_keras.index.sync import Reader, chunk_images, timed_chunks
from dr_keras.progress import bar

COMPARED_QUERIES = 1000  # images whose neighbors are compared
COMPARED_NEIGHBORS = 10
UNREAD_SHOWN = 3


@dataclass(frozen=True)
class Target:
    """The model to move to.

    Attributes:
        reader: How it turns files into vectors; of parts too, if the index keeps them.
        dim, model, run, head: As in `Index.create`.
    """

    reader: Reader
    dim: int
    model: str
    run: str
    head: str

    def meta(self) -> dict[str, int | str]:
        """What an index says of vectors of this model."""
        return {"dim": self.dim, "model": self.model, "run": self.run, "head": self.head}


@dataclass(frozen=True)
class Comparison:
    """How the neighbors of images differ between two models.

    Attributes:
        queries: How many images of the index were searched for.
        k: How many neighbors of each.
        overlap: The mean share of the neighbors that both models have.
        precision: The mean share of the neighbors that have the query's class, by the old and by the new model; None
            without classes.
    """

    queries: int
    k: int
    overlap: float
    precision: tuple[float, float] | None

    def __str__(self) -> str:
        text = f"{self.overlap:.3f} of the {self.k} nearest of {self.queries:,} images are the same"
        if self.precision is None:
            return text
        old, new = self.precision
        return f"{text}; precision@{self.k} is {old:.4f} with the old model and {new:.4f} with the new one"


def embed_anew(place: str | os.PathLike[str], target: Target, *, console: Console, leave_out: bool = False) -> Index:
    """Embeds all images of an index by another model, beside the old vectors; goes on where it was stopped.

    Args:
        place: Where the index is. Others may search and change it meanwhile.
        target: The other model.
        console: Shows progress.
        leave_out: Leave out images whose files cannot be read.

    Returns:
        The index of the new vectors, open for writing.

    Raises:
        InputError: Files cannot be read, and `leave_out` is false.
        RunError: The index cannot be written to.
    """
    with Index.open(place) as index:
        fresh = _open_migration(index, target)
        try:
            _take_over(index, fresh, target.reader, console, leave_out)
        except BaseException:
            fresh.close()
            raise
    return fresh


def switch(
    index: Index,
    fresh: Index,
    target: Target,
    *,
    console: Console,
    keep_old: bool = False,
    leave_out: bool = False,
) -> list[str]:
    """Puts the new vectors in the place of the old ones, in one transaction.

    Args:
        index: Open for writing.
        fresh: From `embed_anew`; what has changed in the index since is embedded first. It is removed afterwards.
        target, console, leave_out: As there.
        keep_old: Keep the index as it was at its `old_place`.

    Returns:
        The ids of the images that were left out, and are no longer in the index.

    Raises:
        InputError: Files cannot be read, and `leave_out` is false; nothing has changed.
        RunError: The index cannot be written, or there is something at `old_place`; nothing has changed.
    """
    unread = _take_over(index, fresh, target.reader, console, leave_out)
    index.take_vectors(fresh, target.meta(), keep_old=keep_old)
    fresh.close()
    index.remove_migration()
    return list(unread)


def compare(index: Index, fresh: Index, seed: int = 0) -> Comparison:
    """Compares the neighbors of images by the vectors of an index and by those of `embed_anew`."""
    listing = [(row, id, label) for row, id, label, _ in index.records.listing()]
    new_rows = fresh.records.rows_of([id for _, id, _ in listing])
    both = [(row, new_rows[id], label) for row, id, label in listing if id in new_rows]
    if len(both) < 2:
        raise InputError("two images at least are needed to compare models")
    old = index.vectors[[row for row, _, _ in both]]
    new = fresh.vectors[[row for _, row, _ in both]]
    labels = np.array([label for *_, label in both])
    k = min(COMPARED_NEIGHBORS, len(both) - 1)
    queries = np.random.default_rng(seed).permutation(len(both))[:COMPARED_QUERIES]
    found = [_others(nearest(vectors[queries], vectors, k + 1, unit=True)[0], queries, k) for vectors in (old, new)]
    overlap = np.mean(
        [len(set(one) & set(other)) / k for one, other in zip(*map(np.ndarray.tolist, found), strict=True)]
    )
    if len(set(labels.tolist()) - {NO_CLASS}) < 2:
        return Comparison(len(queries), k, float(overlap), None)
    right = [float((labels[rows] == labels[queries][:, None]).mean()) for rows in found]
    return Comparison(len(queries), k, float(overlap), (right[0], right[1]))


def remove_finished_migration(place: str | os.PathLike[str]) -> None:
    """Removes the rest of a migration that was killed after its switch; not one to another model.

    Raises:
        Locked: Another process is writing to the index, or migrating it.
    """
    with Index.open(place) as index:
        left = index.migration_place
        if not Index.exists(left):
            index.remove_strays()
            return
    with Index.open(place, write=True) as index:
        with Index.open(left, write=True) as fresh:
            finished = fresh.model == index.model
        if finished:
            index.remove_migration()


def _open_migration(index: Index, target: Target) -> Index:
    """The index of the new vectors: that of an earlier attempt, unless it was by another model."""
    place = index.migration_place
    if Index.exists(place):
        fresh = Index.open(place, write=True)
        if (fresh.model, fresh.dim, fresh.parts) == (target.model, target.dim, index.parts):
            return fresh
        fresh.close()
    return Index.create(
        place,
        target.dim,
        root=index.root,
        model=target.model,
        run=target.run,
        head=target.head,
        parts=index.parts,
        replace=True,
    )


def _take_over(index: Index, fresh: Index, reader: Reader, console: Console, leave_out: bool) -> dict[str, str]:
    """Embeds the images that are new or have changed; returns why others could not be embedded, by id."""
    index.refresh()
    reader = replace(reader, parts=index.parts)
    wanted, done = index.image_files.stamps(), fresh.image_files.stamps()
    fresh.remove([id for id in done if id not in wanted])
    todo = [id for id, stamp in wanted.items() if done.get(id) != stamp]
    unread: dict[str, str] = {}
    if todo:
        with bar(f"embedding {len(todo):,} images", len(todo), console) as advance:
            for chunk in timed_chunks(todo, chunk_images(reader)):
                unread |= _embed(index.root, fresh, reader, {id: wanted[id] for id in chunk})
                index.refresh()  # a state that is kept for hours would make the log of its writers grow
                advance(len(chunk))
    if unread and not leave_out:
        some = "; ".join(f"{id} {reason}" for id, reason in list(unread.items())[:UNREAD_SHOWN])
        raise InputError(
            f"{len(unread):,} images cannot be embedded anew: {some}. Bring their files back, or go on without these "
            "images by --leave-out"
        )
    return unread


def _embed(root: Path, fresh: Index, reader: Reader, images: Mapping[str, Stamp]) -> dict[str, str]:
    """Embeds images, by id with their stamps; returns why some could not be, by id."""
    ids = list(images)
    files = [image_path(id, root) for id in ids]
    block = decode_with_parts(files, reader.size, reader.resize, facts=False, parts=reader.parts)
    pixels, failures = block.pixels, block.failures
    good = [number for number in range(len(ids)) if number not in failures]
    if good:
        entries = [Entry(ids[number], NO_CLASS, "", *images[ids[number]]) for number in good]
        fresh.put(entries, reader.vectors(pixels[good] if failures else pixels))
    return {ids[number]: reason for number, reason in failures.items()}


def _others(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The first `k` of each row of `rows`, (Q, k + 1), without the query itself."""
    own = rows == queries[:, None]
    own[~own.any(axis=1), -1] = True  # equal images may hide it
    return rows[~own].reshape(len(rows), k)
