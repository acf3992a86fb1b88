"""What bench_index.py compares the index with: FAISS, hnswlib, usearch and NumPy, each called as users would."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

K = 30
THREADS = os.cpu_count() or 1
LINKS, CONSTRUCTION = 32, 100  # for every graph

Search = Callable[[np.ndarray], np.ndarray]  # (Q, D) -> rows (Q, K)


def exact_contenders(vectors: np.ndarray, peers: list[str]) -> dict[str, Search]:
    import faiss

    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    found: dict[str, Search] = {"FAISS": lambda q: flat.search(q, K)[1], "NumPy": lambda q: by_numpy(q, vectors)}
    if "usearch" in peers:
        from usearch.index import MetricKind
        from usearch.index import search as usearch_search

        found["usearch"] = lambda q: np.asarray(
            usearch_search(vectors, q, K, MetricKind.L2sq, exact=True, threads=THREADS).keys
        ).reshape(len(q), K)
    return found


def by_numpy(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Straightforward brute force: a matrix product over as many queries at a time as fit in a gigabyte."""
    out = np.empty((len(queries), K), np.int64)
    block = max(1, 2**28 // len(vectors))
    for start in range(0, len(queries), block):
        similarity = queries[start : start + block] @ vectors.T
        near = np.argpartition(-similarity, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(similarity, near, axis=1), axis=1)
        out[start : start + block] = np.take_along_axis(near, order, axis=1)
    return out


def faiss_graph(vectors: np.ndarray) -> Callable[[int], Search]:
    import faiss

    index: Any = faiss.IndexHNSWFlat(vectors.shape[1], LINKS)
    index.hnsw.efConstruction = CONSTRUCTION
    index.add(np.asarray(vectors))

    def at(breadth: int) -> Search:
        index.hnsw.efSearch = breadth
        return lambda q: index.search(q, K)[1]

    return at


def faiss_lists(vectors: np.ndarray) -> Callable[[int], Search]:
    import faiss

    count, dim = vectors.shape
    lists = 2 ** round(np.log2(4 * count**0.5))
    index: Any = faiss.index_factory(dim, f"IVF{lists},PQ{dim // 2}x4fs,RFlat")
    index.train(np.asarray(vectors[: 64 * lists]))
    index.add(np.asarray(vectors))
    index.k_factor = 5  # ours reranks as many exactly
    inner: Any = faiss.downcast_index(index.base_index)

    def at(breadth: int) -> Search:
        inner.nprobe = breadth
        return lambda q: index.search(q, K)[1]

    return at


def hnswlib_graph(vectors: np.ndarray) -> Callable[[int], Search]:
    import hnswlib

    index = hnswlib.Index("l2", vectors.shape[1])
    index.init_index(len(vectors), M=LINKS, ef_construction=CONSTRUCTION)
    index.add_items(np.asarray(vectors), num_threads=THREADS)

    def at(breadth: int) -> Search:
        index.set_ef(max(breadth, K))
        return lambda q: index.knn_query(q, K, num_threads=THREADS)[0]

    return at


def usearch_graph(vectors: np.ndarray) -> Callable[[int], Search]:
    from usearch.index import Index as Usearch

    index = Usearch(ndim=vectors.shape[1], metric="l2sq", dtype="f32", connectivity=LINKS, expansion_add=CONSTRUCTION)
    index.add(np.arange(len(vectors)), np.asarray(vectors), threads=THREADS)

    def at(breadth: int) -> Search:
        index.expansion_search = breadth
        return lambda q: np.asarray(index.search(q, K, threads=THREADS).keys)

    return at


PEERS = {"faiss": faiss_graph, "faiss-ivfpq": faiss_lists, "hnswlib": hnswlib_graph, "usearch": usearch_graph}
