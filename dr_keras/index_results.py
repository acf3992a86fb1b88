"""Turns rows of an index into results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dr_keras.data.crop import Crop
from dr_keras.data.image_ids import image_path
from dr_keras.data.parts import windows
from dr_keras.errors import InputError
from dr_keras.image_names import resolve
from dr_keras.index.index import Entry, Index
from dr_keras.search_results import Result
from dr_keras.variety import POOL, Variety, vary

if TYPE_CHECKING:
    from dr_keras.duplicates.copies import CopyFinder

MAX_POOL = 2000  # nearest images among which copies are looked for: comparing them takes memory and time


@cache
def _copies() -> "CopyFinder":
    from dr_keras.duplicates.copies import CopyFinder

    return CopyFinder()


def row_of(index: Index, name: str) -> int:
    """Returns the row of an image that `resolve` found in the index a moment ago.

    Raises:
        InputError: It has been removed since.
    """
    found = resolve(index, name)
    if isinstance(found, Path):
        raise InputError(f"{name!r} was removed from the index during the search")
    return found


def neighbors(
    index: Index, vectors: np.ndarray, k: int, exclude: Sequence[int] | np.ndarray, where: str | None, *, whole: bool
) -> list[list[Result]]:
    """Returns the k nearest images of each vector; see `dr_keras.search_model.Model.neighbors`."""
    others = np.broadcast_to(np.asarray(exclude, np.int64), (len(vectors), np.shape(exclude)[-1]))
    with index.held():
        rows, distances, parts = search(index, vectors, k, where, others, whole=whole)
        good = rows >= 0
        entries = dict(zip(rows[good].tolist(), index.records.entries(rows[good]), strict=True))
        names, root, cuts = index.records.class_names(), index.root, windows(index.parts)
    return [
        [
            _result(root, entries[row], names, rank, distance, cuts[part] if part >= 0 else None)
            for rank, (row, distance, part) in enumerate(zip(*found, strict=True), start=1)
            if row >= 0
        ]
        for found in zip(rows.tolist(), distances.tolist(), parts.tolist(), strict=True)
    ]


def search(
    index: Index, vectors: np.ndarray, k: int, where: str | None, exclude: np.ndarray, *, whole: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Searches an index as `Index.search_parts` does; by whole images if it keeps no parts, or if `whole` says so."""
    if index.parts and not whole:
        return index.search_parts(vectors, k, where=where, exclude=exclude)
    rows, distances = index.search(vectors, k, where=where, exclude=exclude)
    return rows, distances, np.full(rows.shape, -1)


def varied_neighbors(
    index: Index,
    vector: np.ndarray,
    k: int,
    exclude: Sequence[str],
    where: str | None,
    variety: Variety,
    max_distance: float | None = None,
    *,
    whole: bool = False,
) -> list[Result]:
    """Returns up to k images that are near a vector (D,), chosen for variety among the nearest.

    Files are read while other threads may search and refresh the index.

    Args:
        index: The index.
        vector: (D,) float32.
        k: How many; fewer if there are not as many different ones among the nearest `MAX_POOL`.
        exclude: Ids to leave out.
        where: A condition, see `dr_keras.index.filters`.
        variety: What is asked for.
        max_distance: The greatest distance to choose from, or None.
        whole: Whether to search by whole images alone.
    """
    most = max(k, MAX_POOL)
    pool = min(variety.pool(k), most)
    while True:
        with index.held():
            left_out = np.array([list(index.records.rows_of(exclude).values())], np.int64)
            rows, distances, parts = (
                each[0] for each in search(index, vector[None], pool, where, left_out, whole=whole)
            )
            enough = len(rows) < pool or pool >= most
            good = rows >= 0
            if max_distance is not None:
                enough = enough or distances[-1] > max_distance
                good &= distances <= max_distance
            distances, rows, parts = distances[good], rows[good], parts[good]
            near, entries = np.array(index.vectors[rows], np.float32), index.records.entries(rows)
            names, root, cuts = index.records.class_names(), index.root, windows(index.parts)
        files = [(image_path(entry.id, root), entry.hash) for entry in entries]
        chosen, copies = vary(variety, near, distances, k, lambda: _copies().groups(files, near))  # noqa: B023  # called at once
        if len(chosen) == k or enough:
            break
        pool = min(POOL * pool, most)
    return [
        replace(
            _result(root, entries[number], names, rank, float(distances[number])),
            copies=tuple(entries[other].id for other in folded),
            part=cuts[parts[number]] if parts[number] >= 0 else None,
        )
        for rank, (number, folded) in enumerate(zip(chosen, copies, strict=True), start=1)
    ]


def describe(index: Index, row: int) -> Result:
    """Returns what the index knows about the image in a row."""
    with index.held():
        return _result(index.root, index.records.entries([row])[0], index.records.class_names())


def _result(
    root: Path,
    entry: Entry,
    names: Mapping[str, str],
    rank: int = 0,
    distance: float = 0.0,
    part: Crop | None = None,
) -> Result:
    path: Any = image_path(entry.id, root)  # which becomes a path if somebody asks for it
    return Result(rank, entry.id, path, entry.label, names[entry.label], distance, entry.attributes, part=part)
