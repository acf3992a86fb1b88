"""Makes a released model from a finished run: a small folder without images, for others to search with.

dr-keras release runs/final my-model
dr-keras retrieve --run my-model --gallery my-pictures --query ./my-photo.jpg

It holds config.json, and the weights and a LiteRT file in half precision. Needs TensorFlow.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dr_keras.cli.parser import command_parser
from dr_keras.export.release import release
from dr_keras.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this subcommand to `parser`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("release", type=Path, metavar="FOLDER", help="the folder to create")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras release` with `arguments`; returns the exit status."""
    parser = command_parser("release", __doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    for name, difference in release(Run(options.run), Run(options.release)).items():
        print(f"{name}: {difference:.1e}")
    return 0
