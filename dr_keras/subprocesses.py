"""Runs modules of this package in Python processes of their own."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def command(module: str, *arguments: str) -> Sequence[str]:
    """The command line of `python -m module arguments...` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with `settings` on top, in which the package is found though it is not installed."""
    here = str(Path(__file__).parent.parent)
    return os.environ | settings | {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
