"""The search engine of an index in a folder."""

import threading
from typing import Any

from dr_keras.index.approximate_search import (
    MIN_ENGINE_IMAGES,
    build_copies,
    build_engine,
    choose_engine,
    engine_damage,
    is_outgrown,
)
from dr_keras.index.bounded_search import is_useful
from dr_keras.index.engine import IndexEngine
from dr_keras.index.searcher import Searcher
from dr_keras.index.store import Store


class LocalEngine(IndexEngine):
    """The engine of an index in a folder.

    Args:
        store: The index's files.
        searcher: The index's search, which uses the engine.
        guard: The index's lock.
    """

    def __init__(self, store: Store, searcher: Searcher, guard: "threading.RLock") -> None:
        self._store = store
        self._searcher = searcher
        self._guard = guard

    def build(self, engine: str = "auto") -> str:
        with self._guard:
            store = self._store
            name = choose_engine(engine, len(self._searcher))
            old = store.meta.get("engine_file")
            meta: dict[str, Any] = {"engine": engine}
            if name != "flat":
                meta |= build_engine(name, store.folder, store.vectors, store.meta["version"]).to_meta()
            elif is_useful(store.rows):
                meta |= build_copies(store.folder, store.vectors, store.meta["version"]).to_meta()
            with self._searcher.changing():
                store.forget_engine()
                for key, value in meta.items():
                    store.set_meta(key, value)
            if old:
                store.remove_file(old)
            return name

    def update(self, engine: str | None = None) -> None:
        with self._guard:
            chosen = engine or self._store.meta["engine"]
            name = choose_engine(chosen, len(self._searcher))
            if name != "flat" and engine is None and self._store.rows < MIN_ENGINE_IMAGES:
                return  # too few images are left for it; they are searched exactly
            present = self._searcher.engine
            if (
                name != (present.name if present else "flat")
                or (name == "flat" and bool(present) != is_useful(self._store.rows))
                or chosen != self._store.meta["engine"]
                or (present and is_outgrown(present, self._store.rows))
            ):
                self.build(chosen)

    def repair(self) -> None:
        with self._guard:
            if self.damage() is not None:
                self.build(self._store.meta["engine"])

    def damage(self) -> str | None:
        """What is wrong with the engine's file, or None."""
        with self._guard:
            present = self._searcher.engine
            return engine_damage(self._store.folder, present) if present else None

    def stats(self) -> dict[str, Any]:
        with self._guard:
            present = self._searcher.engine
            return {
                "name": present.name if present else "flat",
                "chosen": self._store.meta["engine"],
                "exact": present is None or present.exact,
                "rows": self._store.rows if present is None or present.exact else present.rows,
                "recall": present.recall if present else 1.0,
            }
