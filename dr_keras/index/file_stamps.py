"""What tells whether a file has changed: the hash of its content, its size and its modification time."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dr_keras.atomic_files import sha256_of
from dr_keras.data.image_ids import url_of
from dr_keras.data.remote_files import read_remote, remote_status
from dr_keras.index.records import Stamp

FILES_PER_TASK = 64  # files that a thread takes at a time


def file_stamps(paths: Sequence[str]) -> list[Stamp]:
    """The SHA-256, size in bytes and mtime_ns of files; the SHA-256 is None for a file that cannot be read."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(_stamp, paths, chunksize=FILES_PER_TASK))


def file_status(path: str) -> tuple[int | None, int | None]:
    """The size in bytes and mtime_ns of a file; None for both if it is gone, which reading it will report.

    Raises:
        InputError: It is on an object store that does not answer.
    """
    if (url := url_of(path)) is not None:
        return remote_status(url)
    try:
        status = os.stat(path)
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns


def _stamp(path: str) -> Stamp:
    size, time = file_status(path)
    try:
        if (url := url_of(path)) is not None:
            return hashlib.sha256(read_remote(url)).digest(), size, time
        return sha256_of(path), size, time
    except OSError:
        return None, size, time
