"""Retrieval metrics of a ranked gallery: precision@k, recall@k, MAP@R, similarity precision, and confused classes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras.errors import InputError
from dr_keras.index.exact_search import nearest

Moved = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Takes the gallery row that is left out; returns the rows (n,) that move because of it, and their vectors (n, D)."""

KS = (1, 10, 30)
TRIPLETS_PER_QUERY = 10
BOOTSTRAP_DRAWS = 1000
BLOCK_QUERIES = 1024  # ranked at a time; fewer if classes are large,
BLOCK_NEIGHBORS = 1 << 22  # so that a block has at most this many neighbors, about 0.2 GB


@dataclass(frozen=True)
class Ranking:
    """The result of `evaluate`.

    Attributes:
        figures: `precision@k`, `recall@k`, `map@r`, and `similarity_precision` (None if the gallery has a single
            class); the counts behind them; and `intervals`, a 95% bootstrap interval over the queries for each.
        class_precision: (C,) mean precision@30 of the queries of each class; NaN for a class without queries.
        confusion: (C, C), the share of class b (columns) among the 30 nearest images of the queries of class a (rows).
    """

    figures: dict[str, Any]
    class_precision: np.ndarray
    confusion: np.ndarray


@dataclass(frozen=True)
class _PerQuery:
    """The results of Q queries before they are averaged.

    Attributes:
        hits: By k, (Q,) the share of the k nearest images that are of the query's class.
        average_precision: (Q,), see `average_precision_at_r`.
        confusion: (C, C), as in `Ranking`, but summed over the queries.
    """

    hits: dict[int, np.ndarray]
    average_precision: np.ndarray
    confusion: np.ndarray


def evaluate(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    class_count: int,
    seed: int = 0,
    leave_one_out: bool = False,
    moved: Moved | None = None,
) -> Ranking:
    """Ranks the whole gallery for each query and averages over the queries.

    - precision@k: the share of the k nearest images that are of the query's class.
    - recall@k: the share of queries with at least one image of their class among the k nearest.
    - map@r: with R the number of gallery images of the query's class, the mean over the first R ranks of the precision
      up to each rank that holds an image of the query's class, and 0 at the other ranks (Musgrave et al. 2020).
    - similarity_precision: the share of triplets with D(q, p+) < D(q, p-), for ten seeded triplets per query with p+
      and p- drawn uniformly from the gallery images of the query's class and of the other classes (Wang et al. 2014,
      section 6.3).

    Queries whose class is not in the gallery have no right answer. They are counted, and left out of every mean.

    Args:
        queries: (Q, D); none of them is in the gallery, except with `leave_one_out`.
        query_labels: (Q,) class numbers.
        gallery: (N, D).
        gallery_labels: (N,) class numbers.
        class_count: The number of classes, C.
        seed: Seeds the triplets and the bootstrap.
        leave_one_out: Gallery row i is the image of query i, N = Q, and each query is ranked against the other rows.
        moved: With `leave_one_out`, gives the gallery vectors that depend on which query is left out.

    Raises:
        InputError: The gallery is empty, or it has no image of any query's class.
    """
    relevant = np.bincount(gallery_labels, minlength=class_count)[query_labels] - leave_one_out  # (Q,), R
    answerable = np.flatnonzero(relevant > 0)
    if not len(answerable):
        raise InputError(
            f"{len(queries)} queries and {len(gallery)} gallery images have no class in common; nothing can be ranked"
        )
    left_out = len(queries) - len(answerable)
    queries, query_labels, relevant = queries[answerable], query_labels[answerable], relevant[answerable]
    own = answerable if leave_one_out else None

    found = _rank(queries, query_labels, gallery, gallery_labels, relevant, class_count, own, moved)
    near, far = triplet_distances(queries, query_labels, gallery, gallery_labels, seed=seed, own=own, moved=moved)
    figures = _figures(found, near, far, seed)
    figures |= {"queries": len(queries), "queries_without_positive": left_out, "gallery": len(gallery) - leave_one_out}
    if leave_one_out:
        figures["leave_one_out"] = True

    count = np.bincount(query_labels, minlength=class_count)
    total = np.bincount(query_labels, found.hits[max(KS)], minlength=class_count)
    with np.errstate(invalid="ignore"):
        return Ranking(figures, total / count, found.confusion / np.maximum(count, 1)[:, None])


def _rank(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    relevant: np.ndarray,
    class_count: int,
    own: np.ndarray | None,
    moved: Moved | None,
) -> _PerQuery:
    """Ranks the gallery for each query; `relevant` (Q,) is R, and `own` (Q,) the query's own row in the gallery."""
    hits = {k: np.empty(len(queries)) for k in KS}
    average = np.empty(len(queries))
    confusion = np.zeros((class_count, class_count))
    depth = max(*KS, int(relevant.max()))
    step = max(1, min(BLOCK_QUERIES, BLOCK_NEIGHBORS // depth))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        if moved:
            assert own is not None
            rows = _nearest_moved(queries[block], gallery, depth, own[block], moved)
        else:
            rows = nearest_others(queries[block], gallery, depth, None if own is None else own[block])
        found = gallery_labels[rows]  # (q, K)
        right = found == query_labels[block, None]
        for k in KS:
            hits[k][block] = right[:, :k].mean(axis=1)
        average[block] = average_precision_at_r(right, relevant[block])
        top = found[:, : max(KS)]
        np.add.at(confusion, (np.broadcast_to(query_labels[block, None], top.shape), top), 1 / top.shape[1])
    return _PerQuery(hits, average, confusion)


def _figures(found: _PerQuery, near: np.ndarray, far: np.ndarray, seed: int) -> dict[str, Any]:
    """The means over the queries, and their intervals; `near` and `far` (Q, 10) as from `triplet_distances`."""
    hits, average = found.hits, found.average_precision
    figures: dict[str, Any] = {f"precision@{k}": float(hits[k].mean()) for k in KS}
    figures |= {f"recall@{k}": float((hits[k] > 0).mean()) for k in KS}
    figures["map@r"] = float(average.mean())
    figures["similarity_precision"] = float((near < far).mean()) if near.size else None
    values = {f"precision@{k}": hits[k] for k in KS} | {f"recall@{k}": hits[k] > 0 for k in KS} | {"map@r": average}
    if near.size:
        values["similarity_precision"] = (near < far).mean(axis=1)
    return figures | {"intervals": bootstrap_intervals(values, seed)}


def nearest_others(queries: np.ndarray, gallery: np.ndarray, k: int, own: np.ndarray | None) -> np.ndarray:
    """Finds the nearest gallery vectors of each query, without the query itself.

    Args:
        queries, gallery, k: As for `dr_keras.index.exact_search.nearest`.
        own: (Q,) the gallery row of each query; None if no query is in the gallery.

    Returns:
        (Q, K) gallery rows, the nearest first.
    """
    if own is None:
        return nearest(queries, gallery, k)[0]
    rows, _ = nearest(queries, gallery, k + 1)
    # The query comes first, or among the first if the gallery contains copies of it.
    order = np.argsort(rows == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)[:, :-1]


def moved_gallery(gallery: np.ndarray, row: int, moved: Moved | None) -> np.ndarray:
    """Returns the gallery of one query in a leave-one-out evaluation.

    Args:
        gallery: (N, D).
        row: The row of the query.
        moved: As for `evaluate`; None if no vector moves.

    Returns:
        (N, D), the gallery itself if no vector moves.
    """
    if moved is None:
        return gallery
    there = np.array(gallery)
    rows, vectors = moved(row)
    there[rows] = vectors
    return there


def _nearest_moved(queries: np.ndarray, gallery: np.ndarray, k: int, own: np.ndarray, moved: Moved) -> np.ndarray:
    """`nearest_others` for a gallery in which some vectors move with each query."""
    found = []
    for query, row in zip(queries, own.tolist(), strict=True):
        found.append(nearest_others(query[None], moved_gallery(gallery, row, moved), k, np.array([row]))[0])
    return np.stack(found)


def bootstrap_intervals(values: dict[str, np.ndarray], seed: int) -> dict[str, list[float]]:
    """Returns 95% percentile bootstrap intervals of means over the queries.

    Args:
        values: By name, (Q,) what each query contributes to the mean.
        seed: Seeds the `BOOTSTRAP_DRAWS` draws of Q queries.

    Returns:
        By name, the lower and the upper bound.
    """
    table = np.stack([np.asarray(value, np.float64) for value in values.values()], axis=1)  # (Q, figures)
    random = np.random.default_rng(seed)
    count = len(table)
    means = [table[random.integers(0, count, count)].mean(axis=0) for _ in range(BOOTSTRAP_DRAWS)]
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return {name: [float(low[place]), float(high[place])] for place, name in enumerate(values)}


def average_precision_at_r(right: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Returns the average precision at R of each query, (Q,), whose mean is MAP@R.

    Args:
        right: (Q, K) whether the image at each rank is of the query's class; K is at least R if the gallery allows it.
        relevant: (Q,) R.

    Example:
        >>> average_precision_at_r(np.array([[True, False, True]]), np.array([2]))
        array([0.5])
    """
    ranks = np.arange(1, right.shape[1] + 1)
    counted = right & (ranks <= relevant[:, None])
    precision = np.cumsum(counted, axis=1) / ranks
    return (precision * counted).sum(axis=1) / relevant


def triplet_distances(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    seed: int,
    own: np.ndarray | None = None,
    moved: Moved | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns D(q, p+) and D(q, p-) of ten seeded triplets per query, with positives and negatives from the gallery.

    Args:
        queries, query_labels, gallery, gallery_labels: As for `evaluate`. The gallery has an image of every query's
            class, other than the query itself.
        seed: Seeds the draws.
        own: (Q,) the gallery row of each query; None if no query is in the gallery.
        moved: As for `evaluate`.

    Returns:
        Two (Q, 10) float32 arrays; empty if the gallery has a single class.
    """
    order = np.argsort(gallery_labels, kind="stable")
    sorted_labels = gallery_labels[order]
    first = np.searchsorted(sorted_labels, query_labels, side="left")[:, None]
    last = np.searchsorted(sorted_labels, query_labels, side="right")[:, None]
    others = len(gallery) - (last - first)
    if others.min() == 0:
        return np.empty((0, TRIPLETS_PER_QUERY), np.float32), np.empty((0, TRIPLETS_PER_QUERY), np.float32)
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

    near, far = np.empty(shape, np.float32), np.empty(shape, np.float32)
    if moved:
        assert own is not None
        for query, row in enumerate(own.tolist()):
            there = moved_gallery(gallery, row, moved)
            near[query] = np.linalg.norm(there[positive[query]] - queries[query], axis=1)
            far[query] = np.linalg.norm(there[negative[query]] - queries[query], axis=1)
        return near, far
    for column in range(TRIPLETS_PER_QUERY):  # one column at a time, so that memory is Q x D
        for rows, out in ((positive, near), (negative, far)):
            difference = gallery[rows[:, column]].astype(np.float32) - queries.astype(np.float32)
            out[:, column] = np.sqrt(np.einsum("qd,qd->q", difference, difference))
    return near, far


def class_table(ranking: Ranking, classes: tuple[str, ...], class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Tabulates the precision@30 of each class that has queries, worst first.

    Args:
        ranking: From `evaluate`.
        classes: C folder names.
        class_names: C names for display.

    Returns:
        A dict per class, with `class`, `class_name` and `precision@30`.
    """
    known = np.flatnonzero(~np.isnan(ranking.class_precision))
    order = known[np.argsort(ranking.class_precision[known], kind="stable")]
    return [
        {
            "class": classes[label],
            "class_name": class_names[label],
            "precision@30": float(ranking.class_precision[label]),
        }
        for label in order
    ]


def confused_pairs(ranking: Ranking, class_names: tuple[str, ...], count: int = 10) -> list[dict[str, Any]]:
    """Tabulates the pairs of classes that are mistaken for each other most often.

    Args:
        ranking: From `evaluate`.
        class_names: C names for display.
        count: The number of pairs, at most.

    Returns:
        A dict per pair, with `query`, `neighbor`, and the `share` of `neighbor` among the 30 nearest images of the
        queries of `query`; the largest share first.
    """
    share = ranking.confusion.copy()
    np.fill_diagonal(share, 0)
    order = np.argsort(-share, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, share.shape), strict=True)
    return [
        {"query": class_names[a], "neighbor": class_names[b], "share": float(share[a, b])}
        for a, b in pairs
        if share[a, b] > 0
    ]
