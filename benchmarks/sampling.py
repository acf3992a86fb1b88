#!/usr/bin/env python3
"""What does it change to draw triplets by relevance? Continues one network on triplets that are drawn in several ways.

    python benchmarks/sampling.py --data FOLDER --judge mobilenet-224 [--steps 300] [--seeds 0] [--arms uniform ...]

A resnet10 of width 32 at 32 px is trained by softmax for 4 epochs, once. From there, each arm trains on equally many
triplets, with the same other settings, beside the classifier. Its columns: precision@30 of the held-out images, by
class; and how often the network agrees with another one, `--judge`, on which of two images of the query's own class is
more like it (3,000 held-out triplets on which the judge is sure), that is, the order within a class.

Nothing is chosen by these figures.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import machine

from dr_keras import load
from dr_keras.data.catalog import load_catalog
from dr_keras.data.decoding import decode_files
from dr_keras.data.splits import VALIDATION

ROOT = Path(__file__).parent.parent
NETWORK = "--image-size 32 --backbone resnet10 --width 32 --progressive none --eval-every 0 --monitor 0"
BASE = "--epochs 4 --pretrain-epochs 4"
TRIPLETS = 3000
SURE = 0.1  # by which the judge's cosine of the positive exceeds that of the negative
ARMS = {
    "uniform": "",
    "by color, negatives of other classes": "--sampling relevance --relevance color",
    "by color, 0.2 in class": "--sampling relevance --relevance color --out-of-class 0.8",
    "by color, 0.5 in class": "--sampling relevance --relevance color --out-of-class 0.5",
    "by color, 0.8 in class": "--sampling relevance --relevance color --out-of-class 0.2",
    "by its own embedding, negatives of other classes": "--sampling relevance --relevance network",
    "by its own embedding, 0.2 in class": "--sampling relevance --relevance network --out-of-class 0.8",
    "by its own embedding, 0.8 in class": "--sampling relevance --relevance network --out-of-class 0.2",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--judge", required=True, help="a run whose order within a class is the truth")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        truth = Path(place) / "order.csv"
        print(f"{machine()}; {options.data}; {options.steps} steps of 64 triplets, seeds {options.seeds}\n")
        print("| triplets | precision@30 | MAP@R | order within a class |\n|---|---|---|---|", flush=True)
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in options.seeds:
            order_within_classes(options.data, options.judge, truth, seed)
            base = f"sampling-base-{seed}"
            call("train.py", "--data", options.data, "--run", base, *f"{NETWORK} {BASE} --seed {seed}".split())
            found.setdefault("softmax stage alone", []).append(figures(base, options.data, truth))
            for name in options.arms:
                flags = f"{NETWORK} --epochs 1 --pretrain-epochs 0 --mining none --steps-per-epoch {options.steps}"
                flags += f" --learning-rate 1e-3 --seed {seed} {ARMS[name]}"
                start = ("--initial-weights", base)
                call("train.py", "--data", options.data, "--run", "sampling-arm", *start, *flags.split())
                found.setdefault(name, []).append(figures("sampling-arm", options.data, truth))
    for name, rows in found.items():
        values = np.array(rows)
        cells = [f"{values[:, n].mean():.4f} ({values[:, n].min():.4f} to {values[:, n].max():.4f})" for n in range(3)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def order_within_classes(data: str, judge: str, file: Path, seed: int) -> None:
    """Writes triplets of images of one class that a run of this seed holds out, in the order of another network."""
    catalog = load_catalog(data, monitor=0, validation=0.1, seed=seed)
    held = catalog.take(catalog.rows(VALIDATION))
    model = load(judge)
    pixels = decode_files(held.paths(), model.config.image_size, model.config.resize)[0]
    vectors = model.vectors(pixels, "trained")
    random = np.random.default_rng(0)
    lines: list[tuple[str, ...]] = []
    while len(lines) < TRIPLETS:
        label = random.integers(len(held.classes))
        query, one, other = random.choice(np.flatnonzero(held.labels == label), 3, replace=False)
        difference = float(vectors[query] @ (vectors[one] - vectors[other]))
        if abs(difference) >= SURE:
            near, far = (one, other) if difference > 0 else (other, one)
            lines.append(tuple(held.paths()[row] for row in (query, near, far)))
    with open(file, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("query", "positive", "negative"), *lines])


def figures(run: str, data: str, truth: Path) -> tuple[float, ...]:
    """The figures of a run: by class, and within classes."""
    classes = json.loads(
        call("evaluate.py", "--run", run, "--data", data, "--head", "trained", "--json", "--no-baselines")
    )
    order = json.loads(
        call("evaluate.py", "--run", run, "--triplets", str(truth), "--head", "trained", "--json", "--no-baselines")
    )
    return classes["precision@30"], classes["map@r"], order["agreement"]


def call(script: str, *arguments: str) -> str:
    """Runs a script of this repository and returns what it prints."""
    again = ("--overwrite",) if script == "train.py" else ()
    command = [sys.executable, str(ROOT / script), *arguments, *again]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


if __name__ == "__main__":
    main()
