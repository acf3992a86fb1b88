"""Averages of queries, or of a whole gallery, with their nearest neighbors at search time."""

import numpy as np

from dr_keras.evaluation.metrics import Moved, moved_gallery
from dr_keras.index.exact_search import nearest

BLOCK_VECTORS = 4096  # gallery vectors averaged at a time
COSINE_POWER = 3.0  # the weight of a neighbor: this power of its cosine (alpha query expansion, Radenovic et al. 2018)


def expand_queries(queries: np.ndarray, gallery: np.ndarray, count: int) -> np.ndarray:
    """Averages each query with the gallery vectors nearest to it.

    Args:
        queries: (Q, D) of unit length.
        gallery: (N, D) of unit length.
        count: The number of neighbors; the weight of each is the third power of its cosine, that of the query 1.

    Returns:
        (Q, D) float32 of unit length.
    """
    rows, squared = nearest(queries, gallery, count)
    weights = np.maximum(1 - squared / 2, 0) ** COSINE_POWER  # (Q, K), from cosines
    total = queries + np.einsum("qk,qkd->qd", weights, np.asarray(gallery[rows], np.float32))
    return unit_length(total)


def average_gallery(gallery: np.ndarray, count: int) -> np.ndarray:
    """Averages each gallery vector with its nearest neighbors in the gallery; no label is used.

    Args:
        gallery: (N, D) of unit length.
        count: The number of neighbors, not counting the vector itself; weighted as in `expand_queries`.

    Returns:
        (N, D) float32 of unit length.
    """
    out = np.empty(gallery.shape, np.float32)
    for start in range(0, len(gallery), BLOCK_VECTORS):
        own = np.asarray(gallery[start : start + BLOCK_VECTORS], np.float32)
        rows, squared = nearest(own, gallery, count + 1)  # the vector itself is among them, at distance 0
        weights = np.maximum(1 - squared / 2, 0) ** COSINE_POWER
        out[start : start + BLOCK_VECTORS] = np.einsum("qk,qkd->qd", weights, np.asarray(gallery[rows], np.float32))
    return unit_length(out)


def expand_among_others(queries: np.ndarray, gallery: np.ndarray, count: int, moved: Moved | None = None) -> np.ndarray:
    """Expands each query with the other rows of a gallery whose row i is the image of query i.

    Args:
        queries, gallery: (Q, D) each, of unit length.
        count: As for `expand_queries`.
        moved: As for `dr_keras.evaluation.metrics.evaluate`.

    Returns:
        (Q, D) float32 of unit length.
    """
    out = np.empty(queries.shape, np.float32)
    for row, query in enumerate(queries):
        there = moved_gallery(gallery, row, moved)
        out[row] = expand_queries(query[None], np.delete(there, row, axis=0), count)[0]
    return out


def average_without(gallery: np.ndarray, count: int) -> Moved:
    """Prepares `average_gallery` for leave-one-out evaluation.

    Args:
        gallery, count: As for `average_gallery`.

    Returns:
        A function that returns the averaged vectors that change when a row of the gallery is left out.
    """
    found, squared = nearest(gallery, gallery, count + 2)  # itself, and one more for the row left out
    weights = np.maximum(1 - squared / 2, 0) ** COSINE_POWER

    def without(row: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.flatnonzero((found[:, : count + 1] == row).any(axis=1))
        rows = rows[rows != row]
        kept = np.where(found[rows] == row, 0, weights[rows])
        return rows, unit_length(np.einsum("nk,nkd->nd", kept, np.asarray(gallery[found[rows]], np.float32)))

    return without


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors (N, D) to unit length, as float32; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
