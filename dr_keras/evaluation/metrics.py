"""Retrieval metrics of a ranked gallery: precision@k, recall@k, MAP@R, those of triplets, and confused classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras.errors import InputError
from dr_keras.evaluation.triplet_metrics import Moved, RankedTriplets, moved_gallery, ranked_triplets
from dr_keras.index.exact_search import nearest

KS = (1, 10, 30)
SCORE = f"score_at_top_{max(KS)}"
BOOTSTRAP_DRAWS = 1000
BLOCK_QUERIES = 1024  # ranked at a time; fewer if classes are large,
BLOCK_NEIGHBORS = 1 << 22  # so that a block has at most this many neighbors, about 0.2 GB


@dataclass(frozen=True)
class Ranking:
    """The result of `evaluate`.

    Attributes:
        figures: `precision@k`, `recall@k`, `map@r`, `similarity_precision` and `score_at_top_30` (both None if the
            gallery has a single class); the counts behind them; and `intervals`, a 95% bootstrap interval over the
            queries for each.
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
        nearest: (Q, 30) gallery rows, the nearest first.
        confusion: (C, C), as in `Ranking`, but summed over the queries.
    """

    hits: dict[int, np.ndarray]
    average_precision: np.ndarray
    nearest: np.ndarray
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
    - score_at_top_30: over those of these triplets whose p+ or p- is among the 30 nearest images of the query, the
      number that are ordered correctly minus the number of others (section 6.3); `triplets_at_top_30` counts them.

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
    triplets = ranked_triplets(queries, query_labels, gallery, gallery_labels, seed=seed, own=own, moved=moved)
    figures = _figures(found, triplets, seed)
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
    nearest_rows = np.empty((len(queries), min(max(KS), len(gallery) - (own is not None))), np.int64)
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
        nearest_rows[block] = rows[:, : max(KS)]
        top = found[:, : max(KS)]
        np.add.at(confusion, (np.broadcast_to(query_labels[block, None], top.shape), top), 1 / top.shape[1])
    return _PerQuery(hits, average, nearest_rows, confusion)


def _figures(found: _PerQuery, triplets: RankedTriplets, seed: int) -> dict[str, Any]:
    """The means over the queries, the score of the triplets, and their intervals."""
    values = {f"precision@{k}": found.hits[k] for k in KS} | {f"recall@{k}": found.hits[k] > 0 for k in KS}
    values["map@r"] = found.average_precision
    figures: dict[str, Any] = {name: float(value.mean()) for name, value in values.items()}
    figures |= {"similarity_precision": None, SCORE: None}
    if not len(triplets):
        return figures | {"intervals": bootstrap_intervals(values, seed)}
    at_top = triplets.at_top(found.nearest)
    score = np.where(at_top, np.where(triplets.correct, 1, -1), 0).sum(axis=1)  # (Q,)
    values |= {"similarity_precision": triplets.correct.mean(axis=1), SCORE: score}
    figures |= {"similarity_precision": float(triplets.correct.mean()), SCORE: int(score.sum())}
    intervals = bootstrap_intervals(values, seed)
    intervals[SCORE] = [bound * len(score) for bound in intervals[SCORE]]  # of the sum
    return figures | {"triplets_at_top_30": int(at_top.sum()), "intervals": intervals}


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
