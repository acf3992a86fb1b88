"""Finds the images of which a part is nearest, by comparing a query with every part of every image."""

import numpy as np

PRODUCT_VALUES = 1 << 25  # values of a matrix product computed at a time: 128 MiB
GATHERED_VALUES = 1 << 26  # values of vectors copied at a time, if only some rows are searched: 256 MiB
SPARE = 32  # images ranked by their exact distances beyond those asked for: a matrix product rounds


def nearest_parts(
    queries: np.ndarray,
    vectors: np.ndarray,
    parts: np.ndarray,
    k: int,
    *,
    rows: np.ndarray | None,
    exclude: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the `k` images whose whole or part is nearest to each query.

    Args:
        queries: (Q, D) float32.
        vectors: (R, D) float32 of unit length, those of the whole images.
        parts: (R, P, D) float32 of unit length.
        k: At least 1; capped at the number of images.
        rows: (n,) int64, ascending: the rows to search; None for all.
        exclude: (Q, X) rows to exclude for each query; -1 for none.

    Returns:
        rows (Q, K) int64, nearest first and ties by row; Euclidean distances (Q, K) float32; and parts (Q, K) int64,
        the number of the nearest part, -1 for the whole. If a query excludes more than others, it is padded with row
        -1 and an infinite distance.
    """
    rows = np.arange(len(vectors)) if rows is None else rows
    similar = _similarities(queries, vectors, parts, rows)
    similar[(rows[None, :, None] == exclude[:, None, :]).any(axis=2)] = -np.inf
    count = min(k + SPARE, len(rows))
    near = (
        np.sort(np.argpartition(-similar, count - 1, axis=1)[:, :count], axis=1)
        if count
        else np.empty(similar.shape, int)
    )
    left = np.take_along_axis(similar, near, axis=1) > -np.inf
    found, distances, best = (np.empty((len(queries), count), kind) for kind in (np.int64, np.float32, np.int64))
    for number, (query, places) in enumerate(zip(queries, rows[near], strict=True)):
        pieces = np.concatenate([vectors[places][:, None], parts[places]], axis=1)  # (C, 1 + P, D)
        difference = np.linalg.norm(pieces - query, axis=2)
        nearest = difference.argmin(axis=1)
        distance = np.where(left[number], difference[np.arange(count), nearest], np.inf)
        order = np.argsort(distance, kind="stable")
        found[number] = np.where(left[number], places, -1)[order]
        distances[number], best[number] = distance[order], nearest[order] - 1
    keep = min(k, int(left.sum(axis=1).max(initial=0)))
    return found[:, :keep], distances[:, :keep], best[:, :keep]


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
