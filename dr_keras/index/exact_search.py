"""Exact nearest neighbors by Euclidean distance: NumPy for a few queries, FAISS for many."""

from collections.abc import Iterator
from typing import Any

import numpy as np

FEW_QUERIES = 64  # up to this many, NumPy's matrix product is faster than FAISS, which then need not be imported
PRODUCT_VALUES = 1 << 25  # values of a matrix product computed at a time: 128 MiB
GROUP_VALUES = 32  # values per group; the minimum of each group is found first
BLOCK_VALUES = 1 << 28  # values of a gallery converted to float32 at a time: 1 GiB
# While the gallery has at most this many times the rows to search, searching all of it and dropping the other rows is
# faster than gathering the rows.
MAX_SCATTER = 4
MIN_RUN_ROWS = 4096  # runs of consecutive rows this long are searched in place; shorter ones are gathered in a copy


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, *, rows: np.ndarray | None = None, unit: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the `k` nearest gallery rows of each query by comparing it with every gallery vector.

    Args:
        queries: (Q, D), any numeric type.
        gallery: (N, D), any numeric type; may be memory-mapped. Types other than float32 are converted in blocks.
        k: At least 1; capped at the number of rows.
        rows: (n,) int64, ascending: the rows to search; all N by default.
        unit: Whether all gallery vectors are of unit length, so that their products with a query rank them.

    Returns:
        rows (Q, K) int64, nearest first, and squared distances (Q, K) float32. The distances come from a matrix
        product and carry its rounding error; `distances` computes them exactly.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    k = min(k, len(gallery) if rows is None else len(rows))
    few = len(queries) <= FEW_QUERIES and gallery.dtype == np.float32
    if rows is not None and few and k and MAX_SCATTER * len(rows) >= len(gallery):
        skip = np.ones(len(gallery), bool)
        skip[rows] = False
        return numpy_search(queries, gallery, k, unit=unit, skip=skip)
    found = np.empty((len(queries), 0), np.int64)
    best = np.empty((len(queries), 0), np.float32)
    for vectors, numbers in _parts(gallery, rows):
        places, squared = _search(queries, vectors, min(k, len(vectors)), unit)
        places = places + numbers if isinstance(numbers, int) else numbers[places]
        found, best = _merged(found, best, places, squared, k)
    return found, best


def distances(queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Euclidean distances computed from differences, so that equal vectors are exactly 0 apart.

    Args:
        queries: (Q, D).
        gallery: (N, D).
        rows: (Q, K) gallery rows; -1 for none.

    Returns:
        (Q, K) float32; infinite where the row is -1.
    """
    result = np.full(rows.shape, np.inf, np.float32)
    if len(queries) > FEW_QUERIES and gallery.dtype == np.float32 and gallery.flags.c_contiguous:
        faiss = load_faiss()
        queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.int64)
        arrays = [faiss.swig_ptr(array) for array in (result, queries, gallery, rows)]
        faiss.fvec_L2sqr_by_idx(*arrays, queries.shape[1], *rows.shape)
        return np.sqrt(result, out=result)
    for query, places, out in zip(queries, rows, result, strict=True):
        difference = gallery[places].astype(np.float32) - query.astype(np.float32)  # (K, D)
        out[:] = np.sqrt(np.einsum("kd,kd->k", difference, difference))
    result[rows < 0] = np.inf
    return result


def ranked(queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest of the rows proposed for each query.

    Args:
        queries: (Q, D).
        gallery: (N, D).
        rows: (Q, C) int64, distinct for each query; -1 for none.
        k: Capped at C.

    Returns:
        rows (Q, K), nearest first and ties by row, and Euclidean distances (Q, K) float32; rows of -1 come last, with
        infinite distance.
    """
    rows = np.sort(rows, axis=1)  # so that the gallery is read from front to back
    found = distances(queries, gallery, rows)
    order = np.argsort(found, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(found, order, axis=1)


def stretches(rows: np.ndarray) -> np.ndarray:
    """Finds the runs of consecutive numbers in an ascending array.

    Args:
        rows: (n,) int64, ascending.

    Returns:
        (S, 2) int64, the first number of each run and its last plus 1.
    """
    if not len(rows):
        return np.empty((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    firsts = rows[np.concatenate([[0], breaks])]
    lasts = rows[np.concatenate([breaks - 1, [len(rows) - 1]])]
    return np.stack([firsts, lasts + 1], axis=1)


def _parts(gallery: np.ndarray, rows: np.ndarray | None) -> Iterator[tuple[np.ndarray, int | np.ndarray]]:
    """The gallery's vectors in float32 blocks, each with its first row, or with the rows it was gathered from."""
    part = len(gallery) if gallery.dtype == np.float32 else max(1, BLOCK_VALUES // max(1, gallery.shape[1]))
    if rows is None:
        ranges = np.array([[0, len(gallery)]])
    else:
        ranges = stretches(rows)
        long = ranges[:, 1] - ranges[:, 0] >= MIN_RUN_ROWS
        inside = np.zeros(len(rows), bool)
        for first, end in ranges[long]:
            inside[slice(*np.searchsorted(rows, (first, end)))] = True
        ranges, short = ranges[long], rows[~inside]
        size = max(1, BLOCK_VALUES // max(1, gallery.shape[1]))
        for start in range(0, len(short), size):
            chosen = short[start : start + size]
            yield np.ascontiguousarray(gallery[chosen], np.float32), chosen
    for first, end in ranges.tolist():
        for start in range(first, end, max(1, part)):
            yield np.ascontiguousarray(gallery[start : min(start + part, end)], np.float32), start


def _merged(
    rows: np.ndarray, squared: np.ndarray, more_rows: np.ndarray, more_squared: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest of two results of `nearest` over different rows: (Q, K) each, nearest first."""
    if not rows.shape[1]:
        return more_rows[:, :k], more_squared[:, :k]
    rows = np.concatenate([rows, more_rows], axis=1)
    squared = np.concatenate([squared, more_squared], axis=1)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(squared, order, axis=1)


def _search(queries: np.ndarray, vectors: np.ndarray, k: int, unit: bool) -> tuple[np.ndarray, np.ndarray]:
    if len(queries) <= FEW_QUERIES:
        return numpy_search(queries, vectors, k, unit=unit)
    faiss = load_faiss()
    if not unit:
        squared, rows = faiss.knn(queries, vectors, k)
        return rows, squared
    products, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    own = np.einsum("qd,qd->q", queries, queries)  # (Q,)
    return rows, np.maximum(own[:, None] + 1 - 2 * products, 0)


def numpy_search(
    queries: np.ndarray, vectors: np.ndarray, k: int, *, unit: bool = False, skip: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` in NumPy, for float32 arrays and k <= N; `skip` (N,) is true for rows to exclude."""
    lengths = 1 if unit else np.einsum("nd,nd->n", vectors, vectors)  # (N,)
    left_out = None if skip is None else np.flatnonzero(skip)
    rows = np.empty((len(queries), k), np.int64)
    squared = np.empty((len(queries), k), np.float32)
    part = max(1, PRODUCT_VALUES // max(1, len(vectors)))
    for start in range(0, len(queries), part):
        some = queries[start : start + part]
        # (Q, N). A matrix product copies the gallery first, which pays off from the third query on.
        values = some @ vectors.T if len(some) > 2 else np.stack([vectors @ query for query in some])
        values *= -2
        values += lengths
        if left_out is not None:
            values[:, left_out] = np.inf
        near = _smallest(values, k)
        found = np.take_along_axis(values, near, axis=1)
        order = np.lexsort((near, found))
        rows[start : start + part] = np.take_along_axis(near, order, axis=1)
        own = np.einsum("qd,qd->q", some, some)[:, None]
        squared[start : start + part] = np.maximum(np.take_along_axis(found, order, axis=1) + own, 0)
    return rows, squared


def _smallest(values: np.ndarray, k: int) -> np.ndarray:
    """The columns (Q, k) of each row's k smallest values, in any order.

    The k smallest values lie in the k groups with the smallest minima. Finding these minima takes one pass at memory
    speed and leaves few candidates.
    """
    queries, count = values.shape
    if k >= count:
        return np.broadcast_to(np.arange(count), (queries, count))
    groups = count // GROUP_VALUES  # group g has the columns g, g + groups, g + 2 groups, ...
    if groups <= 2 * k:
        return np.argpartition(values, k - 1, axis=1)[:, :k]
    minima = values[:, : groups * GROUP_VALUES].reshape(queries, GROUP_VALUES, groups).min(axis=1)
    chosen = np.argpartition(minima, k - 1, axis=1)[:, :k]  # (Q, k)
    columns = (chosen[:, None, :] + groups * np.arange(GROUP_VALUES)[:, None]).reshape(queries, -1)  # (Q, C)
    rest = np.broadcast_to(np.arange(groups * GROUP_VALUES, count), (queries, count - groups * GROUP_VALUES))
    columns = np.concatenate([columns, rest], axis=1)
    near = np.argpartition(np.take_along_axis(values, columns, axis=1), k - 1, axis=1)[:, :k]
    return np.take_along_axis(columns, near, axis=1)


def load_faiss() -> Any:
    """Imports FAISS, which takes a tenth of a second, only when needed; its type stubs are incomplete."""
    import faiss

    return faiss
