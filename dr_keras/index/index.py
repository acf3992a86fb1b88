"""The index: images with their vectors, labels and attributes. Every change is atomic.

There are two kinds with one interface: a folder on this machine (`dr_keras.index.local_index`), and a collection of a
Milvus server, which many may write to (`dr_keras.index.milvus.index`). Both need no framework.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np

from dr_keras.errors import InputError
from dr_keras.index.engine import IndexEngine
from dr_keras.index.image_files import ImageFiles
from dr_keras.index.integrity import Damage
from dr_keras.index.places import is_milvus
from dr_keras.index.records import NO_CLASS, Entry, Records
from dr_keras.index.store import CUTOFF_FILE, HEAD_FILE, LAYOUT_FILE

__all__ = ["CUTOFF_FILE", "HEAD_FILE", "LAYOUT_FILE", "NO_CLASS", "Damage", "Entry", "Index", "Vectors"]


class Vectors(Protocol):
    """What `Index.vectors` returns: a NumPy array, or what reads vectors from elsewhere."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The vectors in some rows, (n, D) float32; (D,) of a single row."""
        ...


class Index(ABC):
    """A snapshot of an open index; `refresh` picks up changes by others. Use `create` or `open` to get one.

    One process at a time may change an index in a folder, while any number of others read it; many may change one in
    Milvus. The methods are thread-safe.

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

    records: Records
    image_files: ImageFiles
    engine: IndexEngine
    condition_seconds: float | None = None

    @classmethod
    def create(
        cls,
        place: str | os.PathLike[str],
        dim: int,
        *,
        root: str | os.PathLike[str],
        model: str = "",
        run: str = "",
        head: str = "trained",
        exif: bool = True,
        parts: int = 0,
        replace: bool = False,
    ) -> Self:
        """Creates an empty index and opens it for writing.

        Args:
            place: Where to create it: a folder that does not exist or is empty, or milvus://HOST:PORT/COLLECTION.
            dim: D, the length of a vector.
            root: The folder that ids are relative to.
            model: What the vectors depend on, as any string; `dr_keras.Model` compares it with its own.
            run: The run that computes the vectors, used when the index is opened without naming one.
            head: The head of that run; see `dr_keras.heads`.
            exif: Whether what files say of themselves becomes attributes; see `dr_keras.data.exif`.
            parts: Which parts of each image it keeps vectors of, see `dr_keras.data.parts.windows`; 0 for none.
            replace: Replace an existing index, even a damaged one.

        Raises:
            InputError: There is no such choice of parts, or this kind of index keeps none.
            Locked: Another process is creating or writing to an index there.
            RunError: The folder is not empty or cannot be written to, or the server cannot be used.
        """
        meta = {"root": os.path.abspath(root), "model": model, "run": run, "head": head, "exif": exif, "engine": "auto"}
        meta |= {"parts": parts} if parts else {}
        return cls._kind_at(place).created(place, dim, meta, replace=replace)

    @classmethod
    def open(cls, place: str | os.PathLike[str], *, write: bool = False, repair: bool = False) -> Self:
        """Opens an index.

        Args:
            place: Where it is: its folder, or milvus://HOST:PORT/COLLECTION.
            write: Open it for changes; a folder has one writer at a time.
            repair: Open it even if vectors are damaged, for `verify` and `dr_keras.index.repair`.

        Raises:
            Locked: Another process is writing to it.
            RunError: There is no index, or it is damaged or has a different format version.
        """
        return cls._kind_at(place).opened(place, write=write, repair=repair)

    @classmethod
    def exists(cls, place: str | os.PathLike[str]) -> bool:
        """Whether there is an index at a place.

        Raises:
            RunError: The Milvus server cannot be asked.
        """
        return cls._kind_at(place).is_at(place)

    @classmethod
    def _kind_at(cls, place: str | os.PathLike[str]) -> type[Self]:
        """The kind of index that a place is for."""
        if cls is not Index:
            return cls
        if is_milvus(place):
            from dr_keras.index.milvus.index import MilvusIndex

            return cast("type[Self]", MilvusIndex)
        from dr_keras.index.local_index import LocalIndex

        return cast("type[Self]", LocalIndex)

    @classmethod
    @abstractmethod
    def created(cls, place: str | os.PathLike[str], dim: int, meta: dict[str, Any], *, replace: bool) -> Self:
        """`create` for one kind of index."""

    @classmethod
    @abstractmethod
    def opened(cls, place: str | os.PathLike[str], *, write: bool, repair: bool) -> Self:
        """`open` for one kind of index."""

    @classmethod
    @abstractmethod
    def is_at(cls, place: str | os.PathLike[str]) -> bool:
        """`exists` for one kind of index."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it says of itself

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, as for `open`."""

    @property
    @abstractmethod
    def meta(self) -> Mapping[str, Any]:
        """The values that it keeps besides its images, in its current state."""

    @property
    def root(self) -> Path:
        """The folder that ids are relative to."""
        return Path(self.meta["root"])

    @property
    def run(self) -> str:
        """The run that computes the vectors; empty if none was named."""
        return self.meta["run"]

    @property
    def head(self) -> str:
        """The head of the run that computes the vectors."""
        return self.meta.get("head", "trained")

    @property
    def exif(self) -> bool:
        """Whether what files say of themselves becomes attributes."""
        return self.meta.get("exif", True)

    @property
    def parts(self) -> int:
        """Which parts of each image it keeps vectors of, see `dr_keras.data.parts.windows`; 0 for none."""
        return self.meta.get("parts", 0)

    @property
    def model(self) -> str:
        """What the vectors depend on."""
        return self.meta["model"]

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.meta["dim"]

    @property
    def version(self) -> int:
        """How many changes have been made to the index."""
        return self.meta["version"]

    @property
    def generation(self) -> int:
        """How often the vectors have been compacted; within a generation, images keep their rows."""
        return self.meta["generation"]

    @abstractmethod
    def read_file(self, name: str) -> bytes | None:
        """Reads a file that is kept with the index, such as `CUTOFF_FILE`; None if there is none.

        Raises:
            RunError: It cannot be read.
        """

    @abstractmethod
    def write_file(self, name: str, data: bytes) -> None:
        """Keeps a file with the index, in the place of an earlier one of that name.

        Raises:
            RunError: It cannot be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the files and lets others write, after waiting for calls in other threads to finish."""

    @abstractmethod
    def held(self) -> "threading.RLock":
        """Returns a lock that blocks `refresh` in other threads during several calls: `with index.held(): ...`."""

    @abstractmethod
    def refresh(self) -> bool:
        """Moves to the latest state that a writer has committed.

        Returns:
            Whether there was a newer one.
        """

    @abstractmethod
    def withhold(self, attributes: Collection[str]) -> None:
        """Keeps attributes to itself: neither entries nor conditions have them from now on."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images a search may return."""

    @abstractmethod
    def searched_rows(self) -> np.ndarray:
        """The rows that a search may return: (N,) int64, ascending."""

    @property
    @abstractmethod
    def vectors(self) -> Vectors:
        """The vectors by row: `vectors[rows]` is (n, D) float32, read-only, in the order of the rows.

        What it returns keeps to the state of the index at the moment, as far as the kind of index allows.
        """

    @abstractmethod
    def vector_marks(self, rows: np.ndarray) -> np.ndarray:
        """A number for each of some searched rows, (n,) int64, that differs whenever the vector does."""

    # Changes

    @abstractmethod
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

    def update(self, entries: Sequence[Entry], vectors: np.ndarray | None = None) -> None:
        """Replaces what is known about images, and their vectors if given.

        Args:
            entries: n images with ids that are in the index.
            vectors: As in `add`.

        Raises:
            InputError: An id is not in the index or is given twice, or the vectors are invalid, as in `add`. In that
                case nothing is changed.
        """
        with self.held():
            self.records.known_rows([entry.id for entry in entries])
            self.put(entries, vectors)

    @abstractmethod
    def put(self, entries: Sequence[Entry], vectors: np.ndarray | None) -> None:
        """Adds new images and updates existing ones in one change; arguments and errors are as in `update`."""

    @abstractmethod
    def remove(self, ids: Collection[str]) -> int:
        """Removes images.

        Returns:
            How many.

        Raises:
            InputError: An id is not in the index or is given twice. In that case nothing is removed.
        """

    @property
    @abstractmethod
    def migration_place(self) -> str:
        """Where the vectors of another model grow, see `dr_keras.index.migrate`."""

    @property
    @abstractmethod
    def old_place(self) -> str:
        """Where a migration can keep the index as it was."""

    @abstractmethod
    def take_vectors(self, fresh: "Index", meta: Mapping[str, Any], *, keep_old: bool = False) -> None:
        """Puts the vectors of another model in the place of its own, in one step.

        Args:
            fresh: The index at `migration_place`, which has them; images that are not in it are removed.
            meta: What this index says of its vectors from then on, such as `dim` and `model`.
            keep_old: Keep the index as it was at `old_place`.

        Raises:
            RunError: It cannot be written, or there is something at `old_place`; then it is as before.
        """

    @abstractmethod
    def remove_migration(self) -> None:
        """Removes what a migration has left at `migration_place`, if anything."""

    @abstractmethod
    def remove_strays(self) -> None:
        """Removes what a migration has left behind that was killed after its switch."""

    @abstractmethod
    def compact(self) -> None:
        """Rewrites the vectors without those that belong to no image; happens automatically when it is worthwhile."""

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
        with self.held():
            row = self.records.known_rows([id])[id]
            return self.records.entries([row])[0], np.array(self.vectors[[row]][0])

    @abstractmethod
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

    @abstractmethod
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

    def _asked(self, vectors: np.ndarray, k: int, exclude: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of a search, and the rows to exclude for each."""
        queries = np.ascontiguousarray(vectors, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(f"vectors are {np.shape(vectors)}; this index takes (Q, {self.dim})")
        if k < 1:
            raise InputError(f"{k} neighbors were asked for; ask for at least 1")
        own = np.empty((len(queries), 0), np.int64) if exclude is None else np.asarray(exclude)
        return queries, own[:, None] if own.ndim == 1 else own

    # Statistics and integrity

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Counts, sizes in bytes and the engine, as plain values."""

    @abstractmethod
    def verify(self) -> list[Damage]:
        """Checks the checksum, finiteness and unit length of each vector, what describes the images, and the engine.

        Returns:
            What is wrong; empty if all is well.
        """
