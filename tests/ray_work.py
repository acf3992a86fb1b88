"""Work for a cluster in tests, some of which goes wrong."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dr_keras.errors import RunError


@dataclass(frozen=True)
class Doubles:
    """Doubles numbers, a little slowly.

    Attributes:
        seconds: That each takes.
        killers: Numbers that kill their process each time.
        once: A folder; a number in `killers` kills only one process, which leaves a file there.
        refused: A number that cannot be worked on.
    """

    seconds: float = 0.0
    killers: tuple[int, ...] = ()
    once: str | None = None
    refused: int | None = None

    gpu = False

    def start(self, cores: int) -> Callable[[list[int]], list[int]]:
        assert cores == 1
        return lambda numbers: [self._double(number) for number in numbers]

    def _double(self, number: int) -> int:
        time.sleep(self.seconds)
        if number == self.refused:
            raise RunError(f"{number} is refused")
        if number in self.killers and not self._has_killed(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * number

    def _has_killed(self, number: int) -> bool:
        if self.once is None:
            return False
        try:
            (Path(self.once) / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return True
        return False


@dataclass(frozen=True)
class Tells:
    """Tells what each worker has: its cores, and its GPUs."""

    gpu: bool

    def start(self, cores: int) -> Callable[[list[int]], tuple[int, str]]:
        return lambda _: (cores, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
