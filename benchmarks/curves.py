#!/usr/bin/env python3
"""Plots the progress of one or more runs: the loss of each stage and the precision of the monitor images.

python benchmarks/curves.py runs/tiny-imagenet-64 --save docs/images/curves.png
"""

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")

from matplotlib import pyplot as plt

SMOOTHED = 100  # steps averaged into one point of the loss
STAGES = {"classifier_loss": "classifier", "triplet_loss": "triplets"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--save", type=Path, default=Path("curves.png"))
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for run in options.runs:
        for name, label in STAGES.items():
            steps, values = losses(run, name)
            if len(steps):
                left.plot(steps, values, label=f"{run.name}: {label}")
        steps, values = precision(run)
        right.plot(steps, values, marker="o", markersize=3, label=run.name)
    left.set(title="loss", xlabel="step", ylim=(0, None))
    right.set(title="precision@30 of the monitor images", xlabel="step", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(options.save, dpi=120)
    print(f"saved {options.save}")


def losses(run: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and means of a column of history.csv, per `SMOOTHED` steps; empty if no step has the column."""
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]
    whole = len(rows) // SMOOTHED * SMOOTHED
    grouped = np.array(rows[:whole], np.float64).reshape(-1, SMOOTHED, 2).mean(axis=1)
    return grouped[:, 0], grouped[:, 1]


def precision(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and precision@30 of the monitor images, from TensorBoard."""
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    events = board.Scalars("monitor/precision_at_30")
    return np.array([event.step for event in events]), np.array([event.value for event in events])


if __name__ == "__main__":
    main()
