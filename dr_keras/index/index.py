"""The index: images with their vectors, labels and attributes. Every search, and every change, is all or nothing.

`dr_keras.index.store` describes its files, `dr_keras.index.approximate_search` how more than a million images are
searched. Needs NumPy and no framework: a search for an indexed image takes as long as reading the index.
"""

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.errors import InputError
from dr_keras.index import changes
from dr_keras.index.database import one_line_errors
from dr_keras.index.engine import IndexEngine
from dr_keras.index.image_files import ImageFiles
from dr_keras.index.integrity import Damage, check_integrity
from dr_keras.index.records import NO_CLASS, Entry, Records, check_unique
from dr_keras.index.searcher import Searcher
from dr_keras.index.store import Store
from dr_keras.index.vector_file import check_vectors

__all__ = ["NO_CLASS", "Damage", "Entry", "Index"]

MAX_GAP_SHARE = 0.25  # of rows that belong to no image; beyond it a removal compacts the vectors
MIN_GAPS = 4096  # fewer are never worth compacting


class Index:
    """An open index, as of one moment: `refresh` shows what others have changed. Made by `create` and `open`.

    One process at a time may change an index, while any number of others read it. The methods may be called from
    several threads.

    Attributes:
        records: what it knows of its images besides their vectors, such as `index.records.find("tom.jpg")`.
        image_files: what it knows about the images' files, for a sync.
        engine: what searches it, such as `index.engine.build("hnsw")`; exact by default.
        condition_seconds: how long evaluating the condition of a search may take; None for no limit.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from dr_keras import Entry, Index
        >>> folder = tempfile.TemporaryDirectory()
        >>> index = Index.create(f"{folder.name}/my-index", dim=2, root="my-pictures")
        >>> entries = [
        ...     Entry("cats/tom.jpg", label="cats", attributes={"year": 2021}),
        ...     Entry("dogs/rex.jpg", label="dogs"),
        ... ]
        >>> index.add(entries, np.array([[1.0, 0.0], [0.6, 0.8]]))
        >>> rows, distances = index.search(np.array([[1.0, 0.0]]), k=2)
        >>> [entry.id for entry in index.records.entries(rows[0])]
        ['cats/tom.jpg', 'dogs/rex.jpg']
        >>> [f"{distance:.2f}" for distance in distances[0]]
        ['0.00', '0.89']
        >>> rows, _ = index.search(np.array([[1.0, 0.0]]), where="label = dogs")
        >>> [entry.id for entry in index.records.entries(rows[0])]
        ['dogs/rex.jpg']
        >>> index.remove(["cats/tom.jpg"])
        1
        >>> index.close()
        >>> folder.cleanup()
    """

    condition_seconds: float | None = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.RLock()
        try:
            self._searcher = Searcher(store)
        except BaseException:
            store.close()
            raise
        self.records = Records(store, self._guard)
        self.image_files = ImageFiles(store, self._searcher, self.records, self._guard)
        self.engine = IndexEngine(store, self._searcher, self._guard)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        dim: int,
        *,
        root: str | os.PathLike[str],
        model: str = "",
        run: str = "",
        replace: bool = False,
    ) -> "Index":
        """Makes an index without images and opens it for writing.

        Args:
            folder: where to make it; nothing may be there, or an empty folder.
            dim: D, the length of a vector.
            root: the folder that ids are relative to.
            model: what the vectors depend on, in any words; `dr_keras.Model` compares it with its own.
            run: the run that makes the vectors, for those who open the index without naming one.
            replace: replace an index that is there, even a damaged one.

        Raises:
            Locked: another process makes an index there, or writes to it.
            RunError: something else is there, or nothing can be written there.
        """
        meta = {"root": os.path.abspath(root), "model": model, "run": run, "engine": "auto"}
        return cls(Store.create(Path(folder), dim, meta, replace=replace))

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, write: bool = False, repair: bool = False) -> "Index":
        """Opens an index.

        Args:
            folder: where it lies.
            write: open it for changes; there is one writer at a time.
            repair: open it even if vectors are damaged, for `verify` and `dr_keras.index.repair`.

        Raises:
            Locked: another process writes to it.
            RunError: there is no index, or it is damaged or of another format version.
        """
        return cls(Store(Path(folder), write=write, repair=repair))

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and lets others write, once what other threads ask at the moment is answered."""
        with self._guard:
            self._store.close()

    def held(self) -> "threading.RLock":
        """Keeps `refresh` in other threads away while several questions are asked: `with index.held(): ...`."""
        return self._guard

    def refresh(self) -> bool:
        """Moves to the newest state that a writer has finished.

        Returns:
            Whether there was a newer one.
        """
        with self._guard:
            changed = self._store.refresh()
            if changed:
                self._searcher.refresh()
            return changed

    @property
    def folder(self) -> Path:
        """Where the index lies."""
        return self._store.folder

    @property
    def root(self) -> Path:
        """The folder that ids are relative to."""
        return Path(self._store.meta["root"])

    @property
    def run(self) -> str:
        """The run that makes the vectors; empty where none was named."""
        return self._store.meta["run"]

    @property
    def model(self) -> str:
        """What the vectors depend on."""
        return self._store.meta["model"]

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self._store.meta["dim"]

    @property
    def vectors(self) -> np.ndarray:
        """(R, D) float32, memory-mapped, by row; the rows of removed images are still among them."""
        return self._store.vectors

    @property
    def version(self) -> int:
        """How many changes were made to the index."""
        return self._store.meta["version"]

    @property
    def generation(self) -> int:
        """How often the vectors were compacted; within a generation images keep their rows."""
        return self._store.meta["generation"]

    def __len__(self) -> int:
        """How many images a search may return."""
        return len(self._searcher)

    def searched_rows(self) -> np.ndarray:
        """The rows that a search may return: (N,) int64, ascending."""
        return self._searcher.rows()

    # Changes

    def add(
        self, entries: Sequence[Entry], vectors: np.ndarray, *, class_names: Mapping[str, str] | None = None
    ) -> None:
        """Adds images.

        Args:
            entries: n images with new ids.
            vectors: (n, D) of unit length.
            class_names: the display names of new labels; a label without one is displayed as it is.

        Raises:
            InputError: an id is in the index already or is given twice, or the vectors have another shape, are not
                finite, or are not of unit length. Nothing is added then.
        """
        with self._guard:
            taken = self.records.rows_of([entry.id for entry in entries])
            if taken:
                raise InputError(f"{next(iter(taken))!r} is in the index already; use update")
            self._insert(entries, vectors, class_names or {})

    def update(self, entries: Sequence[Entry], vectors: np.ndarray | None = None) -> None:
        """Replaces what is known of images, and their vectors where some are given.

        Args:
            entries: n images with ids that are in the index.
            vectors: (n, D) of unit length.

        Raises:
            InputError: an id is not in the index or is given twice, or the vectors are refused as in `add`. Nothing is
                changed then.
        """
        with self._guard:
            self.records.known_rows([entry.id for entry in entries])
            self.put(entries, vectors)

    def put(self, entries: Sequence[Entry], vectors: np.ndarray | None) -> None:
        """Adds the images that are new and updates the others, in one change; arguments and errors as in `update`."""
        with self._guard:
            ids = [entry.id for entry in entries]
            if vectors is None:
                rows = self.records.known_rows(ids)
                with self._searcher.changing():
                    changes.update_images(self._store, entries, rows)
                return
            vectors = check_vectors(vectors, len(entries), self.dim)
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
        vectors = check_vectors(vectors, len(entries), self.dim)
        check_unique([entry.id for entry in entries])
        if not entries:
            return
        with self._searcher.changing():
            changes.delete_images(self._store, replaced)
            changes.insert_images(self._store, entries, vectors, class_names)

    def remove(self, ids: Collection[str]) -> int:
        """Removes images.

        Returns:
            How many.

        Raises:
            InputError: an id is not in the index or is given twice. Nothing is removed then.
        """
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

    def compact(self) -> None:
        """Rewrites the vectors without those of no image; changes do it by themselves when it is worthwhile."""
        with self._guard:
            had_engine = self._searcher.engine is not None
            self._store.compact()
            self._searcher.refresh()
            if had_engine:
                self.engine.update()

    # Search

    def get(self, id: str) -> tuple[Entry, np.ndarray]:
        """Looks up an image.

        Args:
            id: its id.

        Returns:
            What is known of it, and its vector (D,) float32.

        Raises:
            InputError: the id is not in the index.
        """
        with self._guard:
            row = self.records.known_rows([id])[id]
            return self.records.entries([row])[0], np.array(self.vectors[row])

    def search(
        self, vectors: np.ndarray, k: int = 30, *, where: str | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest images of each vector.

        Args:
            vectors: (Q, D).
            k: at least 1; more than the index holds means all of it.
            where: a condition on the images to search, such as "label = cats AND year >= 2020"; see
                `dr_keras.index.filters`.
            exclude: (Q,) or (Q, X) rows to leave out for each query, such as its own; -1 for none.

        Returns:
            rows (Q, K) int64, nearest first, and by row where distances are equal; Euclidean distances (Q, K) float32.
            K is `k`, or less where there are fewer images. An approximate engine may find fewer images for one query
            than for another: there the row is -1 and the distance infinite.

        Raises:
            InputError: the vectors' length is not the index's, `k` is below 1, or `where` is not a condition.
        """
        queries = np.ascontiguousarray(vectors, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(f"vectors are {np.shape(vectors)}; this index takes (Q, {self.dim})")
        if k < 1:
            raise InputError(f"{k} neighbors were asked for; ask for at least 1")
        own = np.empty((len(queries), 0), np.int64) if exclude is None else np.asarray(exclude)
        own = own[:, None] if own.ndim == 1 else own
        with self._guard:
            return self._searcher.search(queries, k, where, own, self.condition_seconds)

    # Statistics, integrity and copies

    def stats(self) -> dict[str, Any]:
        """Counts, sizes in bytes and the engine, as plain values."""
        with self._guard, one_line_errors(self.folder):
            images = self.records.count()
            return {
                "path": str(self.folder),
                "root": str(self.root),
                "run": self.run,
                "searched": len(self),
                "images": images,
                "classes": self.records.label_count(),
                "splits": {name or "added": count for name, count in sorted(self.records.split_counts().items())},
                "skipped": len(self.image_files.skipped()),
                "dim": self.dim,
                "engine": self.engine.stats(),
                "rows": self._store.rows,
                "gaps": self._store.rows - images,
                "bytes": self._store.file_bytes(),
                "version": self.version,
            }

    def verify(self) -> list[Damage]:
        """Checks everything: the database, each vector's checksum, that it is finite and of unit length, the engine.

        Returns:
            What is wrong; empty where all is well.
        """
        with self._guard, one_line_errors(self.folder):
            found = check_integrity(self._store)
            reason = self.engine.damage()
            return found + ([Damage(None, reason)] if reason else [])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copies the index, as this object sees it, to a new place; an engine has to be built again there.

        Raises:
            RunError: something is there already, or it cannot be written.
        """
        place = Path(folder)
        with self._guard, one_line_errors(place):
            self._store.copy(place)
