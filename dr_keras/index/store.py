"""The files of an index: an SQLite database that knows the images, and one file of vectors that only ever grows.

    index.sqlite       what is known of each image and in which row its vector lies; which rows are not searched
    vectors-G.f32      float32 (rows, D), row after row; G counts how often it was written anew without its gaps
    engine-....faiss   where one was built: an approximate index over the first rows, made again from the vectors
    map.npz            where `index.py map` made one: where images lie in the page's map (`dr_keras.index.umap_layout`)
    lock               held by the one process that writes

A change first appends its vectors behind the rows that are in use and brings them to the disk, then commits its
transaction. Killed before that, it has changed nothing: what lies behind the rows in use is overwritten by the next
change. No row in use is ever written again, so readers may map the file while others write. A reader keeps one SQLite
snapshot until it asks for a newer one; with a write-ahead log neither it nor the writer waits for the other.
"""

import fcntl
import json
import os
import shutil
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.atomic_files import sync_names
from dr_keras.errors import InputError, RunError

FORMAT = 2
DATABASE = "index.sqlite"
BLOCK = 65536  # vectors copied at a time
FULL_BYTES = 2**16  # of free space: SQLite makes the file that coordinates its log half as large
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
CREATE INDEX images_time ON images (mtime_ns);
CREATE TABLE hidden (row INTEGER PRIMARY KEY);
CREATE TABLE segments (start INTEGER PRIMARY KEY, count INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE skipped (id TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reason TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class _State:
    """What a store sees: its meta values, and its vectors (rows, D)."""

    meta: dict[str, Any]
    vectors: np.ndarray


class Store:
    """The files of one index, at one moment; `refresh` moves on to the newest. See the module's text.

    Args:
        folder: where `create` made it.
        write: take the lock and allow changes.
        repair: open it although its vectors are damaged; what is missing of their file reads as zeros.
        lock: a lock that is held already.

    Attributes:
        folder: the folder.

    Raises:
        RunError: there is no index, another process writes to it, or it is damaged.
    """

    def __init__(self, folder: Path, *, write: bool = False, repair: bool = False, lock: int | None = None) -> None:
        self.folder = folder
        self._state: _State | None = None
        self._db: sqlite3.Connection | None = None
        self._lock = lock
        self._repair = repair
        self._checked = 0  # rows whose checksums were compared
        self._copied: tuple[int, int] | None = None  # size and time of the database, where a copy of it is read
        try:
            if not (folder / DATABASE).is_file():
                raise RunError(f"{folder} is no index: {folder / DATABASE} does not exist")
            if write and lock is None:
                self._lock = take_lock(folder)
            self.refresh()
            if write:
                self._remove_strays()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(folder: Path, dim: int, meta: dict[str, Any]) -> None:
        """Makes the files of an index without images in a folder that is there and is locked or not known to others.

        Args:
            folder: the folder.
            dim: D, the length of a vector.
            meta: what else shall be known of it; plain values.
        """
        with saying(folder):
            (folder / _vectors_name(0)).write_bytes(b"")
            unfinished = folder / f"{DATABASE}.new"
            unfinished.unlink(missing_ok=True)
            db = sqlite3.connect(unfinished, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                known = {"format": FORMAT, "dim": dim, "generation": 0, "rows": 0, "version": 0} | meta
                db.executescript(SCHEMA)
                pairs = [(key, json.dumps(value)) for key, value in known.items()]
                db.executemany("INSERT INTO meta VALUES (?, ?)", pairs)
            finally:
                db.close()
            unfinished.replace(folder / DATABASE)  # now there is an index
            sync_names(folder)

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, inside a transaction that reads."""
        if self._db is None or self._state is None:
            raise RunError(f"{self.folder} is closed, or could not be refreshed; open it again")
        return self._db

    @property
    def meta(self) -> dict[str, Any]:
        """What was kept with `set_meta`, and `dim`, `generation`, `rows` and `version`."""
        if self._state is None:
            raise RunError(f"{self.folder} is closed, or could not be refreshed; open it again")
        return self._state.meta

    @property
    def vectors(self) -> np.ndarray:
        """(rows, D) float32, memory-mapped."""
        if self._state is None:
            raise RunError(f"{self.folder} is closed, or could not be refreshed; open it again")
        return self._state.vectors

    @property
    def rows(self) -> int:
        """How many rows of the vectors are in use, gaps included."""
        return len(self.vectors)

    @property
    def vectors_file(self) -> Path:
        return self.folder / _vectors_name(self.meta["generation"])

    def refresh(self) -> bool:
        """Moves to the newest state; returns whether it is another one.

        Raises:
            RunError: that cannot be read. The store is of no use then until a refresh succeeds.
        """
        try:
            # Other threads ask for the state meanwhile: it is the old one until the new one is complete.
            state = self._newest()
        except BaseException:
            self._state = None
            raise
        changed = state is not self._state
        self._state = state
        return changed

    def _newest(self) -> _State:
        old = self._state
        with saying(self.folder):
            self._connect()
            assert self._db is not None
            if self._db.in_transaction:
                self._db.execute("COMMIT")
            for attempt in range(100):
                self._db.execute("BEGIN")
                meta = {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM meta")}
                if meta.get("format") != FORMAT:
                    raise RunError(
                        f"{self.folder} has index format {meta.get('format')}, this version reads {FORMAT}; "
                        "move it away and make it again with index.py add"
                    )
                if old is not None and meta == old.meta:
                    return old
                file = self.folder / _vectors_name(meta["generation"])
                try:
                    vectors = self._map(file, meta["rows"], meta["dim"])
                    break
                except FileNotFoundError:
                    # A writer has put a new file of vectors in place between the two steps.
                    self._db.execute("COMMIT")
                    if attempt == 99:
                        raise RunError(f"{self.folder} is damaged: {file} does not exist") from None
                    time.sleep(0.01)
            if old is None or meta["generation"] != old.meta["generation"]:
                self._checked = 0
            if not self._repair and vectors.nbytes <= QUICK:
                self._compare(self._db, file, vectors)
            self._checked = len(vectors)
        return _State(meta, vectors)

    def _connect(self) -> None:
        """Opens the database, and opens it again where a copy of it is read and it has changed."""
        if self._copied is not None and self._copied != _stamp(self.folder / DATABASE):
            assert self._db is not None
            self._db.close()
            self._db = None
        if self._db is None:
            self._db, self._copied = _connect(self.folder, write=self._lock is not None)

    def _map(self, file: Path, rows: int, dim: int) -> np.ndarray:
        size = file.stat().st_size
        wanted = rows * dim * 4
        if size < wanted and not self._repair:
            raise RunError(
                f"{file} is damaged: it has {size:,} bytes and should have {wanted:,}; mend it with "
                "index.py verify --repair"
            )
        if not rows:
            return np.empty((0, dim), np.float32)
        if size < wanted:
            there = np.fromfile(file, np.float32, count=size // 4)
            return np.concatenate([there, np.zeros(rows * dim - len(there), np.float32)]).reshape(rows, dim)
        return np.memmap(file, np.float32, "r", shape=(rows, dim))

    def _compare(self, db: sqlite3.Connection, file: Path, vectors: np.ndarray) -> None:
        """Compares the checksums of the blocks that were not compared before."""
        if any(True for _ in damaged_blocks(db, vectors, self._checked)):
            raise RunError(
                f"{file} was altered or damaged: a checksum differs; find out what is lost with index.py verify, and "
                "mend it with --repair"
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Makes a change: all of it, or on an error nothing; afterwards the store is at the new state.

        Raises:
            RunError: the disk is full, the folder may not be written, or the index was not opened for writing.
        """
        if self._lock is None:
            raise RunError(f"{self.folder} was opened for reading; open it with write=True")
        db = self.db
        with saying(self.folder):
            db.execute("COMMIT")
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                self.set_meta("version", self.meta["version"] + 1)
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the failure itself is what has to be told
                    db.execute("ROLLBACK")
                with suppress(RunError):
                    self.refresh()
                raise
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
        self._checked = start + len(vectors)  # if the transaction fails, fewer rows are there than were compared
        return start

    def compact(self) -> None:
        """Writes the vectors anew without the rows that no image has. Rows get other numbers; engines are dropped."""
        generation = self.meta["generation"] + 1
        file = self.folder / _vectors_name(generation)
        old_file = self.vectors_file
        old_engine = self.meta.get("engine_file")
        try:
            with self.transaction() as db:
                kept = np.fromiter((row for (row,) in db.execute("SELECT row FROM images ORDER BY row")), np.int64)
                with open(file, "wb") as out:
                    crc = 0
                    for start in range(0, len(kept), BLOCK):
                        part = np.ascontiguousarray(self.vectors[kept[start : start + BLOCK]]).data
                        crc = zlib.crc32(part, crc)
                        out.write(part)
                    out.flush()
                    os.fsync(out.fileno())
                sync_names(self.folder)
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
                self.forget_engine()
        except BaseException:
            # An error may also come when the change is made and its result is looked at: then the file is needed.
            if self._state is not None and self.meta["generation"] != generation:
                file.unlink(missing_ok=True)
            raise
        old_file.unlink(missing_ok=True)
        if old_engine:
            (self.folder / old_engine).unlink(missing_ok=True)

    def forget_engine(self) -> None:
        """Drops what is known of the engine, inside a transaction; which one was chosen stays."""
        self.db.execute("DELETE FROM meta WHERE key LIKE 'engine%' AND key != 'engine'")

    def _remove_strays(self) -> None:
        """Removes what a process that was killed has left behind."""
        known = {self.vectors_file.name, self.meta.get("engine_file")}
        with saying(self.folder):
            for file in self.folder.iterdir():
                if file.name not in known and file.suffix in (".f32", ".faiss"):
                    file.unlink(missing_ok=True)

    def copy(self, folder: Path) -> None:
        """Copies the state that is seen into an empty folder, without its engine."""
        with saying(folder):
            target = sqlite3.connect(folder / DATABASE, isolation_level=None)
            try:
                self.db.backup(target)
                target.execute("PRAGMA journal_mode = WAL")
                target.execute("DELETE FROM meta WHERE key LIKE 'engine%' AND key != 'engine'")
            finally:
                target.close()
            with open(folder / self.vectors_file.name, "wb") as out:
                out.write(self.vectors.data if self.rows else b"")
                out.flush()
                os.fsync(out.fileno())

    def close(self) -> None:
        """Closes the database and gives the lock back."""
        self._state = None
        db, self._db = self._db, None
        if db is not None:
            db.close()
        lock, self._lock = self._lock, None  # first: whoever closes a descriptor twice closes somebody else's file
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a forked child may hold the descriptor still
            os.close(lock)

    def __del__(self) -> None:
        if sys.meta_path is not None:  # else Python is ending, and the system gives the lock back
            self.close()


def damaged_blocks(db: sqlite3.Connection, vectors: np.ndarray, start: int = 0) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each block of vectors, from row `start` on, whose checksum differs."""
    for first, count, crc in db.execute("SELECT start, count, crc FROM segments WHERE start >= ?", (start,)):
        if zlib.crc32(vectors[first : first + count].data) != crc:
            yield first, count


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
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        reason = "no space left on device" if _disk_is_full(folder, error) else error
        raise RunError(f"{folder} cannot be used: {reason}") from error
    except sqlite3.DatabaseError as error:
        raise RunError(
            f"{folder / DATABASE} is damaged: {error}; move {folder} away and make the index again with index.py add"
        ) from error
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{folder} cannot be used: {getattr(error, 'strerror', None) or error}") from error


def _disk_is_full(folder: Path, error: sqlite3.Error) -> bool:
    """Whether SQLite failed for want of space, which it also calls an I/O error where it made a file larger in vain."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return True
    with suppress(OSError):
        return code == sqlite3.SQLITE_IOERR and shutil.disk_usage(folder).free < FULL_BYTES
    return False


def _vectors_name(generation: int) -> str:
    return f"vectors-{generation}.f32"


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _connect(folder: Path, *, write: bool) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
    """A connection, and the size and time of the database where the connection is to a copy of it."""
    address = (folder / DATABASE).absolute().as_uri()

    def connect(mode: str) -> sqlite3.Connection:
        return _tested(
            sqlite3.connect(f"{address}?{mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=30)
        )

    if write:
        db = connect("mode=rw")
        db.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a loss of power
        db.execute("CREATE INDEX IF NOT EXISTS images_time ON images (mtime_ns)")  # as an index made before has none
        return db, None
    # A connection that could write removes, when it is closed as the last, the files that SQLite keeps beside the
    # database while it is in use; one that can only read leaves them.
    with suppress(sqlite3.OperationalError):
        db = connect("mode=rw")
        db.execute("PRAGMA query_only = ON")
        return db, None
    with suppress(sqlite3.OperationalError):
        return connect("mode=ro"), None
    # SQLite cannot make the files beside a database that coordinate readers with a writer.
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return connect("immutable=1"), None
    # Another user may write meanwhile, so a copy is read. What is still in the log cannot be seen.
    log = folder / f"{DATABASE}-wal"
    for _ in range(100):
        before = _stamp(folder / DATABASE)
        data = bytearray((folder / DATABASE).read_bytes())
        if before == _stamp(folder / DATABASE) and not (log.exists() and log.stat().st_size):
            data[18:20] = b"\1\1"  # a copy in memory has no log
            db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            db.deserialize(bytes(data))
            return _tested(db), before
        time.sleep(0.05)
    raise RunError(f"{folder} is being changed, and may not be written here, which reading it meanwhile needs")


def _tested(db: sqlite3.Connection) -> sqlite3.Connection:
    db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    try:
        db.execute("SELECT count(*) FROM meta")
    except BaseException:
        db.close()
        raise
    return db


def take_lock(folder: Path) -> int:
    """Takes the lock of a folder until the process ends or the descriptor is unlocked and closed.

    Raises:
        Locked: another process has it.
        RunError: the folder may not be written.
    """
    with saying(folder):
        while True:
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_ino == (folder / "lock").stat().st_ino:
                    break
            except BlockingIOError:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise Locked(
                    f"{folder} is being written to by {holder or 'another process'}; wait until that is done"
                ) from None
            except FileNotFoundError:
                pass  # the file was removed, or another put in its place, before it was locked
            os.close(descriptor)
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
