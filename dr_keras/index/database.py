"""The database of an index: its tables, opening connections to it, and translating its errors."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.atomic_files import sync_names
from dr_keras.data.exif import distance_km
from dr_keras.errors import RunError
from dr_keras.invocation import command

FORMAT, FORMAT_OF_PARTS = 2, 3  # versions that know no parts would remove their vectors
DATABASE = "index.sqlite"
BUSY_TIMEOUT_SECONDS = 30
COPY_ATTEMPTS = 100  # at copying the database while another process writes to it
COPY_POLL_SECONDS = 0.05
# An I/O error with less free space than this is taken for a full disk: SQLite grows the file that coordinates its log
# by half as much.
FULL_DISK_BYTES = 2**16

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

FileVersion = tuple[int, int]  # size in bytes and mtime_ns, which change whenever the file does


def create_database(folder: Path, meta: dict[str, Any]) -> None:
    """Creates the database of an empty index, atomically.

    Args:
        folder: The index's folder.
        meta: The content of the `meta` table: plain values by key.
    """
    unfinished = folder / f"{DATABASE}.new"
    unfinished.unlink(missing_ok=True)
    db = sqlite3.connect(unfinished, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(SCHEMA)
        pairs = [(key, json.dumps(value)) for key, value in meta.items()]
        db.executemany("INSERT INTO meta VALUES (?, ?)", pairs)
    finally:
        db.close()
    unfinished.replace(folder / DATABASE)  # now there is an index
    sync_names(folder)


def connect(folder: Path, *, write: bool) -> tuple[sqlite3.Connection, FileVersion | None]:
    """Opens the database of an index.

    Returns:
        The connection, and the version of the file that was copied if it reads an in-memory copy, else None.
    """
    address = (folder / DATABASE).absolute().as_uri()

    def opened(mode: str) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"{address}?{mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT_SECONDS,
        )
        return _checked(db)

    if write:
        db = opened("mode=rw")
        db.execute("PRAGMA synchronous = FULL")  # an acknowledged change survives a power failure
        db.execute("CREATE INDEX IF NOT EXISTS images_time ON images (mtime_ns)")  # older indexes lack it
        return db, None
    # The last connection to close removes the files that SQLite keeps next to an open database, if it can write; a
    # read-only connection leaves them behind.
    with suppress(sqlite3.OperationalError):
        db = opened("mode=rw")
        db.execute("PRAGMA query_only = ON")
        return db, None
    with suppress(sqlite3.OperationalError):
        return opened("mode=ro"), None
    # SQLite cannot create the files that coordinate readers with a writer.
    if _is_read_only(folder):
        return opened("immutable=1"), None
    return _copy_in_memory(folder)


def file_version(file: Path) -> FileVersion:
    """The size of a file in bytes and its mtime_ns."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def as_text(value: str) -> bytes:
    """Text as the database stores it: file names need not be valid UTF-8."""
    return value.encode("utf-8", "surrogateescape")


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turns errors of the system or SQLite about the files in a folder into a one-line `RunError`."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        reason = "no space left on device" if _disk_is_full(folder, error) else error
        raise RunError(f"{folder} cannot be used: {reason}") from error
    except sqlite3.DatabaseError as error:
        raise RunError(
            f"{folder / DATABASE} is damaged: {error}; move {folder} away and recreate the index with "
            f"{command('index')} add"
        ) from error
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{folder} cannot be used: {getattr(error, 'strerror', None) or error}") from error


def _checked(db: sqlite3.Connection) -> sqlite3.Connection:
    db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    db.create_function("distance_km", 4, _distance, deterministic=True)
    try:
        db.execute("SELECT count(*) FROM meta")
    except BaseException:
        db.close()
        raise
    return db


def _distance(*degrees: Any) -> float | None:
    """`distance_km`, for conditions; None, as in SQL, unless all four are numbers."""
    return distance_km(*degrees) if all(isinstance(number, int | float) for number in degrees) else None


def renumber(db: sqlite3.Connection, kept: np.ndarray) -> None:
    """Renumbers the images in rows `kept`, (n,) int64 ascending, to rows 0 to n - 1."""
    hidden = {row for (row,) in db.execute("SELECT row FROM hidden")}
    db.execute("DELETE FROM hidden")
    still_hidden = ((new,) for new, old in enumerate(kept.tolist()) if old in hidden)
    db.executemany("INSERT INTO hidden VALUES (?)", still_hidden)
    # In ascending order each new number is free, as it never exceeds the old one.
    moved = ((new, old) for new, old in enumerate(kept.tolist()) if new != old)
    db.executemany("UPDATE images SET row = ? WHERE row = ?", moved)


def _is_read_only(folder: Path) -> bool:
    """Whether the folder's file system is mounted read-only, so that nobody can write to the index in the meantime."""
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _copy_in_memory(folder: Path) -> tuple[sqlite3.Connection, FileVersion]:
    """Reads a copy of the database, since another user may be writing to it."""
    file, log = folder / DATABASE, folder / f"{DATABASE}-wal"
    for _ in range(COPY_ATTEMPTS):
        before = file_version(file)
        data = bytearray(file.read_bytes())
        if before == file_version(file) and not (log.exists() and log.stat().st_size):
            data[18:20] = b"\1\1"  # an in-memory copy has no log
            db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            db.deserialize(bytes(data))
            return _checked(db), before
        time.sleep(COPY_POLL_SECONDS)
    raise RunError(f"{folder} is being changed, and may not be written here, which reading it during a change requires")


def _disk_is_full(folder: Path, error: sqlite3.Error) -> bool:
    """Whether SQLite ran out of space, which it reports as an I/O error when it cannot grow a file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return True
    with suppress(OSError):
        return code == sqlite3.SQLITE_IOERR and shutil.disk_usage(folder).free < FULL_DISK_BYTES
    return False
