"""What the processes of one server share: who can search, how many requests are in progress, and whose turn it is."""

import time
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dr_keras.server.errors import busy

T = TypeVar("T")

CHECK_SECONDS = 60.0  # a worker that has not checked itself for this long cannot be relied on
POLL_SECONDS = 0.01  # between attempts to take a turn
TURN_SECONDS = 30.0  # to wait for it; a turn takes a fraction of a second


@dataclass(frozen=True)
class Peers:
    """The workers of a server, as one of them sees them; by default it is alone.

    Attributes:
        number: Its own number, from 0.
        running: The requests in progress, by worker, in memory that all share. Each writes only its own number.
        connections: The open connections, likewise.
        checked: When each was last able to search, in seconds of `time.monotonic`; 0 if it is not.
        folder: A folder that is removed when the server stops; None if there is only one worker.
    """

    number: int = 0
    running: MutableSequence[int] = field(default_factory=lambda: [0])
    connections: MutableSequence[int] = field(default_factory=lambda: [0])
    checked: MutableSequence[float] = field(default_factory=lambda: [0.0])
    folder: Path | None = None

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self.running)

    def forget(self) -> None:
        """Notes that this worker is dead."""
        self.running[self.number] = self.connections[self.number] = 0
        self.checked[self.number] = 0.0

    def requests(self) -> int:
        """Returns how many requests are in progress."""
        return sum(self.running[:])

    def check(self, able: bool) -> None:
        """Notes whether this worker can search."""
        self.checked[self.number] = time.monotonic() if able else 0.0

    def others_able(self) -> bool:
        """Returns whether all other workers can search."""
        now = time.monotonic()
        others = (when for number, when in enumerate(self.checked[:]) if number != self.number)
        return all(when and now - when < CHECK_SECONDS for when in others)

    def connected(self, count: int) -> None:
        """Notes how many connections this worker has."""
        self.connections[self.number] = count

    def has_more_connections(self) -> bool:
        """Returns whether a worker that can search has fewer connections than this one."""
        able = (count for count, when in zip(self.connections[:], self.checked[:], strict=True) if when)
        return self.connections[self.number] > min(able, default=0)

    def in_turn(self, function: Callable[..., T], *arguments: object) -> T:
        """Calls a function while no other worker does the same.

        Raises:
            Problem: 503 if its turn does not come.
        """
        with self._turn("write"):
            return function(*arguments)

    def kept(self, name: str, read: Callable[[], bytes | None]) -> bytes | None:
        """Returns what `read` returned to the first worker that asked for this name, also to those that start later.

        Args:
            name: The name of a file.
            read: Reads it.
        """
        if self.folder is None:
            return read()
        with self._turn("keep"):
            file = self.folder / name
            if not file.exists():
                file.write_bytes(read() or b"")
            return file.read_bytes() or None

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        from filelock import FileLock, Timeout  # the kernel releases it if its process is killed

        # Whoever has a turn can only take the next one after those who wait for it: one of them holds the first lock.
        first, second = (FileLock(self.folder / f"{name}.{part}") for part in ("next", "lock"))
        try:
            with first.acquire(TURN_SECONDS, POLL_SECONDS):
                second.acquire(TURN_SECONDS, POLL_SECONDS)
        except Timeout:
            raise busy("another change takes long; try again", seconds=2) from None
        try:
            yield
        finally:
            second.release()
