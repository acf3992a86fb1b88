"""An open file whose descriptor has one owner, so that it is closed once and never while a thread reads."""

import io
import os
import threading


class OpenFile:
    """An open file. Its methods may be called from several threads.

    A descriptor that is closed twice, or while another thread reads, may by then belong to another file or a socket.
    Here it belongs to one `io.FileIO`, and its number is never handed out.

    Args:
        file: The file, which this object owns from now on.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._reading = threading.Lock()
        self._closing = False

    def read(self, place: int, count: int) -> bytes:
        """Reads bytes at an offset in the file.

        Args:
            place: The offset of the first byte.
            count: How many bytes.

        Returns:
            The bytes; fewer than `count` only at the end of the file.

        Raises:
            ValueError: The file is closed.
        """
        try:
            with self._reading:
                if self._closing:
                    raise ValueError("the file is closed")
                return _read_all(self._file.fileno(), place, count)
        finally:
            if self._closing:  # another thread has asked for this meanwhile
                self.close()

    def close(self) -> None:
        """Closes the file, at once or when the thread that is reading is done; never waits."""
        self._closing = True
        if self._reading.acquire(blocking=False):
            try:
                self._file.close()
            finally:
                self._reading.release()

    @property
    def closed(self) -> bool:
        """Whether the descriptor is closed."""
        return self._file.closed


def _read_all(descriptor: int, place: int, count: int) -> bytes:
    chunks = []
    while count > 0 and (chunk := _read_some(descriptor, place, count)):
        chunks.append(chunk)
        place += len(chunk)
        count -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _read_some(descriptor: int, place: int, count: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, place)
    os.lseek(descriptor, place, os.SEEK_SET)  # Windows has no pread; only one thread reads at a time
    return os.read(descriptor, count)
