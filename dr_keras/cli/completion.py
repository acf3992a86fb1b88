"""Prints a shell completion script for `dr-keras`.

dr-keras completion bash > ~/.local/share/bash-completion/completions/dr-keras
dr-keras completion zsh > ~/.zfunc/_dr-keras        # a folder in $fpath
dr-keras completion tcsh >> ~/.tcshrc
"""

import argparse
import importlib
from collections.abc import Sequence

import shtab

from dr_keras.cli.main import COMMANDS
from dr_keras.cli.parser import command_parser
from dr_keras.version import __version__

SHELLS = ("bash", "zsh", "tcsh")
# How to complete an argument, by its metavar.
COMPLETED_BY = {
    **dict.fromkeys(("FILE", "NAME|FILE", "FOLDER|FILE", "PICTURE"), shtab.FILE),
    **dict.fromkeys(("DATA", "FOLDER", "NEWROOT", "PATH"), shtab.DIRECTORY),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this subcommand to `parser`."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that the script is for")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras completion` with `arguments`; returns the exit status."""
    parser = command_parser("completion", __doc__)
    add_arguments(parser)
    print(shtab.complete(full_parser(), shell=parser.parse_args(arguments).shell))
    return 0


def full_parser() -> argparse.ArgumentParser:
    """One parser with every subcommand and every flag; only completion needs them all at once."""
    parser = argparse.ArgumentParser(prog="dr-keras")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="SUBCOMMAND")
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about)
        importlib.import_module(f"dr_keras.cli.{name}").add_arguments(command)
        _complete_files(command)
    return parser


def _complete_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner)
        elif action.metavar in COMPLETED_BY:
            action.complete = COMPLETED_BY[str(action.metavar)]  # type: ignore[attr-defined]
