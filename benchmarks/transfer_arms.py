#!/usr/bin/env python3
"""Which recipe serves both its own classes and other pictures? Trains arms on some classes and searches among others.

    python benchmarks/transfer_arms.py --data tiny-imagenet-200 -- "--label-smoothing 0" "--scale 16" ...

Only training images are used: 80 classes are trained on, and the images of 40 others are held out. Each argument after
-- holds flags of train.py and becomes a row of the table, in the order in which they finish. Its columns:
precision@30, MAP@R and similarity precision of the monitor images, a twentieth of the images of the trained classes;
precision@30 among the held-out classes and on scikit-learn's digits, by the trained and by the general head.

`--at-once` arms run side by side; on a GPU, XLA_PYTHON_CLIENT_MEM_FRACTION then has to be a part of its memory.
"""

import argparse
import json
import multiprocessing
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from machine import machine

ROOT = Path(__file__).parent.parent
OWN = ("precision@30", "map@r", "similarity_precision")
HEADS = ("trained", "general")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders, or one with them in train/")
    parser.add_argument("--classes", type=int, default=80, help="trained on (default: 80)")
    parser.add_argument("--hold-out", type=int, default=40, help="searched among (default: 40)")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="arms that run side by side (default: 1)")
    parser.add_argument("--all", default="", metavar="FLAGS", help="flags of train.py for every arm")
    parser.add_argument("arms", nargs="+", metavar="FLAGS")
    options = parser.parse_args()
    train = options.data / "train" if (options.data / "train").is_dir() else options.data
    classes = sorted(folder for folder in train.resolve().iterdir() if folder.is_dir())
    held = classes[:: max(2, len(classes) // options.hold_out)][: options.hold_out]
    others = [folder for folder in classes if folder not in held]
    trained = others[:: max(1, len(others) // options.classes)][: options.classes]
    columns = [*OWN, *(f"{data}, {head}" for data in ("held out", "digits") for head in HEADS)]
    print(f"{machine()}; {len(trained)} classes trained on, {len(held)} held out; {options.all}\n")
    print("| flags | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns), flush=True)
    with (
        tempfile.TemporaryDirectory() as place,
        ProcessPoolExecutor(options.at_once, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        for name, folders in (("trained", trained), ("held", held)):
            for folder in folders:
                link = Path(place) / name / folder.name
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(folder, target_is_directory=True)
        running = {
            pool.submit(figures, f"arm-{number}", place, f"{options.all} {flags}"): flags
            for number, flags in enumerate(options.arms)
        }
        for done in as_completed(running):
            print(f"| `{running[done]}` | " + " | ".join(f"{value:.4f}" for value in done.result()) + " |", flush=True)


def figures(run: str, place: str, flags: str) -> list[float]:
    """Trains an arm and returns the columns of its row."""
    command = [sys.executable, str(ROOT / "train.py"), "--data", f"{place}/trained", "--run", run, "--overwrite"]
    command += ["--monitor", "0.05", "--validation", "0", *shlex.split(flags)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout}")

    from dr_keras.evaluation.evaluate import evaluate_run
    from dr_keras.loading import load
    from dr_keras.runs import RUNS

    model = load(run)
    own = json.loads((Path(RUNS) / run / "metrics.json").read_text(encoding="utf-8"))["monitor"]
    return [own[name] for name in OWN] + [
        evaluate_run(model, data=data, head=head, baselines=False)["precision@30"]
        for data in (f"{place}/held", "digits")
        for head in HEADS
    ]


if __name__ == "__main__":
    main()
