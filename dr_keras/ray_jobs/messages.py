"""What a command and the process that drives Ray for it say to each other: pickles, each after its length.

Both are of one program and one user; nothing else writes to their pipe.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol

_LENGTH_BYTES = 8


class Work(Protocol):
    """What workers do. It is pickled, and so are the blocks that it takes and what it returns.

    Attributes:
        gpu: Whether a worker takes a GPU, where the cluster has some.
    """

    @property
    def gpu(self) -> bool: ...

    def start(self, cores: int) -> Callable[[Any], Any]:
        """Called once in each worker: returns what takes a block.

        Args:
            cores: How many cores the worker may use.

        Raises:
            InputError: It cannot work there; the command ends with this message.
        """
        ...


@dataclass(frozen=True)
class Job:
    """The first message to the driver.

    Attributes:
        address: Of the cluster, or None to start one on this machine.
        folder: Where one on this machine keeps its files.
        work: What to do.
    """

    address: str | None
    folder: str
    work: Work


@dataclass(frozen=True)
class Round:
    """Blocks to work on, each as its number and its pickle.

    Attributes:
        blocks: The blocks.
        singly: Whether a worker gets one at a time, so that none waits behind one that kills the worker.
    """

    blocks: list[tuple[int, bytes]]
    singly: bool


@dataclass(frozen=True)
class Stop:
    """The last message to the driver."""


@dataclass(frozen=True)
class Ready:
    """The driver is connected, or its round has ended. Blocks of the round without a result are lost.

    Attributes:
        workers: How many can run at a time now.
    """

    workers: int


@dataclass(frozen=True)
class Result:
    """A block is done.

    Attributes:
        number: The block's.
        value: What the work returned, as a pickle.
        seconds: What it took.
    """

    number: int
    value: bytes
    seconds: float


@dataclass(frozen=True)
class Status:
    """How the cluster is, in words."""

    text: str


@dataclass(frozen=True)
class Failed:
    """The work is impossible.

    Attributes:
        kind: The name of a class in `dr_keras.errors`, or "" for a bug.
        text: Its message, or the traceback of a bug.
    """

    kind: str
    text: str


def send(stream: IO[bytes], message: object) -> None:
    """Writes a message.

    Raises:
        OSError: The other process is gone.
    """
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Reads the next message; None at the end."""
    head = stream.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    size = int.from_bytes(head, "little")
    data = stream.read(size)
    return pickle.loads(data) if len(data) == size else None
