"""Command line and environment for child processes that run a module of this package."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def command(module: str, *arguments: str) -> Sequence[str]:
    """Returns the command line of `python -m module arguments...` for this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def environment(**settings: str) -> dict[str, str]:
    """Returns the environment of a child process.

    Args:
        **settings: Variables to set in addition to those of this process.

    Returns:
        The variables, with a `PYTHONPATH` that lets the child find this package even if it is not installed.
    """
    here = str(Path(__file__).parent.parent)
    return os.environ | settings | {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
