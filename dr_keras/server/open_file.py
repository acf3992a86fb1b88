"""A file that is open for reading, whose descriptor has one owner: closed once, and never under a reader."""

import io
import os
import threading


class OpenFile:
    """An open file; its methods may be called from several threads.

    A descriptor that is closed twice, or while another thread reads, is another file's or a socket's by then. Here the
    descriptor belongs to one `io.FileIO`, and nobody gets its number.

    Args:
        file: it becomes this object's.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._reading = threading.Lock()
        self._closing = False

    def read(self, place: int, count: int) -> bytes:
        """At most `count` bytes from byte `place` on; fewer only at the file's end.

        Raises:
            ValueError: it is closed.
        """
        try:
            with self._reading:
                if self._closing:
                    raise ValueError("the file is closed")
                return _read_all(self._file.fileno(), place, count)
        finally:
            if self._closing:  # somebody closed it meanwhile, and left it to this thread
                self.close()

    def close(self) -> None:
        """Closes it, at once or as soon as a thread that is reading has its bytes; never waits."""
        self._closing = True
        if self._reading.acquire(blocking=False):
            try:
                self._file.close()
            finally:
                self._reading.release()

    @property
    def closed(self) -> bool:
        """Whether the descriptor is given back."""
        return self._file.closed


def _read_all(descriptor: int, place: int, count: int) -> bytes:
    pieces = []
    while count > 0 and (piece := os.pread(descriptor, count, place)):
        pieces.append(piece)
        place += len(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
