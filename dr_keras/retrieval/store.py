"""The files of an index: an SQLite database that knows the images, and one file of vectors that only ever grows.

    index.sqlite       what is known of each image and in which row its vector lies; which rows are not searched
    vectors-G.f32      float32 (rows, D), row after row; G counts how often it was written anew without its gaps
    engine-....faiss   where one was built: an approximate index over the first rows, made again from the vectors
    lock               held by the one process that writes

A change first appends its vectors behind the rows that are in use and brings them to the disk, then commits its
transaction. Killed before that, it has changed nothing: what lies behind the rows in use is overwritten by the next
change. No row in use is ever written again, so readers may map the file while others write. A reader keeps one SQLite
snapshot until it asks for a newer one; with a write-ahead log neither it nor the writer waits for the other.
"""

import fcntl
import json
import os
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.errors import InputError, RunError

FORMAT = 2
DATABASE = "index.sqlite"
QUICK = 128 * 2**20  # bytes of vectors whose checksums are compared whenever they are opened: a tenth of a second

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE classes (label TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    label TEXT NOT NULL,
    split TEXT NOT NULL,
    hash BLOB,
    size INTEGER,
    mtime_ns INTEGER,
    attributes TEXT NOT NULL,
    crc INTEGER NOT NULL
);
CREATE INDEX images_name ON images (name);
CREATE INDEX images_label ON images (label);
CREATE TABLE hidden (row INTEGER PRIMARY KEY);
CREATE TABLE segments (start INTEGER PRIMARY KEY, count INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE skipped (id TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reason TEXT NOT NULL) WITHOUT ROWID;
"""


class Store:
    """The files of one index, at one moment; `refresh` moves on to the newest. See the module's text.

    Args:
        folder: where `create` made it.
        write: take the lock and allow changes.
        repair: open it although its vectors are damaged; what is missing of their file reads as zeros.

    Attributes:
        folder: the folder.
        db: the connection, inside a transaction that reads.
        meta: what was kept with `set_meta`, and `dim`, `generation`, `rows` and `version`.
        vectors: (rows, D) float32, memory-mapped.

    Raises:
        RunError: there is no index, another process writes to it, or it is damaged.
    """

    def __init__(self, folder: Path, *, write: bool = False, repair: bool = False) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = {}
        self.vectors = np.empty((0, 0), np.float32)
        self._lock: int | None = None
        self._checked = 0  # rows whose checksums were compared
        if not (folder / DATABASE).is_file():
            raise RunError(f"{folder} is no index: {folder / DATABASE} does not exist")
        if write:
            self._lock = _lock(folder)
        try:
            with saying(folder):
                self.db = _connect(folder, write=write)
            self._repair = repair
            self.refresh()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(folder: Path, dim: int, meta: dict[str, Any]) -> None:
        """Makes the files of an index without images in a folder that is there.

        Args:
            folder: the folder.
            dim: D, the length of a vector.
            meta: what else shall be known of it; plain values.
        """
        with saying(folder):
            (folder / _vectors_name(0)).touch()
            db = sqlite3.connect(folder / DATABASE, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                known = {"format": FORMAT, "dim": dim, "generation": 0, "rows": 0, "version": 0} | meta
                # One transaction, or a process that is killed in the middle leaves a database with half its tables.
                db.executescript(f"BEGIN; {SCHEMA}")
                pairs = [(key, json.dumps(value)) for key, value in known.items()]
                db.executemany("INSERT INTO meta VALUES (?, ?)", pairs)
                db.execute("COMMIT")
            finally:
                db.close()

    @property
    def rows(self) -> int:
        """How many rows of the vectors are in use, gaps included."""
        return len(self.vectors)

    @property
    def vectors_file(self) -> Path:
        return self.folder / _vectors_name(self.meta["generation"])

    def refresh(self) -> bool:
        """Moves to the newest state; returns whether it is another one."""
        with saying(self.folder):
            if self.db.in_transaction:
                self.db.execute("COMMIT")
            for _ in range(100):  # a writer may put a new file of vectors in place between the two steps
                self.db.execute("BEGIN")
                meta = {key: json.loads(value) for key, value in self.db.execute("SELECT key, value FROM meta")}
                if meta.get("format") != FORMAT:
                    raise RunError(
                        f"{self.folder} has index format {meta.get('format')}, this version reads {FORMAT}; "
                        "make it again with index.py add"
                    )
                changed = meta != self.meta
                if not changed:
                    return False
                file = self.folder / _vectors_name(meta["generation"])
                try:
                    vectors = self._map(file, meta["rows"], meta["dim"])
                    break
                except FileNotFoundError:
                    self.db.execute("COMMIT")
                    time.sleep(0.01)
            else:
                raise RunError(f"{self.folder} is damaged: {file} does not exist")
            if meta["generation"] != self.meta.get("generation"):
                self._checked = 0
            self.meta, self.vectors = meta, vectors
            if not self._repair and vectors.nbytes <= QUICK:
                self._compare(self._checked)
            self._checked = len(vectors)
        return True

    def _map(self, file: Path, rows: int, dim: int) -> np.ndarray:
        size = file.stat().st_size
        wanted = rows * dim * 4
        if size < wanted and self._repair:
            os.truncate(file, wanted)
        elif size < wanted:
            raise RunError(
                f"{file} is damaged: it has {size:,} bytes and should have {wanted:,}; mend it with "
                "index.py verify --repair"
            )
        if not rows:
            return np.empty((0, dim), np.float32)
        return np.memmap(file, np.float32, "r", shape=(rows, dim))

    def _compare(self, start: int) -> None:
        """Compares the checksums of the segments from a row on."""
        for first, count, crc in self.db.execute("SELECT start, count, crc FROM segments WHERE start >= ?", (start,)):
            if zlib.crc32(self.vectors[first : first + count].data) != crc:
                raise RunError(
                    f"{self.vectors_file} was altered or damaged: a checksum differs; find out what is lost with "
                    "index.py verify, and mend it with --repair"
                )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Makes a change: all of it, or on an error nothing; afterwards the store is at the new state.

        Raises:
            RunError: the disk is full, the folder may not be written, or the index was not opened for writing.
        """
        if self._lock is None:
            raise RunError(f"{self.folder} was opened for reading; open it with write=True")
        with saying(self.folder):
            if self.db.in_transaction:
                self.db.execute("COMMIT")
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.set_meta("version", self.meta["version"] + 1)
                self.db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the failure itself is what has to be told
                    self.db.execute("ROLLBACK")
                self.meta = {}  # so that `refresh` maps the vectors again
                self.refresh()
                raise
            self._checked = max(self._checked, self.rows)
            self.refresh()

    def set_meta(self, key: str, value: Any) -> None:
        """Keeps a plain value, inside a transaction."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def append(self, vectors: np.ndarray) -> int:
        """Writes vectors (n, D) behind the rows in use, inside a transaction, at most once in it.

        Returns:
            The row of the first.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        start = self.rows
        end = start * self.meta["dim"] * 4
        with open(self.vectors_file, "r+b", buffering=0) as file:
            try:
                _write_all(file.fileno(), vectors, end)
                os.fdatasync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)  # a full disk gets back what was written in vain
                raise
        self.db.execute("INSERT INTO segments VALUES (?, ?, ?)", (start, len(vectors), zlib.crc32(vectors.data)))
        self.set_meta("rows", start + len(vectors))
        self._checked = start + len(vectors)
        return start

    def compact(self) -> None:
        """Writes the vectors anew without the rows that no image has. Rows get other numbers; engines are dropped."""
        old_engine = self.meta.get("engine_file")
        old_file = self.vectors_file
        generation = self.meta["generation"] + 1
        file = self.folder / _vectors_name(generation)
        try:
            with self.transaction() as db:
                kept = np.fromiter((row for (row,) in db.execute("SELECT row FROM images ORDER BY row")), np.int64)
                with open(file, "wb") as out:
                    crc = 0
                    for start in range(0, len(kept), 65536):
                        part = np.ascontiguousarray(self.vectors[kept[start : start + 65536]]).data
                        crc = zlib.crc32(part, crc)
                        out.write(part)
                    out.flush()
                    os.fsync(out.fileno())
                # In ascending order each new number is free: it is never above the old one.
                moved = ((new, old) for new, old in enumerate(kept.tolist()) if new != old)
                hidden = {row for (row,) in db.execute("SELECT row FROM hidden")}
                db.execute("DELETE FROM hidden")
                places = ((new,) for new, old in enumerate(kept.tolist()) if old in hidden)
                db.executemany("INSERT INTO hidden VALUES (?)", places)
                db.executemany("UPDATE images SET row = ? WHERE row = ?", moved)
                db.execute("DELETE FROM segments")
                if len(kept):
                    db.execute("INSERT INTO segments VALUES (0, ?, ?)", (len(kept), crc))
                self.set_meta("rows", len(kept))
                self.set_meta("generation", generation)
                db.execute("DELETE FROM meta WHERE key LIKE 'engine%' AND key != 'engine'")
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        old_file.unlink(missing_ok=True)
        if old_engine:
            (self.folder / old_engine).unlink(missing_ok=True)

    def remove_strays(self) -> None:
        """Removes the files that a process which was killed left behind; the writer does it."""
        known = {self.vectors_file.name, self.meta.get("engine_file")}
        for file in self.folder.iterdir():
            if file.name not in known and (file.suffix in (".f32", ".faiss")):
                file.unlink(missing_ok=True)

    def copy(self, folder: Path) -> None:
        """Copies the state that is seen into an empty folder, without its engine."""
        with saying(folder):
            target = sqlite3.connect(folder / DATABASE, isolation_level=None)
            try:
                target.execute("PRAGMA journal_mode = WAL")
                self.db.backup(target)
                target.execute("DELETE FROM meta WHERE key LIKE 'engine%' AND key != 'engine'")
            finally:
                target.close()
            with open(folder / self.vectors_file.name, "wb") as out:
                out.write(self.vectors.data if self.rows else b"")
                out.flush()
                os.fsync(out.fileno())

    def close(self) -> None:
        """Closes the database and gives the lock back."""
        if hasattr(self, "db"):
            self.db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _write_all(descriptor: int, vectors: np.ndarray, place: int) -> None:
    data = vectors.data.cast("B")
    while data:
        written = os.pwrite(descriptor, data, place)
        place, data = place + written, data[written:]


@contextmanager
def saying(folder: Path) -> Iterator[None]:
    """Makes one line of what the system or SQLite says of a folder's files."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RunError(f"{folder} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise RunError(
            f"{folder / DATABASE} is damaged: {error}; make the index again with index.py add, or from a copy"
        ) from error
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{folder} cannot be used: {getattr(error, 'strerror', None) or error}") from error


def _vectors_name(generation: int) -> str:
    return f"vectors-{generation}.f32"


def _connect(folder: Path, *, write: bool) -> sqlite3.Connection:
    address = (folder / DATABASE).absolute().as_uri()

    def connect(mode: str) -> sqlite3.Connection:
        db = sqlite3.connect(f"{address}?{mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=30)
        db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        try:
            db.execute("SELECT count(*) FROM meta")
        except BaseException:
            db.close()
            raise
        return db

    if write:
        db = connect("mode=rw")
        db.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a loss of power
        return db
    # A connection that could write removes, when it is closed as the last, the files that SQLite keeps beside the
    # database while it is in use; one that can only read leaves them.
    with suppress(sqlite3.OperationalError):
        db = connect("mode=rw")
        db.execute("PRAGMA query_only = ON")
        return db
    try:
        return connect("mode=ro")
    except sqlite3.OperationalError:
        # SQLite cannot make the files beside a database that coordinate readers with a writer. Where the folder cannot
        # be written and no log lies there, no writer is at work, and the database can be read as it is.
        log = folder / f"{DATABASE}-wal"
        if os.access(folder, os.W_OK) or (log.exists() and log.stat().st_size):
            raise
        return connect("immutable=1")


def _lock(folder: Path) -> int:
    """Takes the lock of a folder until the process ends or the descriptor is closed."""
    with saying(folder):
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Locked(
            f"{folder} is being written to by {holder or 'another process'}; wait until that is done"
        ) from None
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    command = Path(sys.argv[0]).name or "python"
    with suppress(OSError):  # a full disk; the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{command} (process {os.getpid()}, since {since})\n".encode(errors="replace"), 0)
    return descriptor


class Locked(RunError):
    """Another process writes to the index."""


def check_vectors(vectors: np.ndarray, count: int, dim: int) -> np.ndarray:
    """Vectors as an index keeps them.

    Args:
        vectors: what was given.
        count, dim: the shape that it should have.

    Returns:
        (count, dim) float32, contiguous.

    Raises:
        InputError: it has another shape, or a vector is not finite or not of unit length.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.shape != (count, dim):
        raise InputError(f"vectors are {vectors.shape}; expected ({count}, {dim})")
    bad = np.flatnonzero(~(np.abs(lengths(vectors) - 1) < UNIT))
    if len(bad):
        raise InputError(f"vector {bad[0]} is not finite or not of unit length")
    return vectors


UNIT = 1e-3  # how far a vector's length may be from 1; half precision leaves 5e-4


def lengths(vectors: np.ndarray) -> np.ndarray:
    """The length of each vector (N, D): (N,) float32, not finite where the vector is not."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
