#!/usr/bin/env python3
"""Trains an embedding on folders of images and leaves a run folder for retrieve.py and evaluate.py.

python train.py --epochs 30
python train.py --data my-folders --run first --epochs 5
python train.py --data my-folders --run tuned --epochs 5 --initial-weights tiny-imagenet-64
python train.py --resume --run first
python train.py --export-only --run first
"""

import argparse
import dataclasses
import sys
from typing import Any

from dr_keras.atomic_files import read_json, write_json
from dr_keras.backend import import_framework
from dr_keras.cli.errors import run
from dr_keras.cli.flags import add_flags, parse
from dr_keras.config import Config
from dr_keras.errors import InputError
from dr_keras.export import export_in_child
from dr_keras.runs import RUNS, Run, open_run, starting_from


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--overwrite", action="store_true", help="replace an existing run of the same name")
    actions.add_argument("--resume", action="store_true", help="go on with a run from its last checkpoint, or start it")
    actions.add_argument("--export-only", action="store_true", help="export a finished run again and train nothing")
    said, action = parse(parser)
    if action.export_only:
        export_only(said.get("run"))
    elif action.resume:
        train(resumed(said), resume=True)
    else:
        train(Config(**starting_from(said)), overwrite=action.overwrite)
    return 0


def train(config: Config, *, overwrite: bool = False, resume: bool = False) -> None:
    """Trains, once Keras is loaded."""
    import_framework(config.backend)
    from dr_keras.training.run import run_training

    run_training(config, overwrite=overwrite, resume=resume)


def resumed(said: dict[str, Any]) -> Config:
    """The settings of the run to go on with, and what the command line says on top of them; only that of a new run."""
    if "run" not in said:
        raise InputError("--resume needs the name of the run: --run NAME")
    run = Run(RUNS / said["run"])
    if run.config_file.is_file():
        return dataclasses.replace(run.config(), **said)
    return Config(**starting_from(said))


def export_only(name: str | None) -> None:
    """Exports a run again and prints how far each export is from the network."""
    run = open_run(name)
    checks = export_in_child(run)
    known = read_json(run.metrics_file) if run.finished else {}
    write_json(run.metrics_file, known | {"export": checks})
    for kind, difference in checks.items():
        print(f"{kind}: differs from the network by at most {difference:.1e}")


if __name__ == "__main__":
    sys.exit(run("train.py", main, stopped="interrupted; the run is not finished"))
