"""The index: images with their vectors, labels and attributes. Every change is atomic.

`dr_keras.index.store` describes its files, and `dr_keras.index.approximate_search` how more than a million images are
searched. It needs only NumPy, no framework: a search for an indexed image takes as long as reading the index.
"""

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.data.parts import windows
from dr_keras.errors import InputError
from dr_keras.index import changes
from dr_keras.index.database import one_line_errors
from dr_keras.index.engine import IndexEngine
from dr_keras.index.image_files import ImageFiles
from dr_keras.index.index_meta import IndexMeta
from dr_keras.index.index_stats import index_stats
from dr_keras.index.integrity import Damage, check_integrity
from dr_keras.index.records import NO_CLASS, Entry, Records, check_unique
from dr_keras.index.rewriting import NewVectors, rewrite
from dr_keras.index.searcher import Searcher
from dr_keras.index.store import Store
from dr_keras.index.vector_file import check_vectors

__all__ = ["NO_CLASS", "Damage", "Entry", "Index"]

MAX_GAP_SHARE = 0.25  # of rows that belong to no image; beyond it, a removal compacts the vectors
MIN_GAPS = 4096  # fewer are never worth compacting


class Index(IndexMeta):
    """A snapshot of an open index; `refresh` picks up changes by others. Use `create` or `open` to get one.

    One process at a time may change an index, while any number of others read it. The methods are thread-safe.

    Attributes:
        records: What it knows about its images besides their vectors; see, for example, `index.records.find`.
        image_files: What it knows about the images' files, for a sync.
        engine: The search engine, exact by default; to change it, call `index.engine.build("hnsw")`, for example.
        condition_seconds: How long evaluating the condition of a search may take; None for no limit.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from dr_keras import Entry, Index
        >>> folder = tempfile.TemporaryDirectory()
        >>> index = Index.create(f"{folder.name}/my-index", dim=2, root="my-pictures")
        >>> tom = Entry("cats/tom.jpg", label="cats", attributes={"year": 2021})
        >>> rex = Entry("dogs/rex.jpg", label="dogs")
        >>> index.add([tom, rex], np.array([[1.0, 0.0], [0.6, 0.8]]))
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
        super().__init__(store)
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
        head: str = "trained",
        exif: bool = True,
        parts: int = 0,
        replace: bool = False,
    ) -> "Index":
        """Creates an empty index and opens it for writing.

        Args:
            folder: Where to create it; must not exist or must be empty.
            dim: D, the length of a vector.
            root: The folder that ids are relative to.
            model: What the vectors depend on, as any string; `dr_keras.Model` compares it with its own.
            run: The run that computes the vectors, used when the index is opened without naming one.
            head: The head of that run; see `dr_keras.heads`.
            exif: Whether what files say of themselves becomes attributes; see `dr_keras.data.exif`.
            parts: Which parts of each image it keeps vectors of, see `dr_keras.data.parts.windows`; 0 for none.
            replace: Replace an existing index, even a damaged one.

        Raises:
            InputError: There is no such choice of parts.
            Locked: Another process is creating or writing to an index there.
            RunError: The folder is not empty, or cannot be written to.
        """
        windows(parts)
        meta = {"root": os.path.abspath(root), "model": model, "run": run, "head": head, "exif": exif, "engine": "auto"}
        meta |= {"parts": parts} if parts else {}
        return cls(Store.create(Path(folder), dim, meta, replace=replace))

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, write: bool = False, repair: bool = False) -> "Index":
        """Opens an index.

        Args:
            folder: Where it is.
            write: Open it for changes; there is one writer at a time.
            repair: Open it even if vectors are damaged, for `verify` and `dr_keras.index.repair`.

        Raises:
            Locked: Another process is writing to it.
            RunError: There is no index, or it is damaged or has a different format version.
        """
        return cls(Store(Path(folder), write=write, repair=repair))

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and lets others write, after waiting for calls in other threads to finish."""
        with self._guard:
            self._store.close()

    def held(self) -> "threading.RLock":
        """Returns a lock that blocks `refresh` in other threads during several calls: `with index.held(): ...`."""
        return self._guard

    def refresh(self) -> bool:
        """Moves to the latest state that a writer has committed.

        Returns:
            Whether there was a newer one.
        """
        with self._guard:
            changed = self._store.refresh()
            if changed:
                self._searcher.refresh()
            return changed

    def withhold(self, attributes: Collection[str]) -> None:
        """Keeps attributes to itself: neither entries nor conditions have them from now on."""
        self.records.withheld = self._searcher.withheld = frozenset(attributes)

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
            vectors: (n, D) of unit length; if the index keeps parts, (n, 1 + P, D), the whole image first.
            class_names: The display names of new labels; a label without one is displayed as is.

        Raises:
            InputError: An id is already in the index or is given twice, or the vectors have the wrong shape, are not
                finite, or are not of unit length. In that case nothing is added.
        """
        with self._guard:
            taken = self.records.rows_of([entry.id for entry in entries])
            if taken:
                raise InputError(f"{next(iter(taken))!r} is in the index already; use update")
            self._insert(entries, vectors, class_names or {})

    def update(self, entries: Sequence[Entry], vectors: np.ndarray | None = None) -> None:
        """Replaces what is known about images, and their vectors if given.

        Args:
            entries: n images with ids that are in the index.
            vectors: As in `add`.

        Raises:
            InputError: An id is not in the index or is given twice, or the vectors are invalid, as in `add`. In that
                case nothing is changed.
        """
        with self._guard:
            self.records.known_rows([entry.id for entry in entries])
            self.put(entries, vectors)

    def put(self, entries: Sequence[Entry], vectors: np.ndarray | None) -> None:
        """Adds new images and updates existing ones in one change; arguments and errors are as in `update`."""
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
        """Removes images.

        Returns:
            How many.

        Raises:
            InputError: An id is not in the index or is given twice. In that case nothing is removed.
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

    def compact(self, new: NewVectors | None = None) -> None:
        """Rewrites the vectors without those that belong to no image; happens automatically when it is worthwhile.

        Args:
            new: Vectors of another model, to put in their place.
        """
        with self._guard:
            had_engine = self._searcher.engine is not None
            rewrite(self._store, new)
            self._searcher.refresh()
            if had_engine:
                self.engine.update()

    # Search

    def get(self, id: str) -> tuple[Entry, np.ndarray]:
        """Looks up an image.

        Args:
            id: Its id.

        Returns:
            What is known about it, and its vector (D,) float32.

        Raises:
            InputError: The id is not in the index.
        """
        with self._guard:
            row = self.records.known_rows([id])[id]
            return self.records.entries([row])[0], np.array(self.vectors[row])

    def search(
        self, vectors: np.ndarray, k: int = 30, *, where: str | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `k` nearest images of each vector.

        Args:
            vectors: (Q, D).
            k: At least 1; capped at the number of images.
            where: A condition on the images to search, such as "label = cats AND year >= 2020"; see
                `dr_keras.index.filters`.
            exclude: (Q,) or (Q, X) rows to exclude for each query, such as its own; -1 for none.

        Returns:
            rows (Q, K) int64, nearest first and ties by row, and Euclidean distances (Q, K) float32. K is `k`, or less
            if there are fewer images. An approximate engine may find fewer images for some queries; these are padded
            with row -1 and an infinite distance.

        Raises:
            InputError: The vectors have the wrong length, `k` is below 1, or `where` is not a valid condition.
        """
        queries, own = self._asked(vectors, k, exclude)
        with self._guard:
            return self._searcher.search(queries, k, where, own, self.condition_seconds)

    def search_parts(
        self, vectors: np.ndarray, k: int = 30, *, where: str | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the `k` images of which the whole or a part is nearest to each vector; every part is compared.

        Args:
            vectors, k, where, exclude: As in `search`.

        Returns:
            rows and distances as in `search`, and parts (Q, K) int64: the number of the nearest part in
            `dr_keras.data.parts.windows`, or -1 for the whole image.

        Raises:
            InputError: As in `search`; or the index keeps no parts.
        """
        queries, own = self._asked(vectors, k, exclude)
        with self._guard:
            if not self.parts:
                raise InputError(f"{self.folder} keeps no parts of its images")
            return self._searcher.search_parts(queries, k, where, own, self.condition_seconds)

    def _asked(self, vectors: np.ndarray, k: int, exclude: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of a search, and the rows to exclude for each."""
        queries = np.ascontiguousarray(vectors, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(f"vectors are {np.shape(vectors)}; this index takes (Q, {self.dim})")
        if k < 1:
            raise InputError(f"{k} neighbors were asked for; ask for at least 1")
        own = np.empty((len(queries), 0), np.int64) if exclude is None else np.asarray(exclude)
        return queries, own[:, None] if own.ndim == 1 else own

    # Statistics, integrity and copies

    def stats(self) -> dict[str, Any]:
        """Counts, sizes in bytes and the engine, as plain values."""
        with self._guard, one_line_errors(self.folder):
            return {"searched": len(self)} | index_stats(self._store, self.records, self.image_files, self.engine)

    def verify(self) -> list[Damage]:
        """Checks the database, the checksum, finiteness and unit length of each vector, and the engine.

        Returns:
            What is wrong; empty if all is well.
        """
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
