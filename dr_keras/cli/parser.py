"""The argument parser of a subcommand."""

import argparse

from dr_keras.heads import HEADS
from dr_keras.invocation import as_called, program
from dr_keras.runtimes import RUNTIMES


def command_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser for one subcommand, without its flags.

    Args:
        name: The subcommand, such as `train`.
        about: Its description; `--help` shows the commands in it in the form that the user runs.
    """
    return argparse.ArgumentParser(
        prog=program(name), description=as_called(about or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --runtime."""
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="what embeds new files (auto: litert, or openvino for as many as take a while); openvino_bfloat16 is "
        "faster on processors with bfloat16 arithmetic, and rounds more",
    )


def add_head(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --head."""
    parser.add_argument(
        "--head",
        choices=HEADS,
        default="auto",
        help="the vectors to search by: trained, the embedding; general, better for classes that the run was not "
        "trained on; auto: that of the index, and for a folder trained only if the run knows all its classes",
    )
