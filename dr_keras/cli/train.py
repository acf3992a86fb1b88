"""Trains an embedding on folders of images and writes a run folder for the other commands.

dr-keras train --epochs 30
dr-keras train --data my-folders --run first --epochs 5
dr-keras train --data my-folders --run tuned --epochs 5 --initial-weights tiny-imagenet-64
dr-keras train --resume --run first
dr-keras train --export-only --run first
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from dr_keras.atomic_files import read_json, write_json
from dr_keras.backend import import_framework
from dr_keras.cli.flags import add_flags, parse
from dr_keras.cli.parser import command_parser
from dr_keras.config import Config
from dr_keras.errors import InputError, RunError
from dr_keras.export import export_in_child
from dr_keras.invocation import command
from dr_keras.runs import RUNS, Run, open_run, starting_from

STOPPED = "interrupted; the run is not finished"  # what Ctrl-C prints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this subcommand to `parser`."""
    add_flags(parser)
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--overwrite", action="store_true", help="replace an existing run of the same name")
    actions.add_argument("--resume", action="store_true", help="resume a run from its last checkpoint, or start it")
    actions.add_argument(
        "--export-only",
        action="store_true",
        help="export a finished run again, without training; with --data, fit its general head on these images first",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras train` with `arguments`; returns the exit status."""
    parser = command_parser("train", __doc__)
    add_arguments(parser)
    said, action = parse(parser, arguments)
    if action.export_only:
        export_only(said.get("run"), said.get("data"), onnx=said.get("onnx"))
    elif action.resume:
        train(resumed(said), resume=True)
    else:
        train(Config(**starting_from(said)), overwrite=action.overwrite)
    return 0


def train(config: Config, *, overwrite: bool = False, resume: bool = False) -> None:
    """Loads Keras, then trains."""
    import_framework(config.backend)
    from dr_keras.training.run import run_training

    run_training(config, overwrite=overwrite, resume=resume)


def resumed(said: dict[str, Any]) -> Config:
    """The settings of the run to resume, overridden by the command line; for a new run, the command line alone."""
    if "run" not in said:
        raise InputError("--resume needs the name of the run: --run NAME")
    run = Run(RUNS / said["run"])
    if run.config_file.is_file():
        return dataclasses.replace(run.config(), **said)
    return Config(**starting_from(said))


def export_only(name: str | None, data: str | None, *, onnx: bool | None = None) -> None:
    """Exports a run again and prints how much each export differs from the network.

    With `data`, the general head is fitted on its training images first; `onnx` overrides the run's own setting.
    """
    run = open_run(name)
    if not (run.finished or run.weights_file.is_file()):
        raise RunError(f"{run.path} is not finished; finish it with {command('train')} --resume --run {run.path.name}")
    if onnx is not None:
        run.write_config(dataclasses.replace(run.config(), onnx=onnx))
    if data is not None:
        import_framework(run.config().backend)
        from dr_keras.training.general_head import fit_again

        fit_again(run, data)
    checks = export_in_child(run)
    if run.finished:  # a copy of a released model has no metrics
        write_json(run.metrics_file, read_json(run.metrics_file) | {"export": checks})
    for kind, difference in checks.items():
        print(f"{kind}: differs from the network by at most {difference:.1e}")
