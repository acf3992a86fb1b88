"""Finds the images of which a part is nearest, by comparing a query with every part of every image."""

import numpy as np

from dr_keras.index.exact_search import MAX_SCATTER

PRODUCT_VALUES = 1 << 25  # values of a matrix product computed at a time, and of its results kept: 128 MiB
GATHERED_VALUES = 1 << 26  # values of vectors copied at a time, if only some rows are searched: 256 MiB
SPARE = 32  # images ranked by their exact distances beyond those asked for: a matrix product rounds

Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def nearest_parts(
    queries: np.ndarray,
    vectors: np.ndarray,
    parts: np.ndarray,
    k: int,
    *,
    rows: np.ndarray | None,
    exclude: np.ndarray,
) -> Found:
    """Finds the `k` images whose whole or part is nearest to each query.

    Args:
        queries: (Q, D) float32.
        vectors: (R, D) float32 of unit length, those of the whole images.
        parts: (R, P, D) float32 of unit length.
        k: At least 1; capped at the number of images.
        rows: (n,) int64, ascending: the rows to search; None for all.
        exclude: (Q, X) rows to exclude for each query; -1 for none.

    Returns:
        rows (Q, K) int64, nearest first and ties by row, unless more than `SPARE` images tie; Euclidean distances (Q,
        K) float32; and parts (Q, K) int64, the number of the nearest part, -1 for the whole. If a query excludes more
        than others, it is padded with row -1 and an infinite distance.
    """
    count = len(vectors) if rows is None else len(rows)
    block = max(1, PRODUCT_VALUES // max(1, count))
    found = [
        _nearest_parts(queries[start : start + block], vectors, parts, k, rows, exclude[start : start + block])
        for start in range(0, len(queries), block)
    ]
    keep = max((int((one[0] >= 0).sum(axis=1).max(initial=0)) for one in found), default=0)
    empty = (np.empty((0, 0), kind) for kind in (np.int64, np.float32, np.int64))
    merged = (np.concatenate(arrays)[:, :keep] for arrays in zip(*found, strict=True)) if found else empty
    places, distances, best = merged
    return places, distances, best


def _nearest_parts(
    queries: np.ndarray,
    vectors: np.ndarray,
    parts: np.ndarray,
    k: int,
    rows: np.ndarray | None,
    exclude: np.ndarray,
) -> Found:
    """`nearest_parts` for as many queries as fit in memory; K is `k` or the number of rows."""
    all_rows = np.arange(len(vectors))
    searched = all_rows if rows is None or MAX_SCATTER * len(rows) >= len(vectors) else rows
    similar = _similarities(queries, vectors, parts, searched)
    if rows is not None and searched is all_rows:
        skip = np.ones(len(vectors), bool)
        skip[rows] = False
        similar[:, skip] = -np.inf
    for number, unwanted in enumerate(exclude):
        places = np.searchsorted(searched, unwanted)
        there = places < len(searched)
        places, unwanted = places[there], unwanted[there]
        similar[number, places[searched[places] == unwanted]] = -np.inf
    count = min(k + SPARE, len(searched))
    keep = min(k, len(searched) if rows is None else len(rows))
    found, best = np.full((len(queries), keep), -1), np.full((len(queries), keep), -1)
    distances = np.full((len(queries), keep), np.inf, np.float32)
    for number, query in enumerate(queries):
        near = (
            np.argpartition(similar[number], len(searched) - count)[len(searched) - count :]
            if count
            else np.empty(0, int)
        )
        near = np.sort(near[similar[number, near] > -np.inf])
        away, nearest = _exact(query, vectors, parts, searched[near])
        order = np.argsort(away, kind="stable")[:keep]
        found[number, : len(order)] = searched[near][order]
        distances[number, : len(order)] = away[order]
        best[number, : len(order)] = nearest[order] - 1
    return found, distances, best


def _exact(
    query: np.ndarray, vectors: np.ndarray, parts: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The distance of the nearest of the whole (0) and the parts (1 to P) of each image, and which it is."""
    block = max(1, GATHERED_VALUES // ((1 + parts.shape[1]) * parts.shape[2]))
    away, nearest = np.empty(len(rows), np.float32), np.empty(len(rows), np.int64)
    for start in range(0, len(rows), block):
        some = rows[start : start + block]
        pieces = np.concatenate([vectors[some][:, None], parts[some]], axis=1) - query  # (n, 1 + P, D)
        difference = np.sqrt(np.einsum("npd,npd->np", pieces, pieces))
        nearest[start : start + block] = difference.argmin(axis=1)
        away[start : start + block] = difference.min(axis=1)
    return away, nearest


def _similarities(queries: np.ndarray, vectors: np.ndarray, parts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(Q, n): the greatest product of each query with a vector of the image in each row."""
    pieces, dim = 1 + parts.shape[1], parts.shape[2]
    every = len(rows) == len(vectors)
    block = max(1, min(PRODUCT_VALUES // (len(queries) * pieces), GATHERED_VALUES // (pieces * dim)))
    found = np.empty((len(queries), len(rows)), np.float32)
    for start in range(0, len(rows), block):
        chosen = slice(start, min(start + block, len(rows)))
        some: slice | np.ndarray = chosen if every else rows[chosen]  # a slice isn't copied
        near = parts[some].reshape(-1, dim) @ queries.T  # (n * P, Q)
        best = near.reshape(-1, pieces - 1, len(queries)).max(axis=1)
        found[:, chosen] = np.maximum(best, vectors[some] @ queries.T).T
    return found
