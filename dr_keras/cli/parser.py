"""The argument parser of a subcommand."""

import argparse

from dr_keras.invocation import as_called, program


def command_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser for one subcommand, without its flags.

    Args:
        name: The subcommand, such as `train`.
        about: Its description; `--help` shows the commands in it in the form that the user runs.
    """
    return argparse.ArgumentParser(
        prog=program(name), description=as_called(about or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
