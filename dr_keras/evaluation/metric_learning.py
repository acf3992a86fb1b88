"""The figures of metric learning: recall@K for many K, R-precision, MAP@R, and NMI of a clustering.

They are for classes that were not trained on: each image is a query against all others, or against a gallery if the
data set has one, as In-Shop Clothes Retrieval does (Oh Song et al. 2016; Musgrave et al. 2020).
"""

import numpy as np

from dr_keras.evaluation.metrics import BLOCK_NEIGHBORS, BLOCK_QUERIES, average_precision_at_r, nearest_others

RECALLS = (1, 2, 4, 8, 10, 20, 30, 100, 1000)
CLUSTERING_STEPS = 20  # of k-means


def metric_learning_figures(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None,
    gallery_labels: np.ndarray | None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Ranks the gallery, or the other queries, for each query.

    Queries without an image of their class to find are left out of the means, but stay in the gallery of the others.

    Args:
        queries: (Q, D) of unit length.
        query_labels: (Q,) class numbers.
        gallery: (N, D) of unit length; None if each query is ranked against the other queries.
        gallery_labels: (N,) class numbers, or None.
        seed: Seeds the clustering.

    Returns:
        `recall@K` for each K of `RECALLS` that is below the number of images to rank; `r_precision`, the share of the
        query's class among the first R images, R being how many of the class there are; `map@r`; and `nmi`, the
        normalized mutual information of the classes and a k-means clustering of all images to rank, with as many
        clusters as classes.

    Example:
        >>> vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
        >>> metric_learning_figures(vectors, np.array([5, 5, 8, 8]), None, None)["recall@1"]
        1.0
    """
    among_themselves = gallery is None or gallery_labels is None
    ranked = queries if gallery is None or gallery_labels is None else gallery
    labels = query_labels if gallery is None or gallery_labels is None else gallery_labels
    counts = np.bincount(labels, minlength=int(max(labels.max(), query_labels.max())) + 1)
    relevant = counts[query_labels] - among_themselves
    answerable = np.flatnonzero(relevant > 0)
    ks = [k for k in RECALLS if k < len(ranked)]
    depth = min(max(*ks, int(relevant.max())), len(ranked) - among_themselves)
    found = {k: np.empty(len(answerable), bool) for k in ks}
    precision, average = np.empty(len(answerable)), np.empty(len(answerable))
    step = max(1, min(BLOCK_QUERIES, BLOCK_NEIGHBORS // depth))
    for start in range(0, len(answerable), step):
        block = slice(start, start + step)
        rows = answerable[block]
        nearest = nearest_others(queries[rows], ranked, depth, rows if among_themselves else None)
        right = labels[nearest] == query_labels[rows, None]
        for k in ks:
            found[k][block] = right[:, :k].any(axis=1)
        within = np.arange(depth) < relevant[rows, None]
        precision[block] = (right & within).sum(axis=1) / relevant[rows]
        average[block] = average_precision_at_r(right, relevant[rows])
    figures = {f"recall@{k}": float(values.mean()) for k, values in found.items()}
    figures |= {"r_precision": float(precision.mean()), "map@r": float(average.mean())}
    return figures | {"nmi": normalized_mutual_information(labels, _clusters(ranked, labels, seed))}


def normalized_mutual_information(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Returns the mutual information of two partitions of N images, divided by the mean of their entropies.

    Args:
        labels: (N,) integers.
        clusters: (N,) integers.

    Example:
        >>> normalized_mutual_information(np.array([0, 0, 1, 1]), np.array([7, 7, 3, 3]))
        1.0
    """
    _, rows = np.unique(labels, return_inverse=True)
    _, columns = np.unique(clusters, return_inverse=True)
    pairs, together = np.unique(rows.astype(np.int64) * (columns.max() + 1) + columns, return_counts=True)
    joint = together / len(labels)
    one, other = (np.bincount(part) / len(labels) for part in (rows, columns))
    expected = one[pairs // (columns.max() + 1)] * other[pairs % (columns.max() + 1)]
    information = float((joint * np.log(joint / expected)).sum())
    entropies = [float(-(share * np.log(share)).sum()) for share in (one, other)]
    return information / (sum(entropies) / 2) if sum(entropies) else 1.0


def _clusters(vectors: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Clusters vectors (N, D) by k-means into as many clusters as there are labels; (N,) the cluster of each."""
    import faiss

    count = len(np.unique(labels))
    clustering = faiss.Kmeans(vectors.shape[1], count, niter=CLUSTERING_STEPS, seed=seed + 1, min_points_per_centroid=1)
    vectors = np.ascontiguousarray(vectors, np.float32)
    clustering.train(vectors)
    return clustering.index.search(vectors, 1)[1][:, 0]
