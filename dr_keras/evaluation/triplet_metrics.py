"""The triplets of an evaluation, drawn from the gallery, and their distances (Wang et al. 2014, section 6.3)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Moved = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Takes the gallery row that is left out; returns the rows (n,) that move because of it, and their vectors (n, D)."""

TRIPLETS_PER_QUERY = 10


@dataclass(frozen=True)
class RankedTriplets:
    """T triplets of each of Q queries; none (Q = 0) if the gallery has a single class.

    Attributes:
        positive, negative: (Q, T) gallery rows.
        near, far: (Q, T) float32, D(q, p+) and D(q, p-).
    """

    positive: np.ndarray
    negative: np.ndarray
    near: np.ndarray
    far: np.ndarray

    def __len__(self) -> int:
        return len(self.near)

    @property
    def correct(self) -> np.ndarray:
        """Whether the positive is the nearer one, (Q, T)."""
        return self.near < self.far

    def at_top(self, nearest: np.ndarray) -> np.ndarray:
        """Whether the positive or the negative is among the nearest images of the query.

        Args:
            nearest: (Q, K) gallery rows.

        Returns:
            (Q, T) bool.

        Example:
            >>> rows, distances = np.array([[3, 1]]), np.zeros((1, 2), np.float32)
            >>> RankedTriplets(rows, rows + 4, distances, distances).at_top(np.array([[0, 3, 6]]))
            array([[ True, False]])
        """
        images = np.stack([self.positive, self.negative], axis=-1)  # (Q, T, 2)
        return (images[..., None] == nearest[:, None, None]).any(axis=(2, 3))


def ranked_triplets(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    seed: int,
    own: np.ndarray | None = None,
    moved: Moved | None = None,
) -> RankedTriplets:
    """Draws ten triplets per query, with positives and negatives from the gallery.

    Args:
        queries, query_labels, gallery, gallery_labels: As for `dr_keras.evaluation.metrics.evaluate`. The gallery has
            an image of every query's class, other than the query itself.
        seed: Seeds the draws.
        own: (Q,) the gallery row of each query; None if no query is in the gallery.
        moved: See `Moved`; None if no vector moves.
    """
    order = np.argsort(gallery_labels, kind="stable")
    sorted_labels = gallery_labels[order]
    first = np.searchsorted(sorted_labels, query_labels, side="left")[:, None]
    last = np.searchsorted(sorted_labels, query_labels, side="right")[:, None]
    others = len(gallery) - (last - first)
    if others.min() == 0:
        rows, distances = (np.empty((0, TRIPLETS_PER_QUERY), dtype) for dtype in (np.int64, np.float32))
        return RankedTriplets(rows, rows, distances, distances)
    random = np.random.default_rng(seed)
    shape = (len(queries), TRIPLETS_PER_QUERY)
    if own is None:
        positive = order[random.integers(np.broadcast_to(first, shape), last)]
    else:
        place = random.integers(np.broadcast_to(first, shape), last - 1)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        positive = order[place + (place >= rank[own][:, None])]  # skips the query
    place = random.integers(0, np.broadcast_to(others, shape))
    negative = order[place + np.where(place >= first, last - first, 0)]
    near, far = (_distances(queries, gallery, rows, own, moved) for rows in (positive, negative))
    return RankedTriplets(positive, negative, near, far)


def _distances(
    queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray, own: np.ndarray | None, moved: Moved | None
) -> np.ndarray:
    """The distances (Q, T) float32 from the queries (Q, D) to these rows (Q, T) of the gallery."""
    found = np.empty(rows.shape, np.float32)
    if moved:
        assert own is not None
        for query, row in enumerate(own.tolist()):
            found[query] = np.linalg.norm(moved_gallery(gallery, row, moved)[rows[query]] - queries[query], axis=1)
        return found
    for column in range(rows.shape[1]):  # one column at a time, so that memory is Q x D
        difference = gallery[rows[:, column]].astype(np.float32) - queries.astype(np.float32)
        found[:, column] = np.sqrt(np.einsum("qd,qd->q", difference, difference))
    return found


def moved_gallery(gallery: np.ndarray, row: int, moved: Moved | None) -> np.ndarray:
    """Returns the gallery of one query in a leave-one-out evaluation.

    Args:
        gallery: (N, D).
        row: The row of the query.
        moved: See `Moved`; None if no vector moves.

    Returns:
        (N, D), the gallery itself if no vector moves.
    """
    if moved is None:
        return gallery
    there = np.array(gallery)
    rows, vectors = moved(row)
    there[rows] = vectors
    return there
