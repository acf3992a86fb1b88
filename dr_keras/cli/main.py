"""The `dr-keras` command: finds the subcommand and imports only its module."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from dr_keras.cli.errors import REFUSED, run
from dr_keras.invocation import as_script, program
from dr_keras.version import __version__

COMMANDS = {
    "train": "train an embedding on folders of images",
    "retrieve": "find the images most like a query",
    "evaluate": "measure how well a run ranks its held-out images",
    "index": "maintain an index of images: add, sync, remove, verify, export, find duplicates",
    "serve": "serve a web page and an HTTP API that search images",
    "pack": "pack a run into files of limited size, to carry it to another machine",
    "release": "make a small released model from a finished run",
    "completion": "print a completion script for a shell: bash, zsh or tcsh",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras SUBCOMMAND ...`.

    Args:
        arguments: The command line after `dr-keras`; by default, that of the process.

    Returns:
        The exit status; see `dr_keras.cli.errors.run`.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments[0], arguments[1:])
    parser().parse_args(arguments)  # prints --help or --version or what is wrong, and exits
    return REFUSED


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Imports the module of a subcommand and runs it; prints its errors and returns its exit status."""
    module = importlib.import_module(f"dr_keras.cli.{name}")
    return run(program(name), partial(module.main, arguments), stopped=getattr(module, "STOPPED", "stopped"))


def run_script(name: str) -> NoReturn:
    """Runs a subcommand for the script `NAME.py` at the top of the repository."""
    with as_script():
        sys.exit(run_command(name, sys.argv[1:]))


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments before the subcommand."""
    lines = "\n".join(f"  {name:<12}{about}" for name, about in COMMANDS.items())
    made = argparse.ArgumentParser(
        prog="dr-keras",
        description="Image similarity by deep ranking: train an embedding, search images with it.",
        epilog=f"subcommands:\n{lines}\n\n'dr-keras SUBCOMMAND --help' shows its flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"dr_keras {__version__}")
    made.add_argument("subcommand", metavar="SUBCOMMAND", choices=COMMANDS, help="one of those below")
    return made
