"""The search engine of an index in Milvus: which kind of index the server keeps of the vectors."""

import threading
from typing import Any

import numpy as np

from dr_keras.index.approximate_search import (
    MAX_FLAT_ROWS,
    MIN_ENGINE_IMAGES,
    TARGET_RECALL,
    TUNING_K,
    TUNING_QUERIES,
    choose_engine,
)
from dr_keras.index.engine import IndexEngine
from dr_keras.index.exact_search import nearest
from dr_keras.index.milvus.collection import MOST, Collection
from dr_keras.index.milvus.schema import LOAD_SECONDS, collection_of, index_vectors

GRAPH = {"M": 32, "efConstruction": 200}
BREADTHS = {"hnsw": (64, 96, 128, 192, 256, 384, 512, 768, 1024), "ivfpq": (8, 16, 32, 64, 128, 256, 512, 1024)}
WIDEST = 32768  # the greatest breadth of a graph's search
LISTS_PER_ROOT_ROW, MAX_LISTS = 4, 65536
SEGMENT_BYTES = 1 << 30  # of the vectors of a segment, at most, by Milvus's default
CODED, LEAST_CODED = 5, 150  # proposals for each neighbor that is wanted, and at least
TUNED_TOGETHER = 64  # queries
BITS = 8  # of the code of a part of a vector
CODE_VALUES = 4  # values of a vector in such a part, at most


class MilvusEngine(IndexEngine):
    """The engine of an index in Milvus.

    Args:
        collection: The index's collection.
        guard: The index's lock.
    """

    def __init__(self, collection: Collection, guard: "threading.RLock") -> None:
        self._collection = collection
        self._guard = guard

    @property
    def name(self) -> str:
        """'flat', 'hnsw' or 'ivfpq'."""
        return self._collection.meta.get("engine_name", "flat")

    @property
    def exact(self) -> bool:
        """Whether every vector is compared."""
        return self.name == "flat"

    def parameters(self, limit: int, share: float) -> dict[str, int]:
        """How widely to search.

        Args:
            limit: How many neighbors are wanted.
            share: The share of the images that a search may return.
        """
        if self.exact:
            return {}
        breadth = self._collection.meta["engine_breadth"]
        if self.name == "hnsw":
            return {"ef": min(WIDEST, int(max(breadth, 2 * limit) / share))}
        # Under a condition that half of the images met, twice as many lists still lost a twentieth of the neighbors.
        return {"nprobe": min(self._collection.meta["engine_lists"], int(max(breadth, limit / 8) / share**2) + 1)}

    def build(self, engine: str = "auto") -> str:
        with self._guard:
            count = self._collection.count()
            name = choose_engine(engine, count)
            kind, parameters = self._kind(name, count)
            server = self._collection.server
            whole = collection_of(server, self._collection.name)
            assert whole is not None
            if name != "flat":
                server.call("flush", whole, timeout=LOAD_SECONDS)  # what is not flushed is compared by brute force
            server.call("release_collection", whole, timeout=LOAD_SECONDS)
            server.call("drop_index", whole, "vector", timeout=LOAD_SECONDS)
            index_vectors(server, whole, kind, parameters)
            about: dict[str, Any] = {"engine": engine, "engine_name": name, "engine_rows": count, "engine_recall": 1.0}
            if name != "flat":
                about |= {"engine_breadth": BREADTHS[name][0], "engine_lists": parameters.get("nlist", 0)}
            self._collection.change(**about)
            if name != "flat":
                self._tune(name)
            return name

    def _kind(self, name: str, count: int) -> tuple[str, dict[str, int]]:
        """What Milvus calls an engine, and its settings."""
        if name == "flat":
            return "FLAT", {}
        if name == "hnsw":
            return "HNSW", dict(GRAPH)
        dim = self._collection.meta["dim"]
        segment = min(count, SEGMENT_BYTES // (4 * dim))  # each segment has lists of its own
        lists = int(min(MAX_LISTS, max(16, LISTS_PER_ROOT_ROW * segment**0.5)))
        codes = next(codes for codes in range(max(1, dim // CODE_VALUES), 0, -1) if dim % codes == 0)
        return "IVF_PQ", {"nlist": lists, "m": codes, "nbits": BITS}

    def _tune(self, name: str) -> None:
        """Finds the smallest breadth that reaches the target recall on a sample of the images."""
        queries = self._sample()
        k = min(TUNING_K + 1, self._collection.count())
        true = self._nearest(queries, k)
        recall = 0.0
        for breadth in BREADTHS[name]:
            self._collection.meta["engine_breadth"] = breadth
            parameters = self.parameters(k, 1.0)
            found = [[int(hit["entity"]["row"]) for hit in hits] for hits in self._proposals(queries, k, parameters)]
            same = [len(np.intersect1d(*pair)) for pair in zip(true, found, strict=True)]
            recall = float(np.mean([max(0, count - 1) for count in same])) / max(1, k - 1)  # a query finds itself
            if recall >= TARGET_RECALL:
                break
        self._collection.change(engine_breadth=self._collection.meta["engine_breadth"], engine_recall=recall)

    def _proposals(self, queries: np.ndarray, k: int, parameters: dict[str, int]) -> list[list[dict[str, Any]]]:
        """The k nearest of what is proposed for each query, as a search ranks it."""
        found = []
        for start in range(0, len(queries), TUNED_TOGETHER):
            some = queries[start : start + TUNED_TOGETHER]
            more = self.proposed(k, 1.0)
            hits = self._collection.search(some, more, "", parameters, timeout=LOAD_SECONDS)
            for query, own in zip(some, hits, strict=True):
                vectors = np.array([hit["entity"]["vector"] for hit in own], np.float32)
                order = np.argsort(((vectors - query) ** 2).sum(axis=1), kind="stable")[:k]
                found.append([own[place] for place in order.tolist()])
        return found

    def proposed(self, limit: int, share: float) -> int:
        """How many images to have proposed for `limit` neighbors; codes of vectors put many out of order.

        Args:
            limit: How many neighbors are wanted.
            share: The share of the images that a search may return.
        """
        return limit if self.name != "ivfpq" else min(MOST, int(max(CODED * limit, LEAST_CODED) / share))

    def _sample(self) -> np.ndarray:
        """The vectors of a few images. Rows are hashes, so the first ones are a random sample."""
        for part in self._collection.scan(["vector"]):
            chosen = sorted(part, key=lambda one: one["row"])[:TUNING_QUERIES]
            return np.array([one["vector"] for one in chosen], np.float32)
        return np.empty((0, self._collection.meta["dim"]), np.float32)

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        """The rows (Q, k) of the nearest images, by comparing all."""
        best = np.full((len(queries), 0), -1)
        squares = np.full((len(queries), 0), np.inf, np.float32)
        for part in self._collection.scan(["vector"]):
            rows = np.array([one["row"] for one in part], np.int64)
            places, squared = nearest(queries, np.array([one["vector"] for one in part], np.float32), k, unit=True)
            best, squares = np.concatenate([best, rows[places]], axis=1), np.concatenate([squares, squared], axis=1)
            order = np.argsort(squares, axis=1, kind="stable")[:, :k]
            best, squares = (np.take_along_axis(array, order, axis=1) for array in (best, squares))
        return best

    def update(self, engine: str | None = None) -> None:
        with self._guard:
            chosen = engine or self._collection.meta["engine"]
            count = self._collection.count()
            if engine is None and chosen == "auto" and count <= MAX_FLAT_ROWS:
                return
            if engine is None and count < MIN_ENGINE_IMAGES:
                return
            if chosen != self._collection.meta["engine"] or choose_engine(chosen, count) != self.name:
                self.build(chosen)

    def repair(self) -> None:
        """Does nothing: the server keeps what it needs."""

    def stats(self) -> dict[str, Any]:
        with self._guard:
            meta = self._collection.meta
            return {
                "name": self.name,
                "chosen": meta["engine"],
                "exact": self.exact,
                "rows": meta["engine_rows"] if not self.exact else self._collection.count(),
                "recall": meta.get("engine_recall", 1.0),
            }
