"""Hands blocks of items to a Ray cluster, and takes what comes back: each item once, whatever dies meanwhile."""

import os
import pickle
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from queue import Empty, Queue
from typing import Any, Generic, TypeVar

from rich.console import Console

from dr_keras import errors, subprocesses
from dr_keras.errors import InputError, MissingPackage, RunError
from dr_keras.extras import how_to_install
from dr_keras.ray_jobs.messages import Failed, Job, Ready, Result, Round, Status, Stop, Work, receive, send

PATIENCE_SECONDS = 600.0  # without anything coming from the cluster
TELL_SECONDS = 20.0  # between two lines that say what is waited for
FIRST_ITEMS = 64  # in a block, until it is known how long an item takes, unless they are small; then
BLOCK_SECONDS = 10.0  # of work
BLOCKS_PER_WORKER = 8  # at least, if there are enough items, so that workers finish together
# Blocks in a round: they and their results are in memory. At the end of a round workers wait for each other, and start
# anew with the next one.
ROUND_BLOCKS, ROUND_BLOCKS_PER_WORKER = 512, 64
# A block is lost if its worker dies twice. It is tried again whole, then each of its items alone, and alone once more.
WHOLE, SINGLY = 2, 4
MAX_DEATHS = 3  # of the driver, without any result in between
WAITING_RESULTS = 4  # in memory here, each of a block; with parts they have tens of MB
POLL_SECONDS = 1.0
END_SECONDS, KILL_SECONDS = 10.0, 5.0  # for the driver to end when its work is done, and in the middle of it

T = TypeVar("T")


@dataclass(frozen=True)
class Lost:
    """What comes for an item whose worker died each time that it was tried."""

    reason: str = "the process that reads it dies each time"


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster. It is in use only while `results` is iterated.

    Attributes:
        address: HOST:PORT of its head, or 'auto' for the one that this machine is part of; 'local' for the cores of
            this machine alone, or the cluster that the environment names in RAY_ADDRESS.
        console: Where it is said what is waited for.
        patience: For how many seconds to wait for anything to come.

    Raises:
        InputError: The patience is not positive.
        MissingPackage: Ray is not installed.
    """

    address: str
    console: Console
    patience: float = PATIENCE_SECONDS

    def __post_init__(self) -> None:
        if not self.patience > 0:
            raise InputError(f"the patience with Ray is {self.patience:g} s; it must be positive")
        for package in ("ray", "pyarrow"):
            if find_spec(package) is None:
                raise MissingPackage(f"--ray needs the package {package}: {how_to_install('ray')}")

    def results(
        self,
        work: Work,
        items: Sequence[T],
        pack: Callable[[Sequence[T]], Any],
        most: int,
        *,
        first: int = FIRST_ITEMS,
    ) -> Iterator[tuple[Sequence[T], Any]]:
        """Works on all items, in any order.

        Args:
            work: What the workers do.
            items: What to work on.
            pack: Items -> the block that the work takes.
            most: The most items in a block.
            first: How many there are until it is known how long an item takes.

        Yields:
            Some items, and what the work returned for their block, or `Lost`.

        Raises:
            InputError: The work raised it.
            RunError: There is no such cluster, or nothing has come from it for too long.
        """
        if items:
            yield from _Course(self, work, _Blocks(items, most, first), pack).results()


def parse_address(text: str) -> str | None:
    """Returns the address that a text is, or None if it is something else, such as a folder.

    Example:
        >>> [parse_address(text) for text in ("auto", "10.0.0.1:6379", "[::1]:6379", "my-pictures", "s3://photos")]
        ['auto', '10.0.0.1:6379', '[::1]:6379', None, None]
    """
    return text if re.fullmatch(r"auto|local|([\w.-]+|\[[\da-fA-F:.]+\]):\d{1,5}", text) else None


@dataclass
class _Block(Generic[T]):
    items: Sequence[T]
    tries: int = 0


class _Blocks(Generic[T]):
    """What is still to be done.

    Args:
        items: All items.
        most: The most items in a block.
        first: How many there are until it is known how long an item takes.
    """

    def __init__(self, items: Sequence[T], most: int, first: int = FIRST_ITEMS) -> None:
        self._items, self._most, self._first = items, most, first
        self._start = 0
        self._again: deque[_Block[T]] = deque()
        self._alone: deque[_Block[T]] = deque()
        self._seconds = 0.0  # that an item takes
        self.given_up: list[_Block[T]] = []

    def took(self, seconds: float, items: int) -> None:
        """Keeps how long some items took."""
        now = seconds / max(items, 1)
        self._seconds = now if not self._seconds else 0.8 * self._seconds + 0.2 * now

    def lost(self, block: _Block[T], *, counts: bool = True) -> None:
        """Puts a block back; `counts` is false if nothing speaks against it, such as the end of the driver."""
        block.tries += counts
        if block.tries < WHOLE:
            self._again.append(block)
        elif block.tries == WHOLE:
            self._alone += [_Block([item], WHOLE + 1) for item in block.items]
        elif block.tries <= SINGLY:
            self._alone.append(block)
        else:
            self.given_up.append(block)

    def round(self, workers: int) -> tuple[list[_Block[T]], bool]:
        """The blocks to work on next, and whether a worker should get one at a time; none if all is done."""
        room = max(ROUND_BLOCKS, ROUND_BLOCKS_PER_WORKER * workers)
        if not self._again and self._start >= len(self._items):
            alone = [self._alone.popleft() for _ in range(min(room, len(self._alone)))]
            return alone, True
        blocks = [self._again.popleft() for _ in range(min(room, len(self._again)))]
        left = len(self._items) - self._start
        share = -(-left // (BLOCKS_PER_WORKER * workers))
        known = self._seconds > 0
        usual = round(BLOCK_SECONDS / self._seconds) if known else self._first
        size = max(1, min(share, usual, self._most))
        if not known and left > room * size:  # too many for a single round, so the first only finds out
            room = BLOCKS_PER_WORKER * workers
        while self._start < len(self._items) and len(blocks) < room:
            blocks.append(_Block(self._items[self._start : self._start + size]))
            self._start += size
        return blocks, False


class _Course(Generic[T]):
    """One use of a cluster: rounds of blocks, by one driver or by several if one dies or gets stuck.

    Args:
        cluster: The cluster.
        work: What the workers do.
        blocks: What to do it on.
        pack: Items -> the block that the work takes.
    """

    def __init__(self, cluster: RayCluster, work: Work, blocks: _Blocks[T], pack: Callable[[Sequence[T]], Any]) -> None:
        self._cluster, self._work, self._blocks, self._pack = cluster, work, blocks, pack
        self._deaths = 0
        self._watch = _Watch(cluster)

    def results(self) -> Iterator[tuple[Sequence[T], Any]]:
        address = os.environ.get("RAY_ADDRESS") or None if self._cluster.address == "local" else self._cluster.address
        while True:
            with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
                with _Driver(Job(address, folder, self._work), folder) as driver:
                    end = yield from self._rounds(driver)
                    said = driver.last_words()
            if end is Ended.DONE:
                return
            self._deaths += end is Ended.DIED
            if self._deaths == MAX_DEATHS:
                raise RunError(f"the process that drives Ray ended {MAX_DEATHS} times, and said last: {said}")

    def _rounds(self, driver: "_Driver") -> Generator[tuple[Sequence[T], Any], None, "Ended"]:
        """Does what is left with one driver; returns how that ends."""
        message = self._next(driver)
        while isinstance(message, Ready):
            chosen, singly = self._blocks.round(message.workers)
            for block in self._blocks.given_up:
                yield block.items, Lost()
            self._blocks.given_up.clear()
            if not chosen:
                driver.order(Stop())
                return Ended.DONE
            under_way = dict(enumerate(chosen))
            driver.order(Round([(n, pickle.dumps(self._pack(block.items))) for n, block in under_way.items()], singly))
            while isinstance(message := self._next(driver), Result):
                block = under_way.pop(message.number)
                self._deaths = 0
                self._blocks.took(message.seconds, len(block.items))
                yield block.items, _value(message)
            for block in under_way.values():
                self._blocks.lost(block, counts=isinstance(message, Ready))
        assert isinstance(message, Ended)
        return message

    def _next(self, driver: "_Driver") -> "Ready | Result | Ended":
        """The next message but for those of the status.

        Raises:
            InputError: The driver says that the work is impossible.
            RunError: Nothing has come for too long.
        """
        while True:
            message = driver.message()
            if isinstance(message, Failed):
                raise _error(message)
            if isinstance(message, Result):
                self._watch.came()
            if isinstance(message, Ready | Result | Ended):
                return message
            if isinstance(message, Status):
                self._watch.status = message.text
            if self._watch.waits():
                return Ended.STUCK


class Ended(Enum):
    """How the use of a driver ended."""

    DONE = "all is done"
    DIED = "the process has ended"
    STUCK = "nothing has come from it for long"


class _Watch:
    """Says what is waited for, and when to give up.

    Args:
        cluster: The cluster.

    Attributes:
        status: How the cluster is, in words.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self.status = "it has not answered yet"
        self._last = self._told = time.monotonic()
        self._started_over = False

    def came(self) -> None:
        """Something has come."""
        self._last = self._told = time.monotonic()
        self._started_over = False

    def waits(self) -> bool:
        """Nothing has come; returns whether to start over with another driver, which may help once.

        Raises:
            RunError: It has been too long.
        """
        now = time.monotonic()
        quiet, patience = now - self._last, self._cluster.patience
        if quiet >= patience:
            raise RunError(
                f"nothing has come from Ray for {quiet:,.0f} s: {self.status}; what was done is kept, and the same "
                "command resumes it"
            )
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self._cluster.console.print(f"nothing has come from Ray for {quiet:,.0f} s: {self.status}")
        if quiet < patience / 2 or self._started_over:
            return False
        self._started_over = True
        return True


def _value(result: Result) -> Any:
    value = pickle.loads(result.value)
    if isinstance(value, Failed):
        raise _error(value)
    return value


def _error(failed: Failed) -> Exception:
    kind = getattr(errors, failed.kind, None)
    return RuntimeError(failed.text) if kind is None else kind(failed.text)


class _Driver:
    """The process that drives Ray; it ends with the block.

    Args:
        job: What to do.
        folder: Where it keeps what Ray prints.
    """

    def __init__(self, job: Job, folder: str) -> None:
        self._job, self._log = job, os.path.join(folder, "driver.log")
        self._messages: Queue[Any] = Queue(WAITING_RESULTS)

    def __enter__(self) -> "_Driver":
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                subprocesses.command("dr_keras.ray_jobs.driver"),
                env=subprocesses.environment(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # or Ctrl-C would reach Ray
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.order(self._job)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        if not self._stopped:  # it ends with its input
            with suppress(OSError):
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS if self._stopped else KILL_SECONDS)
        with suppress(OSError):
            self._process.stdin.close()
        self._process.kill()
        if hasattr(os, "killpg"):
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        while self._listener.is_alive():  # it may wait for room
            self.message()
        assert self._process.stdout
        self._process.stdout.close()

    def order(self, message: object) -> None:
        """Sends a message to it."""
        assert self._process.stdin
        self._stopped = isinstance(message, Stop)
        with suppress(OSError):  # it has ended, which `message` tells
            send(self._process.stdin, message)

    def message(self) -> Any:
        """Its next message; None if there has been none for a while, and `Ended.DIED` after the last."""
        try:
            return self._messages.get(timeout=POLL_SECONDS)
        except Empty:
            return None

    def last_words(self) -> str:
        """The last line that Ray has printed."""
        with suppress(OSError), open(self._log, encoding="utf-8", errors="replace") as log:
            return next((line.strip() for line in reversed(log.readlines()) if line.strip()), "nothing")
        return "nothing"

    def _listen(self) -> None:
        assert self._process.stdout
        with suppress(OSError, ValueError, EOFError, pickle.UnpicklingError):
            while (message := receive(self._process.stdout)) is not None:
                self._messages.put(message)
        self._messages.put(Ended.DIED)
