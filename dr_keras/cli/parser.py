"""The argument parser of a subcommand."""

import argparse

from dr_keras.invocation import as_called, program


def command_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser for one subcommand, without its flags.

    Args:
        name: the subcommand, such as `train`.
        about: its description, in which `--help` names the commands as they are called here.
    """
    return argparse.ArgumentParser(
        prog=program(name), description=as_called(about or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
