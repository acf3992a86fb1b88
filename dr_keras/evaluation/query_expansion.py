"""What a search can do to its vectors: average queries, or the whole gallery, with their nearest neighbours."""

import numpy as np

from dr_keras.evaluation.metrics import Moved, moved_gallery
from dr_keras.index.exact_search import nearest

BLOCK = 4096  # gallery vectors averaged at a time
POWER = 3.0  # a neighbour weighs as much as this power of its cosine (alpha query expansion, Radenovic et al. 2018)


def expand_queries(queries: np.ndarray, gallery: np.ndarray, count: int) -> np.ndarray:
    """Query expansion: each query becomes its average with the gallery vectors nearest to it.

    Args:
        queries: (Q, D) of unit length.
        gallery: (N, D) of unit length.
        count: how many neighbours are averaged in; each weighs as much as the third power of its cosine, the query 1.

    Returns:
        (Q, D) float32 of unit length.
    """
    rows, squared = nearest(queries, gallery, count)
    weights = np.maximum(1 - squared / 2, 0) ** POWER  # (Q, K), from cosines
    total = queries + np.einsum("qk,qkd->qd", weights, np.asarray(gallery[rows], np.float32))
    return unit_length(total)


def average_gallery(gallery: np.ndarray, count: int) -> np.ndarray:
    """Gallery-side averaging: each vector becomes its average with its neighbours in the gallery; no label is used.

    Args:
        gallery: (N, D) of unit length.
        count: how many neighbours are averaged in, the vector itself not counted; weighed as in `expand_queries`.

    Returns:
        (N, D) float32 of unit length.
    """
    out = np.empty(gallery.shape, np.float32)
    for start in range(0, len(gallery), BLOCK):
        own = np.asarray(gallery[start : start + BLOCK], np.float32)
        rows, squared = nearest(own, gallery, count + 1)  # the vector itself is among them, at distance 0
        weights = np.maximum(1 - squared / 2, 0) ** POWER
        out[start : start + BLOCK] = np.einsum("qk,qkd->qd", weights, np.asarray(gallery[rows], np.float32))
    return unit_length(out)


def expand_among_others(queries: np.ndarray, gallery: np.ndarray, count: int, moved: Moved | None = None) -> np.ndarray:
    """`expand_queries` for leaving one out: gallery row i is the image of query i, which takes the others only.

    Args:
        queries, gallery: (Q, D) each, of unit length.
        count: as in `expand_queries`.
        moved: as in `dr_keras.evaluation.metrics.evaluate`.

    Returns:
        (Q, D) float32 of unit length.
    """
    out = np.empty(queries.shape, np.float32)
    for row, query in enumerate(queries):
        there = moved_gallery(gallery, row, moved)
        out[row] = expand_queries(query[None], np.delete(there, row, axis=0), count)[0]
    return out


def average_without(gallery: np.ndarray, count: int) -> Moved:
    """`average_gallery` for leaving one out: which of its vectors lie elsewhere where one is not there, and where.

    Args:
        gallery, count: as in `average_gallery`.
    """
    found, squared = nearest(gallery, gallery, count + 2)  # the vector itself is among them, and one to spare
    weights = np.maximum(1 - squared / 2, 0) ** POWER

    def without(row: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.flatnonzero((found[:, : count + 1] == row).any(axis=1))
        rows = rows[rows != row]
        kept = np.where(found[rows] == row, 0, weights[rows])
        return rows, unit_length(np.einsum("nk,nkd->nd", kept, np.asarray(gallery[found[rows]], np.float32)))

    return without


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """(N, D) scaled to unit length; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
