"""The lock that lets one process at a time change an index.

It is the operating system's file lock (`flock` on Unix, `LockFileEx` on Windows), via the package filelock: the kernel
releases it however its process ends, and a forked child process neither holds nor releases its parent's lock.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dr_keras.errors import RunError
from dr_keras.index.database import one_line_errors

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_FILE = "lock"
MAX_HOLDER_BYTES = 1000  # of the line in the file that names the process holding the lock


class Locked(RunError):
    """Another process is writing to the index."""


def take_lock(folder: Path) -> "BaseFileLock":
    """Takes the lock of an index's folder, without waiting for it.

    Args:
        folder: The index's folder, which exists.

    Returns:
        The lock; it is held until its `release` is called or the process ends.

    Raises:
        Locked: Another process holds it.
        RunError: The folder cannot be written to.
    """
    from filelock import FileLock, Timeout  # not needed by those who only read

    file = folder / LOCK_FILE
    locked: list[os.stat_result] = []

    def note_holder(descriptor: int) -> None:
        locked[:] = [os.fstat(descriptor)]
        _write_holder(descriptor)

    # `thread_local=False`: any thread may close the index. `preserve_lock_file=True`: no fallback to another kind of
    # lock on a file system without lock support.
    lock = FileLock(file, thread_local=False, blocking=False, preserve_lock_file=True, on_acquired=note_holder)
    with one_line_errors(folder):
        retried = False
        while True:
            try:
                lock.acquire()
            except Timeout:
                if retried:
                    raise Locked(f"{folder} is being written to by {_holder(file)}; wait until that is done") from None
                retried = True  # the file may have been removed just as it was opened
                continue
            with suppress(FileNotFoundError):
                if os.path.samestat(locked[0], file.stat()):
                    return lock
            lock.release()  # the file was removed or replaced before it was locked


def _write_holder(descriptor: int) -> None:
    """Names this process in the lock file, for processes that find it locked."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    command = Path(sys.argv[0]).name or "python"
    with suppress(OSError):  # such as a full disk; the lock is held anyway
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{command} (process {os.getpid()}, since {since})\n".encode(errors="replace"))


def _holder(file: Path) -> str:
    """The process that holds the lock, in words."""
    with suppress(OSError), open(file, "rb") as stream:  # on Windows, nobody else can read a locked file
        return stream.read(MAX_HOLDER_BYTES).decode(errors="replace").strip() or "another process"
    return "another process"
