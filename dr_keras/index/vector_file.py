"""The file of an index's vectors: float32, row after row, without a header; append-only."""

import io
import math
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.errors import InputError, RunError
from dr_keras.invocation import command

VALUE_BYTES = 4
# Files up to this size are checked against their checksums whenever they are opened, which takes a tenth of a second.
QUICK_CHECK_BYTES = 128 * 2**20
COPY_BLOCK_ROWS = 65536  # vectors copied at a time
LENGTH_TOLERANCE = 1e-3  # how far a vector's length may be from 1; half precision leaves 5e-4


def file_names(generation: int, meta: Mapping[str, Any]) -> list[str]:
    """The names of the files of vectors: that of the images and, if the index keeps parts, that of their parts.

    Args:
        generation: How often they were rewritten without gaps.
        meta: What the index says of itself.
    """
    return [f"{name}-{generation}.f32" for name in ("vectors", *(["parts"] if meta.get("parts") else []))]


def stamp_of(folder: Path, meta: Mapping[str, Any]) -> list[list[int]] | None:
    """What shows that the files of vectors are as the last change left them; None if one is missing.

    The time of the last change of a file's status cannot be set, so a file that was altered has another one.

    Args:
        folder: Of the index.
        meta: What the index says of itself.
    """
    try:
        found = [os.stat(folder / name) for name in file_names(meta["generation"], meta)]
    except OSError:
        return None
    return [[one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns] for one in found]


def given(vectors: np.ndarray, parts: np.ndarray | None) -> list[np.ndarray]:
    """The vectors of images (R, D) and, if there are any, those of their parts (R, P, D)."""
    return [vectors] if parts is None else [vectors, parts]


def joined_checksum(crcs: Sequence[int]) -> int:
    """The checksum of rows, from that in each file: of one file it is the same."""
    return crcs[0] if len(crcs) == 1 else zlib.crc32(struct.pack(f"<{len(crcs)}I", *crcs))


def map_vectors(file: Path, rows: int, dim: int, *, repair: bool) -> np.ndarray:
    """Maps the first rows of a vector file into memory.

    Args:
        file: The file.
        rows: How many rows are in use.
        dim: D, the length of a vector.
        repair: Read rows that are missing from the file as zeros instead of raising.

    Returns:
        (rows, D) float32, read-only.

    Raises:
        FileNotFoundError: There is no such file.
        RunError: The file is too short.
    """
    size = file.stat().st_size
    wanted = rows * dim * VALUE_BYTES
    if size < wanted and not repair:
        raise RunError(
            f"{file} is damaged: it has {size:,} bytes and should have {wanted:,}; repair it with "
            f"{command('index')} verify --repair"
        )
    if not rows:
        return np.empty((0, dim), np.float32)
    if size < wanted:
        there = np.fromfile(file, np.float32, count=size // VALUE_BYTES)
        return np.concatenate([there, np.zeros(rows * dim - len(there), np.float32)]).reshape(rows, dim)
    return np.memmap(file, np.float32, "r", shape=(rows, dim))


def append_rows(file: Path, rows: np.ndarray, start: int) -> None:
    """Writes rows after the first `start` of a file and flushes them to disk.

    Args:
        file: The file; it is missing only while an index is being repaired.
        rows: (n, D) or (n, P, D) float32, contiguous.
        start: How many rows are in use; what follows them is overwritten.

    Raises:
        OSError: They cannot be written; the file is cut after the rows in use.
    """
    end = start * math.prod(rows.shape[1:]) * VALUE_BYTES
    with io.FileIO(file, "r+" if file.exists() else "x+") as stream:
        try:
            write_at(stream, rows, end)
            sync_data(stream)
        except OSError:
            with suppress(OSError):
                stream.truncate(end)  # free the space, such as on a full disk
            raise


def write_at(file: io.FileIO, vectors: np.ndarray, offset: int) -> None:
    """Writes contiguous vectors to an unbuffered file at an offset in bytes."""
    file.seek(offset)
    data = vectors.data.cast("B")
    while data:
        data = data[file.write(data) :]


def sync_data(file: io.FileIO) -> None:
    """Flushes a file's content to disk; where the system allows it, its timestamps may follow later."""
    getattr(os, "fdatasync", os.fsync)(file.fileno())


def write_rows(file: Path, vectors: np.ndarray, rows: np.ndarray) -> int:
    """Writes selected vectors to a new file and flushes it to disk.

    Args:
        file: The file to create.
        vectors: (R, D) or (R, P, D) float32.
        rows: (n,) int64, the rows to write, in this order.

    Returns:
        The CRC-32 of what was written.
    """
    crc = 0
    with open(file, "wb") as out:
        for start in range(0, len(rows), COPY_BLOCK_ROWS):
            block = np.ascontiguousarray(vectors[rows[start : start + COPY_BLOCK_ROWS]]).data
            crc = zlib.crc32(block, crc)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return crc


def damaged_segments(
    db: sqlite3.Connection, vectors: np.ndarray, parts: np.ndarray | None, start: int = 0
) -> Iterator[tuple[int, int]]:
    """Finds the segments, each written by one change, whose checksum differs.

    Args:
        db: The index's database.
        vectors: (R, D) float32.
        parts: (R, P, D) float32, or None.
        start: The row of the first segment to check.

    Yields:
        The first row and the number of rows of each.
    """
    for first, count, crc in db.execute("SELECT start, count, crc FROM segments WHERE start >= ?", (start,)):
        crcs = [zlib.crc32(array[first : first + count].data) for array in given(vectors, parts)]
        if joined_checksum(crcs) != crc:
            yield first, count


def check_vectors(vectors: np.ndarray, count: int, dim: int, parts: int) -> np.ndarray:
    """Checks vectors and converts them to the form that an index stores.

    Args:
        vectors: The given vectors.
        count, dim, parts: How many images, the length of a vector, and how many parts an image has.

    Returns:
        (count, dim), or with parts (count, 1 + parts, dim), float32, contiguous.

    Raises:
        InputError: They have another shape, or a vector is not finite or not of unit length.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    expected = (count, 1 + parts, dim) if parts else (count, dim)
    if vectors.shape != expected:
        raise InputError(f"vectors are {vectors.shape}; expected {expected}")
    bad = np.flatnonzero(~(np.abs(lengths(vectors.reshape(-1, dim)) - 1) < LENGTH_TOLERANCE))
    if len(bad):
        raise InputError(f"vector {bad[0] // (1 + parts)} is not finite or not of unit length")
    return vectors


def lengths(vectors: np.ndarray) -> np.ndarray:
    """The Euclidean length of each vector (N, D): (N,) float32, not finite where the vector is not."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
