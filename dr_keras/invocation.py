"""How a person calls the commands here: `dr-keras train`, or `python train.py` where the scripts lie.

Advice in messages has to fit the way that the program was started. A library says `dr-keras train`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

SCRIPTS = ("train", "retrieve", "evaluate", "index", "serve")

_by_script = False


@contextmanager
def as_script() -> Iterator[None]:
    """Inside, `command` names the scripts."""
    global _by_script
    before, _by_script = _by_script, True
    try:
        yield
    finally:
        _by_script = before


def command(name: str) -> str:
    """How a subcommand is called here.

    Args:
        name: the subcommand, such as `train`.

    Returns:
        `dr-keras train`, or `python train.py` in a process that a script started.

    Example:
        >>> command("train")
        'dr-keras train'
    """
    return f"python {name}.py" if _by_script and name in SCRIPTS else f"dr-keras {name}"


def program(name: str) -> str:
    """What a subcommand calls itself in its usage and before its errors: `dr-keras train`, or `train.py`."""
    return command(name).removeprefix("python ")


def as_called(text: str) -> str:
    """`text` with each `dr-keras train` in it as `command` has it."""
    return re.sub(rf"\bdr-keras ({'|'.join(SCRIPTS)})\b", lambda found: command(found[1]), text)
