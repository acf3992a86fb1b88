#!/usr/bin/env python3
"""Kills a run at random times, resumes it, and compares it row by row with one that was never stopped.

    python tests/kill_and_resume.py --data tiny-imagenet-200

Takes about half an hour on two cores; tests/test_resume.py does the same in two minutes with drawn pictures.
"""

import argparse
import csv
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from dr_keras.index.index import Index

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps-per-epoch", type=int, default=300)
    parser.add_argument("--checkpoint-minutes", type=float, default=1.0)
    parser.add_argument("--most", type=float, default=180.0, help="longest time before a run is killed, in seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times")
    options = parser.parse_args()
    common = (
        *("--data", options.data, "--epochs", options.epochs, "--steps-per-epoch", options.steps_per_epoch),
        *("--deterministic", "--checkpoint-minutes", options.checkpoint_minutes),
    )
    whole, broken = (Path("runs") / f"{name}-{int(time.time())}" for name in ("whole", "broken"))

    moments = random.Random(options.seed)
    killed, begun = 0, False
    while killed < options.kills:
        more = ("--resume",) if (broken / "checkpoint.npz").exists() else ("--overwrite",)
        child = train(*common, "--run", broken.name, *more)
        try:
            child.wait(timeout=moments.uniform(5, options.most))
            sys.exit(f"the run ended by itself with {child.returncode}, after {killed} kills")
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            killed += 1
            begun = (broken / "checkpoint.npz").exists()
            print(f"killed: {len(rows(broken))} rows, {'a checkpoint' if begun else 'no checkpoint yet'}", flush=True)
    for name, action in ((broken.name, ["--resume"] if begun else ["--overwrite"]), (whole.name, [])):
        if train(*common, "--run", name, *action).wait():
            sys.exit(f"{name} failed")

    one, other = rows(whole), rows(broken)
    vectors, others = (np.array(Index.open(run / "index").vectors) for run in (whole, broken))
    same = np.array_equal(vectors, others)
    print(f"{len(one)} rows unbroken, {len(other)} after {killed} kills; equal: {one == other}")
    print(f"vectors {vectors.shape}; equal: {same}")
    sys.exit(0 if one == other and same else 1)


def train(*arguments: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, arguments)], stderr=subprocess.DEVNULL)


def rows(run: Path) -> list[list[str]]:
    try:
        with open(run / "history.csv", newline="", encoding="utf-8") as file:
            return list(csv.reader(file))[1:]
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    main()
