"""What an actor of Ray Data does with the blocks that it gets."""

import pickle
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dr_keras.errors import InputError
from dr_keras.ray_jobs.messages import Failed, Work
from dr_keras.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa


class Worker:
    """Works on blocks.

    Args:
        work: What to do.
        cores: How many cores it may use.
        version: Of dr_keras where the command runs.
    """

    def __init__(self, work: Work, cores: int, version: str) -> None:
        self._work, self._cores, self._version = work, cores, version
        self._do: Callable[[Any], Any] | None = None

    def __call__(self, table: "pa.Table") -> "pa.Table":
        """Takes a table of `number` and `block`, and returns one of `number`, `value` and `seconds`."""
        import pyarrow as pa

        with suppress(Exception):  # which is reported below
            self._started()
        values, seconds = [], []
        for block in table["block"].to_pylist():
            started = time.monotonic()
            values.append(pickle.dumps(self._done(block)))
            seconds.append(time.monotonic() - started)
        return pa.table({"number": table["number"], "value": pa.array(values, pa.large_binary()), "seconds": seconds})

    def _done(self, block: bytes) -> Any:
        """What the work returns for a block, or why it cannot."""
        here = f"(on {socket.gethostname()})"
        try:
            return self._started()(pickle.loads(block))
        except InputError as error:
            return Failed(type(error).__name__, f"{error} {here}")
        except ModuleNotFoundError as error:
            return Failed("MissingPackage", f"{error} {here}; all machines of the cluster need the same packages")
        except OSError as error:
            return Failed("RunError", f"{error} {here}")
        except Exception:
            return Failed("", traceback.format_exc())

    def _started(self) -> Callable[[Any], Any]:
        if self._do is None:
            if self._version != __version__:
                raise InputError(f"dr_keras is {__version__} there, and {self._version} where the command runs")
            self._do = self._work.start(self._cores)
        return self._do
