"""The one place where a command's errors are printed.

A user's mistake, a disk problem or a missing package prints one line on standard error, and the exit status is 2.
Anything else is a bug: one line says so and names the file with the traceback, and the exit status is 70.
"""

import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dr_keras.errors import InputError, Interrupted
from dr_keras.extras import EXTRAS, how_to_install

REFUSED, BUG, STOPPED = 2, 70, 130  # exit statuses; 70 is EX_SOFTWARE in sysexits.h, 130 means Ctrl-C
BROKEN_PIPE = 141  # the reader of the output has exited, as `head` does

# System errors that come from the user's files, disks or network, not from a bug.
_MENDABLE = frozenset(
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENOTEMPTY", "ELOOP", "ENAMETOOLONG"),
        *(
            "ENOSPC",
            "EDQUOT",
            "EFBIG",
            "EIO",
            "ESTALE",
            "ENODEV",
            "ENXIO",
            "EBUSY",
            "ETXTBSY",
            "EXDEV",
            "EMFILE",
            "ENFILE",
        ),
        *("EADDRINUSE", "EADDRNOTAVAIL", "ECONNREFUSED", "ENETUNREACH", "ETIMEDOUT", "ENOMEM"),
    )
    if hasattr(errno, name)
)


def run(name: str, command: Callable[[], int], *, stopped: str = "stopped") -> int:
    """Runs a command and prints its errors.

    Args:
        name: The prefix of each message, such as `dr-keras train`.
        command: Returns the exit status.
        stopped: What to print after Ctrl-C.

    Returns:
        The exit status: the command's own, or `REFUSED`, `BUG`, `STOPPED` or `BROKEN_PIPE`.
    """
    for stream in (sys.stdout, sys.stderr):  # neither file names nor the terminal have to be UTF-8
        with suppress(AttributeError, ValueError):  # the stream is replaced or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = command()
        sys.stdout.flush()
        return status
    except Interrupted as error:
        return _say(name, str(error), STOPPED)
    except InputError as error:
        return _say(name, str(error), REFUSED)
    except KeyboardInterrupt:
        return _say(name, stopped, STOPPED)
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards the remaining output
        return BROKEN_PIPE
    except MemoryError:
        return _say(name, "there is not enough memory", REFUSED)
    except OSError as error:
        if error.errno in _MENDABLE:
            return _say(name, _system(error), REFUSED)
        return _bug(name, error)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in EXTRAS:
            return _say(name, f"this needs {module}, which is not installed; {how_to_install(module)}", REFUSED)
        return _bug(name, error)
    except Exception as error:
        return _bug(name, error)


def _say(name: str, message: str, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return status


def _system(error: OSError) -> str:
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    text = (error.strerror or str(error)).lower()
    return f"{where}{text}"


def _bug(name: str, error: Exception) -> int:
    """Writes the traceback to a file and prints its path."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    message = " ".join(str(error).split())
    what = f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__
    stem = Path(name).stem.replace(" ", "-")
    try:
        handle, place = tempfile.mkstemp(prefix=f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        print(text, file=sys.stderr)
        return _say(name, f"this is a bug of dr_keras ({what}); please report it with the lines above", BUG)
    return _say(name, f"this is a bug of dr_keras ({what}); please report it with {place}", BUG)
