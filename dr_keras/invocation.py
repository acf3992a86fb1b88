"""How the user runs the commands: `dr-keras train`, or `python train.py` in a checkout.

Messages suggest commands in the form in which the program was started. The library suggests `dr-keras train`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

SCRIPTS = ("train", "retrieve", "evaluate", "index", "serve")

_by_script = False


@contextmanager
def as_script() -> Iterator[None]:
    """Makes `command` name the scripts inside the block."""
    global _by_script
    before, _by_script = _by_script, True
    try:
        yield
    finally:
        _by_script = before


def command(name: str) -> str:
    """Returns the command that runs a subcommand.

    Args:
        name: The subcommand, such as `train`.

    Returns:
        `dr-keras train`, or `python train.py` in a process started by a script.

    Example:
        >>> command("train")
        'dr-keras train'
    """
    return f"python {name}.py" if _by_script and name in SCRIPTS else f"dr-keras {name}"


def program(name: str) -> str:
    """Returns the name of a subcommand in its usage and error messages: `dr-keras train`, or `train.py`."""
    return command(name).removeprefix("python ")


def as_called(text: str) -> str:
    """Returns `text` with each `dr-keras train` and the like written as `command` does."""
    return re.sub(rf"\bdr-keras ({'|'.join(SCRIPTS)})\b", lambda found: command(found[1]), text)
