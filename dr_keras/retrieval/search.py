"""Exact nearest neighbours in Euclidean distance: NumPy for a few queries, FAISS for many."""

import numpy as np

FEW_QUERIES = 8  # up to here NumPy reads the gallery once a query faster than FAISS is imported
GALLERY_VALUES = 1 << 28  # values of a gallery that is not float32 to convert at a time: 1 GiB


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest gallery rows of each query; every gallery vector is looked at.

    Args:
        queries: (Q, D), any numeric type.
        gallery: (N, D), any numeric type; may be memory-mapped. What is not float32 is converted a part at a time.
        k: at least 1; more than N means N.

    Returns:
        rows (Q, K) int64, nearest first, and squared distances (Q, K) float32. The distances come from a matrix
        product and carry its rounding; `distances` computes them exactly.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    k = min(k, len(gallery))
    if gallery.dtype == np.float32:
        return _search(queries, np.ascontiguousarray(gallery), k)
    part = max(1, GALLERY_VALUES // gallery.shape[1])
    best_rows = np.empty((len(queries), 0), np.int64)
    best = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(gallery), part):
        vectors = np.ascontiguousarray(gallery[start : start + part], np.float32)
        rows, squared = _search(queries, vectors, min(k, len(vectors)))
        best_rows = np.concatenate([best_rows, rows + start], axis=1)
        best = np.concatenate([best, squared], axis=1)
        if start:
            order = np.argsort(best, axis=1, kind="stable")[:, :k]
            best_rows = np.take_along_axis(best_rows, order, axis=1)
            best = np.take_along_axis(best, order, axis=1)
    return best_rows, best


def distances(queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Euclidean distances from the differences themselves, so that equal vectors are at exactly 0.

    Args:
        queries: (Q, D).
        gallery: (N, D).
        rows: (Q, K) gallery rows.

    Returns:
        (Q, K) float32.
    """
    result = np.empty(rows.shape, np.float32)
    for query, places, out in zip(queries, rows, result, strict=True):
        difference = gallery[places].astype(np.float32) - query.astype(np.float32)  # (K, D)
        out[:] = np.sqrt(np.einsum("kd,kd->k", difference, difference))
    return result


def _search(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if len(queries) > FEW_QUERIES:
        import faiss

        squared, rows = faiss.knn(queries, vectors, k)
        return rows, squared
    return numpy_search(queries, vectors, k)


def numpy_search(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` for float32 arrays and k <= N, a query at a time."""
    lengths = np.einsum("nd,nd->n", vectors, vectors)  # (N,)
    rows = np.empty((len(queries), k), np.int64)
    squared = np.empty((len(queries), k), np.float32)
    for query, out_rows, out in zip(queries, rows, squared, strict=True):
        values = lengths - 2 * (vectors @ query) + query @ query  # (N,)
        near = np.argpartition(values, k - 1)[:k] if k < len(values) else np.arange(len(values))
        out_rows[:] = near[np.lexsort((near, values[near]))]
        out[:] = np.maximum(values[out_rows], 0)
    return rows, squared
