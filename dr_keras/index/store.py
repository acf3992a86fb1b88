"""The files of an index: an SQLite database that describes the images, and one file of vectors that only ever grows.

    index.sqlite       what is known about each image, the row of its vector, and which rows are hidden from searches
    vectors-G.f32      float32 (rows, D), row after row; G counts how often it was rewritten without its gaps
    parts-G.f32        optional: float32 (rows, P, D), the vectors of parts of each image (`dr_keras.data.parts`)
    engine-....faiss   optional: an approximate index of the first rows, built from the vectors
    engine-....i8      optional: 8-bit copies of the first rows, made from the vectors
    map.npz            optional, from `index.py map`: positions on the page's map (`dr_keras.index.umap_layout`)
    head.npz           optional: the general head that was fitted on the index's images (`dr_keras.heads`)
    calibration.json   optional, from `index.py calibrate`: how near is near enough (`dr_keras.index.cutoff`)
    lock               held by the one process that writes

A change first appends its vectors after the rows in use and flushes them to disk, then commits its transaction. If the
process is killed before the commit, nothing has changed: the next change overwrites what follows the rows in use. A
row in use is never overwritten, so readers may map the file while others write. A reader keeps one SQLite snapshot
until it asks for a newer one; with a write-ahead log, readers and the writer do not block each other.
"""

import json
import os
import shutil
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dr_keras.atomic_files import new_folder
from dr_keras.data.parts import windows
from dr_keras.errors import RunError
from dr_keras.index.database import (
    DATABASE,
    FORMAT,
    FORMAT_OF_PARTS,
    FileVersion,
    connect,
    create_database,
    file_version,
    one_line_errors,
)
from dr_keras.index.vector_file import (
    QUICK_CHECK_BYTES,
    append_rows,
    damaged_segments,
    file_names,
    given,
    joined_checksum,
    map_vectors,
    stamp_of,
    write_rows,
)
from dr_keras.index.writer_lock import LOCK_FILE, take_lock
from dr_keras.invocation import command

if TYPE_CHECKING:
    from filelock import BaseFileLock

HEAD_FILE, CUTOFF_FILE, LAYOUT_FILE = KEPT_FILES = ("head.npz", "calibration.json", "map.npz")  # beside the images
FORGET_ENGINE = "DELETE FROM meta WHERE key LIKE 'engine%' AND key != 'engine'"
REFRESH_ATTEMPTS = 100  # while a writer replaces the file of vectors
REFRESH_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class _State:
    """A snapshot of a store: its meta values, its vectors (rows, D) float32, and those of parts (rows, P, D)."""

    meta: dict[str, Any]
    vectors: np.ndarray
    parts: np.ndarray | None


class Store:
    """A snapshot of the files of one index; `refresh` moves it to the latest state. See the module's docstring.

    Args:
        folder: Where `create` made it.
        write: Take the lock and allow changes.
        repair: Open the index even if its vectors are damaged; what is missing from their file reads as zeros.
        lock: The folder's lock if it is already held; the store releases it.

    Attributes:
        folder: The folder.

    Raises:
        Locked: Another process is writing to the index.
        RunError: There is no index, or it is damaged.
    """

    def __init__(
        self, folder: Path, *, write: bool = False, repair: bool = False, lock: "BaseFileLock | None" = None
    ) -> None:
        self.folder = folder
        self._state: _State | None = None
        self._db: sqlite3.Connection | None = None
        self._lock = lock
        self._repair = repair
        self._checked_rows = 0  # number of leading rows whose checksums were compared
        self._copied: FileVersion | None = None  # of the database, if a copy of it is read
        try:
            if not (folder / DATABASE).is_file():
                raise RunError(f"{folder} is not an index: {folder / DATABASE} does not exist")
            if write and lock is None:
                self._lock = take_lock(folder)
            self.refresh()
            if write:
                self._remove_strays()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path, dim: int, meta: dict[str, Any], *, replace: bool = False) -> "Store":
        """Creates the files of an empty index and opens them for writing.

        Args:
            folder: Where to create them; must not exist or must be empty.
            dim: D, the length of a vector.
            meta: More plain values to store with the index.
            replace: Replace an existing index, even a damaged one.

        Raises:
            Locked: Another process is creating or writing to an index there.
            RunError: The folder is not empty, or cannot be written to.
        """
        with one_line_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = take_lock(folder)
            try:
                there = [file for file in folder.iterdir() if file.name not in (LOCK_FILE, f"{DATABASE}.new")]
                if there and not replace:
                    raise RunError(f"{folder} exists and is not empty; choose another place for the index")
                for file in there:
                    if (
                        file.name.startswith(
                            ("index.", "vectors-", "parts-", "engine-", "map.", "head.", "calibration.")
                        )
                        and file.is_file()
                    ):
                        file.unlink()
                for name in file_names(0, meta):
                    (folder / name).write_bytes(b"")
                format = FORMAT_OF_PARTS if meta.get("parts") else FORMAT
                known = {"format": format, "dim": dim, "generation": 0, "rows": 0, "version": 0} | meta
                create_database(folder, known)
            except BaseException:
                lock.release()
                raise
        return cls(folder, write=True, lock=lock)

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, inside a read transaction."""
        self._seen()
        assert self._db is not None
        return self._db

    @property
    def meta(self) -> dict[str, Any]:
        """The values stored by `set_meta`, with `dim`, `generation`, `rows` and `version`."""
        return self._seen().meta

    @property
    def vectors(self) -> np.ndarray:
        """(rows, D) float32, memory-mapped."""
        return self._seen().vectors

    @property
    def parts(self) -> np.ndarray | None:
        """(rows, P, D) float32, memory-mapped: the vectors of the images' parts; None if the index keeps none."""
        return self._seen().parts

    def _seen(self) -> _State:
        state = self._state
        if state is None:
            raise RunError(f"{self.folder} is closed, or could not be refreshed; open it again")
        return state

    @property
    def rows(self) -> int:
        """How many rows of the vectors are in use, gaps included."""
        return len(self.vectors)

    def vector_names(self, generation: int) -> list[str]:
        """The names of the files of vectors: that of the images and, if it keeps them, that of their parts."""
        return file_names(generation, self.meta)

    def refresh(self) -> bool:
        """Moves to the latest state.

        Returns:
            Whether it differs from the previous one.

        Raises:
            RunError: The latest state cannot be read. The store cannot be used until a refresh succeeds.
        """
        try:
            # Other threads that ask for the state meanwhile get the old one until the new one is complete.
            state = self._newest()
        except BaseException:
            self._state = None
            raise
        changed = state is not self._state
        self._state = state
        return changed

    def _newest(self) -> _State:
        old = self._state
        with one_line_errors(self.folder):
            self._connect()
            assert self._db is not None
            if self._db.in_transaction:
                self._db.execute("COMMIT")
            for attempt in range(REFRESH_ATTEMPTS):
                self._db.execute("BEGIN")
                meta = self._read_meta(self._db)
                if old is not None and meta == old.meta:
                    return old
                try:
                    vectors, parts = self._mapped(meta)
                    break
                except FileNotFoundError as error:
                    # A writer replaced the vector file between the two steps.
                    self._db.execute("COMMIT")
                    if attempt == REFRESH_ATTEMPTS - 1:
                        raise RunError(f"{self.folder} is damaged: {error.filename} does not exist") from None
                    time.sleep(REFRESH_POLL_SECONDS)
            if old is None or meta["generation"] != old.meta["generation"]:
                self._checked_rows = 0
            small = sum(array.nbytes for array in given(vectors, parts)) <= QUICK_CHECK_BYTES
            if small and not self._repair and (meta.get("stamp") or None) != stamp_of(self.folder, meta):
                self._compare(self._db, vectors, parts)
            self._checked_rows = len(vectors)
        return _State(meta, vectors, parts)

    def _read_meta(self, db: sqlite3.Connection) -> dict[str, Any]:
        meta = {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}
        if meta.get("format") not in (FORMAT, FORMAT_OF_PARTS):
            raise RunError(
                f"{self.folder} has index format {meta.get('format')}, but this version reads format {FORMAT}; "
                f"move it away and recreate it with {command('index')} add"
            )
        return meta

    def _connect(self) -> None:
        """Opens the database, or reopens it if a copy is being read and the file has changed."""
        if self._copied is not None and self._copied != file_version(self.folder / DATABASE):
            assert self._db is not None
            self._db.close()
            self._db = None
        if self._db is None:
            self._db, self._copied = connect(self.folder, write=self._lock is not None)

    def _mapped(self, meta: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Maps the vectors of the images and those of their parts into memory."""
        rows, dim, pieces = meta["rows"], meta["dim"], len(windows(meta.get("parts", 0)))
        files = [self.folder / name for name in file_names(meta["generation"], meta)]
        vectors = map_vectors(files[0], rows, dim, repair=self._repair)
        if not pieces:
            return vectors, None
        if self._repair and not files[1].exists():
            return vectors, np.zeros((rows, pieces, dim), np.float32)
        return vectors, map_vectors(files[1], rows, pieces * dim, repair=self._repair).reshape(rows, pieces, dim)

    def _compare(self, db: sqlite3.Connection, vectors: np.ndarray, parts: np.ndarray | None) -> None:
        """Compares the checksums of the segments that have not been compared yet."""
        if any(True for _ in damaged_segments(db, vectors, parts, self._checked_rows)):
            raise RunError(
                f"the vectors in {self.folder} were altered or damaged: a checksum differs; find out what is lost with "
                f"{command('index')} verify, and repair it with --repair"
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Makes a change atomically; afterwards the store is at the new state.

        Yields:
            The connection, inside a write transaction.

        Raises:
            RunError: The disk is full, the folder cannot be written to, or the index was opened for reading.
        """
        if self._lock is None:
            raise RunError(f"{self.folder} was opened for reading; open it with write=True")
        db = self.db
        with one_line_errors(self.folder):
            db.execute("COMMIT")
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                self.set_meta("version", self.meta["version"] + 1)
                self.set_meta("stamp", stamp_of(self.folder, self._read_meta(db)))
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first failure is the one to report
                    db.execute("ROLLBACK")
                with suppress(RunError):
                    self.refresh()
                raise
        self.refresh()

    def set_meta(self, key: str, value: Any) -> None:
        """Stores a plain value, inside a transaction."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def append(self, vectors: np.ndarray) -> int:
        """Writes vectors after the rows in use; call it at most once per transaction.

        Args:
            vectors: (n, D) float32, or with parts (n, 1 + P, D).

        Returns:
            The row of the first vector.
        """
        start = self.rows
        arrays = [vectors[:, 0], vectors[:, 1:]] if vectors.ndim == 3 else [vectors]
        arrays = [np.ascontiguousarray(array, np.float32) for array in arrays]
        for name, array in zip(self.vector_names(self.meta["generation"]), arrays, strict=True):
            append_rows(self.folder / name, array, start)
        crc = joined_checksum([zlib.crc32(array.data) for array in arrays])
        self.db.execute("INSERT INTO segments VALUES (?, ?, ?)", (start, len(vectors), crc))
        self.set_meta("rows", start + len(vectors))
        self._checked_rows = start + len(vectors)  # more than there are rows, if the transaction fails
        return start

    def forget_engine(self) -> None:
        """Drops the description of the engine, inside a transaction, but keeps the choice of engine."""
        self.db.execute(FORGET_ENGINE)

    def _remove_strays(self) -> None:
        """Removes what a killed process left behind."""
        known = {*self.vector_names(self.meta["generation"]), self.meta.get("engine_file")}
        with one_line_errors(self.folder):
            for file in self.folder.iterdir():
                if file.name not in known and file.suffix in (".f32", ".faiss", ".i8"):
                    self.remove_file(file.name)

    def remove_file(self, name: str) -> None:
        """Removes a file from the folder; on Windows, a file in use is left for the next writer to remove."""
        with suppress(PermissionError) if os.name == "nt" else nullcontext():
            (self.folder / name).unlink(missing_ok=True)

    def copy(self, folder: Path) -> None:
        """Copies the store's current state to a new folder, without its engine.

        Raises:
            RunError: The folder already exists or cannot be written.
        """
        with one_line_errors(folder):
            if folder.exists():
                raise RunError(f"{folder} exists; choose another place for the copy")
            with new_folder(folder, replace=False) as temporary:
                target = sqlite3.connect(temporary / DATABASE, isolation_level=None)
                try:
                    self.db.backup(target)
                    target.execute("PRAGMA journal_mode = WAL")
                    target.execute(FORGET_ENGINE)
                finally:
                    target.close()
                names = self.vector_names(self.meta["generation"])
                for name, array in zip(names, given(self.vectors, self.parts), strict=True):
                    write_rows(temporary / name, array, np.arange(self.rows))
                for name in KEPT_FILES:
                    if (self.folder / name).is_file():
                        shutil.copyfile(self.folder / name, temporary / name)

    def file_bytes(self) -> int:
        """The total size of the files in the folder; a writer may remove some of them meanwhile."""
        size = 0
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):
                size += file.stat().st_size if file.is_file() else 0
        return size

    def close(self) -> None:
        """Closes the database and releases the lock."""
        self._state = None
        db, self._db = self._db, None
        if db is not None:
            db.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def __del__(self) -> None:
        if sys.meta_path is not None:  # else Python is exiting, and the system releases the lock
            self.close()
