"""Searches an index: chooses the rows that a search may return, applies conditions, and runs the engine."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain

import numpy as np

from dr_keras.data.exif import FIELDS
from dr_keras.errors import InputError, RunError
from dr_keras.index import approximate_search
from dr_keras.index.approximate_search import ApproximateSearch, EngineInfo, load_copies
from dr_keras.index.bounded_search import FEW_SEARCHES, BoundedSearch, is_available
from dr_keras.index.database import one_line_errors
from dr_keras.index.exact_search import FEW_QUERIES, nearest, ranked
from dr_keras.index.part_search import nearest_parts
from dr_keras.index.store import Store

CLOCK_STEPS = 10_000  # steps of SQLite's virtual machine between checks of the clock: about a millisecond
SIMILAR = 0.75  # of difflib's measure, from 0 to 1; above it, a name is taken for another, misspelled
# Extra neighbors that are ranked by their exact distances. A matrix product rounds, so neighbors at almost the same
# distance may come in any order.
SPARE_NEIGHBORS = 32


class Searcher:
    """Searches the current snapshot of a store; callers keep other threads from refreshing it meanwhile.

    Args:
        store: The index's files.

    Attributes:
        engine: The approximate engine in use, or the copies of an exact one; None if every vector is compared.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.engine: EngineInfo | None = None
        self._loaded: ApproximateSearch | None = None
        self._copies: BoundedSearch | None = None
        self._searches = 0
        self.withheld: frozenset[str] = frozenset()  # attributes that no condition may name, see `Index.withhold`
        self._attributes: tuple[int, set[str]] = (-1, set())  # a version of the index, and attributes that it has
        # (N,) the rows that a search may return. None means all rows, which is the usual case and saves memory.
        self._searchable: np.ndarray | None = None
        self.refresh()

    def refresh(self) -> None:
        """Reads what searches need from the store's current state.

        Raises:
            RunError: It cannot be read.
        """
        with one_line_errors(self._store.folder):
            rows = self._store.db.execute("SELECT row FROM hidden ORDER BY row")
            hidden = np.fromiter(chain.from_iterable(rows), np.int64)
        searchable = None
        if len(hidden):
            allowed = np.ones(self._store.rows, bool)
            allowed[hidden] = False
            searchable = np.flatnonzero(allowed)
        self._searchable = searchable
        engine = EngineInfo.from_meta(self._store.meta)
        if engine != self.engine:
            self.engine, self._loaded, self._copies = engine, None, None

    def __len__(self) -> int:
        searchable = self._searchable  # another thread may refresh in between
        return self._store.rows if searchable is None else len(searchable)

    def rows(self) -> np.ndarray:
        """The rows that a search may return: (N,) int64, ascending."""
        searchable = self._searchable
        return np.arange(self._store.rows) if searchable is None else searchable

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A transaction of the store; afterwards searches see its result. Raises the errors of `Store.transaction`."""
        try:
            with self._store.transaction():
                yield
        finally:
            with suppress(RunError):  # the error was raised above, or will be at the next use of the index
                self.refresh()

    def search(
        self, queries: np.ndarray, k: int, where: str | None, exclude: np.ndarray, condition_seconds: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `k` nearest images of each query; see `dr_keras.index.index.Index.search`.

        Args:
            queries: (Q, D) float32.
            k: At least 1.
            where: A condition on the images to search, or None.
            exclude: (Q, X) rows to exclude for each query; -1 for none.
            condition_seconds: How long evaluating the condition may take; None for no limit.

        Returns:
            rows (Q, K) int64 and Euclidean distances (Q, K) float32, nearest first.
        """
        searchable = self._searchable if where is None else self._rows_where(where, condition_seconds)
        rows = self._candidates(queries, k + exclude.shape[1], searchable)
        rows[(rows[:, :, None] == exclude[:, None, :]).any(axis=2)] = -1  # (Q, C, X): few
        rows, found = ranked(queries, self._store.vectors, rows, k)
        keep = int((rows >= 0).sum(axis=1).max(initial=0))
        return rows[:, :keep], found[:, :keep]

    def search_parts(
        self, queries: np.ndarray, k: int, where: str | None, exclude: np.ndarray, condition_seconds: float | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the `k` images whose nearest part is nearest; see `dr_keras.index.index.Index.search_parts`."""
        searchable = self._searchable if where is None else self._rows_where(where, condition_seconds)
        assert self._store.parts is not None
        return nearest_parts(queries, self._store.vectors, self._store.parts, k, rows=searchable, exclude=exclude)

    def _rows_where(self, where: str, seconds: float | None) -> np.ndarray:
        from dr_keras.index.filters import parse_where
        from dr_keras.index.sql_conditions import to_sql

        condition = parse_where(where)
        if self.withheld and condition.of_file:  # the time of a file is often that of the photo
            raise InputError("the sizes and times of files are not available here")
        for name in condition.attributes:
            if name.partition(".")[0].lower() in self.withheld:
                raise InputError(f"the attribute {name!r} is not available here")
        with one_line_errors(self._store.folder), self._limited_to(seconds):
            sql, values = to_sql(condition)
            rows = self._store.db.execute(
                f"SELECT row FROM images WHERE {sql} AND row NOT IN hidden ORDER BY row", values
            )
            found = np.fromiter((row for (row,) in rows), np.int64)
            for name in condition.attributes:
                self._check_attribute(name)
        return found

    def _check_attribute(self, name: str) -> None:
        """Raises InputError if no image has an attribute, but one that is spelled like it."""
        version = self._store.meta["version"]
        if self._attributes[0] != version:
            self._attributes = version, set()
        path = "$" + "".join(f'."{key}"' for key in name.split("."))
        has = "SELECT 1 FROM images WHERE json_type(attributes, ?) IS NOT NULL LIMIT 1"
        if name in self._attributes[1] or name in FIELDS or self._store.db.execute(has, (path,)).fetchone():
            self._attributes[1].add(name)
            return
        paths = (
            "SELECT DISTINCT tree.fullkey FROM images, json_tree(images.attributes) AS tree WHERE tree.atom NOT NULL"
        )
        import difflib

        known = {path.removeprefix("$.").replace('"', "") for (path,) in self._store.db.execute(paths)}
        if similar := difflib.get_close_matches(name, known | set(FIELDS), n=1, cutoff=SIMILAR):
            raise InputError(f"no image has the attribute {name!r}; did you mean {similar[0]!r}?")

    @contextmanager
    def _limited_to(self, seconds: float | None) -> Iterator[None]:
        """Interrupts a statement that takes longer than `seconds`."""
        if seconds is None:
            yield
            return
        end = time.monotonic() + seconds
        db = self._store.db
        db.set_progress_handler(lambda: time.monotonic() > end, CLOCK_STEPS)
        try:
            yield
        except sqlite3.OperationalError:
            if time.monotonic() <= end:
                raise
            raise InputError(
                f"the condition takes more than {seconds:g} seconds for {len(self):,} images; "
                "compare with = or IN, which need not look into each name"
            ) from None
        finally:
            db.set_progress_handler(None, 0)

    def _candidates(self, queries: np.ndarray, k: int, searchable: np.ndarray | None) -> np.ndarray:
        """Rows (Q, C) that include all or nearly all of the k nearest, padded with -1."""
        copies = self._load_copies(len(queries)) if np.isfinite(queries).all() else None
        engine = None if copies else self._load_engine()
        if copies is None and engine is None:
            return self._exact(queries, k, searchable)
        assert self.engine
        built = self.engine.rows
        head, tail = searchable, np.arange(built, self._store.rows)  # the tail came after the engine was built
        if searchable is not None:
            inside = int(np.searchsorted(searchable, built))
            tail = searchable[inside:]
            head = searchable[:inside] if len(tail) else searchable
            if not approximate_search.is_worthwhile(inside, built):
                return self._exact(queries, k, searchable)
        if copies:
            rows = copies.search(queries, k, self._store.vectors, head)
        else:
            assert engine
            rows = engine.search(queries, k, head)
        few = (rows >= 0).sum(axis=1) < min(k, built if head is None else len(head))
        if few.any():  # the allowed rows are far from these queries: only an exact search finds them
            found = self._exact(queries[few], k, head if head is not None else np.arange(built))
            wide = np.full((len(rows), max(rows.shape[1], found.shape[1])), -1)
            wide[:, : rows.shape[1]] = rows
            wide[few] = -1
            wide[few, : found.shape[1]] = found
            rows = wide
        return np.concatenate([rows, self._exact(queries, k, tail)], axis=1) if len(tail) else rows

    def _exact(self, queries: np.ndarray, k: int, rows: np.ndarray | None) -> np.ndarray:
        return nearest(queries, self._store.vectors, k + SPARE_NEIGHBORS, rows=rows, unit=True)[0]

    def _load_copies(self, queries: int) -> BoundedSearch | None:
        """The copies by which few queries are searched exactly, or None if they are not worth it."""
        if self.engine is None or not self.engine.exact or queries > FEW_QUERIES or not is_available():
            return None
        self._searches += 1
        if self._copies is None and self._searches > FEW_SEARCHES:
            with suppress(FileNotFoundError):
                self._copies = load_copies(self._store.folder, self.engine, self._store.meta["dim"])
        return self._copies

    def _load_engine(self) -> ApproximateSearch | None:
        """The approximate engine, or None if there is none or a writer has just replaced it."""
        if self._loaded is None and self.engine is not None and not self.engine.exact:
            with suppress(FileNotFoundError):
                self._loaded = approximate_search.load_engine(self._store.folder, self.engine)
        return self._loaded
