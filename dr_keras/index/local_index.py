"""An index in a folder on this machine.

`dr_keras.index.store` describes its files, and `dr_keras.index.approximate_search` how more than a million images are
searched. It needs only NumPy, no framework: a search for an indexed image takes as long as reading the index.
"""

import os
import shutil
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.data.parts import windows
from dr_keras.errors import InputError
from dr_keras.index import changes
from dr_keras.index.database import DATABASE, one_line_errors
from dr_keras.index.index import Index
from dr_keras.index.integrity import Damage, check_integrity
from dr_keras.index.local_engine import LocalEngine
from dr_keras.index.local_image_files import LocalImageFiles
from dr_keras.index.local_records import LocalRecords
from dr_keras.index.records import Entry, check_unique
from dr_keras.index.searcher import Searcher
from dr_keras.index.store import Store
from dr_keras.index.vector_file import check_vectors

if TYPE_CHECKING:  # what a search need not import
    from dr_keras.index.rewriting import NewVectors

MIGRATION, OLD = "migration", ".old"  # the folder of a migration; the end of the name of the copy that it keeps
MAX_GAP_SHARE = 0.25  # of rows that belong to no image; beyond it, a removal compacts the vectors
GENERATION_BITS = 40  # above those of a row
MIN_GAPS = 4096  # fewer are never worth compacting


class LocalIndex(Index):
    """An index in a folder; see `Index`."""

    records: LocalRecords
    image_files: LocalImageFiles
    engine: LocalEngine

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.RLock()
        try:
            self._searcher = Searcher(store)
        except BaseException:
            store.close()
            raise
        self.records = LocalRecords(store, self._guard)
        self.image_files = LocalImageFiles(store, self._searcher, self.records, self._guard)
        self.engine = LocalEngine(store, self._searcher, self._guard)

    @classmethod
    def created(cls, place: str | os.PathLike[str], dim: int, meta: dict[str, Any], *, replace: bool) -> Self:
        windows(meta.get("parts", 0))
        return cls(Store.create(Path(place), dim, meta, replace=replace))

    @classmethod
    def opened(cls, place: str | os.PathLike[str], *, write: bool, repair: bool) -> Self:
        return cls(Store(Path(place), write=write, repair=repair))

    @classmethod
    def is_at(cls, place: str | os.PathLike[str]) -> bool:
        return (Path(place) / DATABASE).exists()

    @property
    def place(self) -> str:
        return str(self.folder)

    @property
    def meta(self) -> Mapping[str, Any]:
        return self._store.meta

    @property
    def folder(self) -> Path:
        """The folder of the index."""
        return self._store.folder

    @property
    def vectors(self) -> np.ndarray:
        """(R, D) float32, memory-mapped, by row, including the rows of removed images."""
        return self._store.vectors

    @property
    def part_vectors(self) -> np.ndarray | None:
        """(R, P, D) float32, memory-mapped: the vectors of the parts of each image; None if it keeps none."""
        return self._store.parts

    def vector_marks(self, rows: np.ndarray) -> np.ndarray:
        return rows + (self.generation << GENERATION_BITS)  # within a generation, a row never changes

    def read_file(self, name: str) -> bytes | None:
        with one_line_errors(self.folder):
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def write_file(self, name: str, data: bytes) -> None:
        with one_line_errors(self.folder), new_file(self.folder / name) as temporary:
            temporary.write_bytes(data)

    def close(self) -> None:
        with self._guard:
            self._store.close()

    def held(self) -> "threading.RLock":
        return self._guard

    def refresh(self) -> bool:
        with self._guard:
            changed = self._store.refresh()
            if changed:
                self._searcher.refresh()
            return changed

    def withhold(self, attributes: Collection[str]) -> None:
        self.records.withheld = self._searcher.withheld = frozenset(attributes)

    def __len__(self) -> int:
        return len(self._searcher)

    def searched_rows(self) -> np.ndarray:
        return self._searcher.rows()

    # Changes

    def add(
        self, entries: Sequence[Entry], vectors: np.ndarray, *, class_names: Mapping[str, str] | None = None
    ) -> None:
        with self._guard:
            taken = self.records.rows_of([entry.id for entry in entries])
            if taken:
                raise InputError(f"{next(iter(taken))!r} is in the index already; use update")
            self._insert(entries, vectors, class_names or {})

    def put(self, entries: Sequence[Entry], vectors: np.ndarray | None) -> None:
        with self._guard:
            ids = [entry.id for entry in entries]
            if vectors is None:
                rows = self.records.known_rows(ids)
                with self._searcher.changing():
                    changes.update_images(self._store, entries, rows)
                return
            vectors = self._checked(vectors, len(entries))
            replaced = self.records.rows_of(ids)
            self._insert(entries, vectors, {}, replaced.values())
            if replaced:
                self._compact_if_worthwhile()

    def _insert(
        self,
        entries: Sequence[Entry],
        vectors: np.ndarray,
        class_names: Mapping[str, str],
        replaced: Collection[int] = (),
    ) -> None:
        vectors = self._checked(vectors, len(entries))
        check_unique([entry.id for entry in entries])
        if not entries:
            return
        with self._searcher.changing():
            changes.delete_images(self._store, replaced)
            changes.insert_images(self._store, entries, vectors, class_names)

    def _checked(self, vectors: np.ndarray, count: int) -> np.ndarray:
        return check_vectors(vectors, count, self.dim, len(windows(self.parts)))

    def remove(self, ids: Collection[str]) -> int:
        with self._guard:
            rows = self.records.known_rows(ids)
            if not rows:
                return 0
            with self._searcher.changing():
                changes.delete_images(self._store, rows.values())
            self._compact_if_worthwhile()
            return len(rows)

    def _compact_if_worthwhile(self) -> None:
        gaps = self._store.rows - self.records.count()
        if gaps > MIN_GAPS and gaps > MAX_GAP_SHARE * self._store.rows:
            self.compact()

    @property
    def migration_place(self) -> str:
        return str(self.folder / MIGRATION)

    @property
    def old_place(self) -> str:
        folder = self.folder.resolve()
        return str(folder.with_name(folder.name + OLD))

    def take_vectors(self, fresh: Index, meta: Mapping[str, Any], *, keep_old: bool = False) -> None:
        from dr_keras.index.rewriting import NewVectors

        assert isinstance(fresh, LocalIndex)
        if keep_old:
            self.save(self.old_place)
        with self._guard:
            rows = fresh.records.rows_of([id for _, id, *_ in self.records.listing()])
            self._rewrite(NewVectors(fresh.vectors, rows, meta, fresh.part_vectors))

    def remove_migration(self) -> None:
        with one_line_errors(self.folder):
            if (self.folder / MIGRATION).exists():
                shutil.rmtree(self.folder / MIGRATION)

    def remove_strays(self) -> None:
        """Does nothing: everyone who opens the index for writing does it."""

    def compact(self) -> None:
        self._rewrite()

    def _rewrite(self, new: "NewVectors | None" = None) -> None:
        """Rewrites the vectors, or puts those of another model in their place."""
        from dr_keras.index.rewriting import rewrite

        with self._guard:
            had_engine = self._searcher.engine is not None
            rewrite(self._store, new)
            self._searcher.refresh()
            if had_engine:
                self.engine.update()

    # Search

    def search(
        self, vectors: np.ndarray, k: int = 30, *, where: str | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        queries, own = self._asked(vectors, k, exclude)
        with self._guard:
            return self._searcher.search(queries, k, where, own, self.condition_seconds)

    def search_parts(
        self, vectors: np.ndarray, k: int = 30, *, where: str | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        queries, own = self._asked(vectors, k, exclude)
        with self._guard:
            if not self.parts:
                raise InputError(f"{self.folder} keeps no parts of its images")
            return self._searcher.search_parts(queries, k, where, own, self.condition_seconds)

    # Statistics, integrity and copies

    def stats(self) -> dict[str, Any]:
        from dr_keras.index.index_stats import index_stats

        with self._guard, one_line_errors(self.folder):
            return {"searched": len(self)} | index_stats(self._store, self.records, self.image_files, self.engine)

    def verify(self) -> list[Damage]:
        with self._guard, one_line_errors(self.folder):
            found = check_integrity(self._store)
            reason = self.engine.damage()
            return found + ([Damage(None, reason)] if reason else [])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copies the index, as this object sees it, to a new folder; an engine has to be rebuilt there.

        Raises:
            RunError: The folder already exists or cannot be written.
        """
        place = Path(folder)
        with self._guard, one_line_errors(place):
            self._store.copy(place)
