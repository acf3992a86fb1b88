"""Searches an index in Milvus: exactly, or by an approximate engine whose proposals are ranked by exact distances.

An approximate engine of Milvus finds too few neighbors, or none, if a condition holds for few images. So the images
that meet a condition are counted first. If they are few, their vectors are fetched and compared here. If they are many,
the engine searches more widely the fewer there are; should it still find fewer than there are, it is not believed.
"""

import difflib
from collections.abc import Collection as Several

import numpy as np

from dr_keras.data.exif import FIELDS, distance_km
from dr_keras.errors import InputError, Unavailable
from dr_keras.index.exact_search import nearest
from dr_keras.index.filters import Condition, Near, parse_where
from dr_keras.index.milvus.collection import MOST, Collection
from dr_keras.index.milvus.conditions import to_expression
from dr_keras.index.milvus.engine import WIDEST, MilvusEngine
from dr_keras.index.milvus.lookups import box, has_attribute
from dr_keras.index.milvus.server import SECONDS
from dr_keras.index.searcher import SIMILAR, SPARE_NEIGHBORS

FETCHED_ROWS = 10_000  # that meet a condition: fewer are compared here, which takes some 50 ms
ANSWER_BYTES = 1 << 25  # of the vectors in one answer
ASKED_QUERIES = 256  # at a time
SEARCHED = "searched == true"  # the expression for images that a search may return


class MilvusSearch:
    """Searches the images of a collection.

    Args:
        collection: The index's collection.
        engine: The index's engine.
    """

    def __init__(self, collection: Collection, engine: MilvusEngine) -> None:
        self._collection = collection
        self._engine = engine
        self.withheld: frozenset[str] = frozenset()  # attributes that no condition may name, see `Index.withhold`

    def search(
        self, queries: np.ndarray, k: int, where: str | None, exclude: np.ndarray, condition_seconds: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `k` nearest images of each query; see `dr_keras.index.searcher.Searcher.search`."""
        seconds = condition_seconds or SECONDS
        inside = SEARCHED if self._collection.held_out() else ""
        matching = None
        if where is not None:
            inside = f"{SEARCHED} and {self._expression(parse_where(where))}"
            matching = self._matching(inside, seconds)
        limit = k + exclude.shape[1] + SPARE_NEIGHBORS
        if matching is not None:
            limit = min(limit, max(matching, 1))
        if limit > MOST and self._more_than(MOST, matching):
            raise InputError(f"Milvus finds at most {MOST:,} neighbors; {k:,} were asked for")
        limit = min(limit, MOST)
        if matching == 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        rows, distances = self._found(queries, limit, inside, matching)
        out = (rows[:, :, None] == exclude[:, None, :]).any(axis=2) & (rows >= 0)
        distances[out], rows[out] = np.inf, -1
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        rows, distances = np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
        keep = int((rows >= 0).sum(axis=1).max(initial=0))
        return rows[:, :keep], distances[:, :keep]

    def _more_than(self, most: int, matching: int | None) -> bool:
        return (self._collection.count(SEARCHED) if matching is None else matching) > most

    def _matching(self, condition: str, seconds: float) -> int:
        """How many images meet a condition."""
        try:
            return self._collection.count(condition, timeout=seconds)
        except Unavailable as error:
            if "deadline" not in str(error).lower():
                raise
            raise InputError(
                f"the condition takes more than {seconds:g} seconds; compare with = or IN, which is faster"
            ) from None

    def _expression(self, condition: Condition) -> str:
        if self.withheld and condition.of_file:  # the time of a file is often that of the photo
            raise InputError("the sizes and times of files are not available here")
        for name in condition.attributes:
            if name.partition(".")[0].lower() in self.withheld:
                raise InputError(f"the attribute {name!r} is not available here")
        for name in condition.attributes:
            self._check_attribute(name)
        return to_expression(condition, self._collection.classes(), self._near)

    def _check_attribute(self, name: str) -> None:
        """Raises InputError if no image has an attribute, but one that is spelled like it."""
        if name in FIELDS or self._collection.query(has_attribute(name), ["row"], limit=1):
            return
        known = set(self._collection.attributes()) | set(FIELDS)
        if similar := difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR):
            raise InputError(f"no image has the attribute {name!r}; did you mean {similar[0]!r}?")

    def _near(self, near: Near) -> Several[int]:
        """The rows of the images that were taken near a place."""
        rows: list[int] = []
        for part in self._collection.scan(["conditions"], box(near)):
            for one in part:
                place = one["conditions"]["n:latitude"], one["conditions"]["n:longitude"]
                if distance_km(*place, near.latitude, near.longitude) <= near.km:
                    rows.append(int(one["row"]))
            if len(rows) > MOST:
                raise InputError(f"more than {MOST:,} images are near; an index in Milvus needs a smaller distance")
        return rows

    def _found(
        self, queries: np.ndarray, limit: int, condition: str, matching: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest images (Q, C), nearest first, padded with -1, and their distances."""
        exact = self._engine.exact
        if not exact and matching is not None and matching <= FETCHED_ROWS:
            return self._compared(queries, limit, condition)
        share = 1.0 if matching is None else max(matching / max(1, self._collection.count()), 1e-9)
        rows, distances = self._proposed(queries, limit, condition, share, self._engine.parameters(limit, share))
        if exact:
            return rows, distances
        if (rows >= 0).all():
            return rows, distances
        there = self._collection.count(condition or SEARCHED) if matching is None else matching
        few = (rows >= 0).sum(axis=1) < min(limit, there)
        if few.any():
            wide = self._engine.parameters(WIDEST, share)
            rows[few], distances[few] = self._proposed(queries[few], limit, condition, share, wide)
            few = (rows >= 0).sum(axis=1) < min(limit, there)
        if few.any():
            found = self._compared(queries[few], limit, condition)
            rows[few], distances[few] = (
                np.pad(array, ((0, 0), (0, limit - array.shape[1])), constant_values=value)
                for array, value in zip(found, (-1, np.inf), strict=True)
            )
        return rows, distances

    def _proposed(
        self, queries: np.ndarray, limit: int, condition: str, share: float, parameters: dict[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the engine finds, ranked by distance and then by the order of adding."""
        rows = np.full((len(queries), limit), -1)
        distances = np.full((len(queries), limit), np.inf, np.float32)
        more = self._engine.proposed(limit, share)
        size = max(1, min(ASKED_QUERIES, ANSWER_BYTES // (4 * self._collection.meta["dim"] * more)))
        for start in range(0, len(queries), size):
            some = queries[start : start + size]
            for number, hits in enumerate(self._collection.search(some, more, condition, parameters), start):
                if hits:
                    own = [hit["entity"] for hit in hits]
                    vectors = np.array([one["vector"] for one in own], np.float32)
                    found, measured = _ranked(queries[number], vectors, *_numbers(own))
                    count = min(limit, len(own))
                    rows[number, :count], distances[number, :count] = found[:count], measured[:count]
        return rows, distances

    def _compared(self, queries: np.ndarray, limit: int, condition: str) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of all images that meet a condition, compared here."""
        best: list[tuple[np.ndarray, ...]] = [
            (np.empty((0, queries.shape[1]), np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
        ] * len(queries)
        for part in self._collection.scan(["vector", "added"], condition):
            vectors = np.array([one["vector"] for one in part], np.float32)
            numbers = _numbers(part)
            places, _ = nearest(queries, vectors, limit, unit=True)
            for query, chosen in enumerate(places):
                new = [array[chosen] for array in (vectors, *numbers)]
                joined = [np.concatenate(pair) for pair in zip(best[query], new, strict=True)]
                if len(joined[0]) > 2 * limit:
                    kept = np.argsort(_distances(queries[query], joined[0]), kind="stable")[:limit]
                    joined = [array[kept] for array in joined]
                best[query] = tuple(joined)
        rows = np.full((len(queries), limit), -1)
        distances = np.full((len(queries), limit), np.inf, np.float32)
        for query, (vectors, known, added) in enumerate(best):
            found, measured = _ranked(queries[query], vectors, known, added)
            count = min(limit, len(found))
            rows[query, :count], distances[query, :count] = found[:count], measured[:count]
        return rows, distances


def _numbers(rows: list[dict[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The row of each image, and its number in the order of adding."""
    return tuple(np.fromiter((int(one[name]) for one in rows), np.int64, len(rows)) for name in ("row", "added"))  # type: ignore[return-value]


def _distances(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Euclidean distances (n,) computed from differences, as in `dr_keras.index.exact_search.distances`."""
    difference = vectors - query
    return np.sqrt(np.einsum("nd,nd->n", difference, difference))


def _ranked(
    query: np.ndarray, vectors: np.ndarray, rows: np.ndarray, added: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and distances (n,), nearest first and ties in the order of adding."""
    found = _distances(query, vectors)
    order = np.lexsort((rows, added, found))
    return rows[order], found[order]
