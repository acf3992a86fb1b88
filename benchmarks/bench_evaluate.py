#!/usr/bin/env python3
"""Are the figures of `--protocol class-disjoint` those of pytorch-metric-learning, and how fast are they?

    pip install -e . torch pytorch-metric-learning scikit-learn
    python benchmarks/bench_evaluate.py [--rounds 5]

Both get the same vectors: classes around random centers, so that about half of the queries find their class first.
Once each image is a query against all others, as for CUB-200; once there is a gallery, as for In-Shop. They take turns.
The clustering behind NMI begins at random places, so the two differ there; everything else must agree to 1e-6.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from machine import machine, record, spread
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import from_numpy

from dr_keras.evaluation.metric_learning import metric_learning_figures

# Images to rank, queries if these are others, classes, length of a vector, spread of a class
CASES = {
    "each against all others": (6_000, 0, 100, 256, 3.0),
    "queries against a gallery": (12_000, 12_000, 3_000, 256, 2.2),
}
THEIRS = {  # by our name of a figure
    "recall@1": "precision_at_1",
    "r_precision": "r_precision",
    "map@r": "mean_average_precision_at_r",
    "nmi": "NMI",
}
Figures = Callable[[], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{machine()}; {options.rounds} rounds, taking turns\n")
    for name, (count, queries, classes, length, noise) in CASES.items():
        vectors, labels = clusters(count + queries, classes, length, noise)
        first, last = slice(0, queries or count), slice(queries, None)
        ours, theirs = contenders(vectors, labels, first, last, disjoint=bool(queries))
        print(f"{name}: {count:,} x {length}, {classes:,} classes" + (f", {queries:,} queries" if queries else ""))
        compare(name, ours, theirs, options.rounds)


def clusters(count: int, classes: int, length: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (count, length) of unit length around a center of each class, and their labels (count,)."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    vectors = random.normal(size=(classes, length))[labels] / np.sqrt(length)
    vectors += noise * random.normal(size=vectors.shape) / np.sqrt(length)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def contenders(
    vectors: np.ndarray, labels: np.ndarray, queries: slice, gallery: slice, *, disjoint: bool
) -> tuple[Figures, Figures]:
    calculator = AccuracyCalculator(include=tuple(THEIRS.values()), k="max_bin_count")
    tensors, classes = from_numpy(vectors), from_numpy(labels)

    def ours() -> dict[str, float]:
        others = (vectors[gallery], labels[gallery]) if disjoint else (None, None)
        return metric_learning_figures(vectors[queries], labels[queries], *others)

    def theirs() -> dict[str, float]:
        others = (tensors[gallery], classes[gallery]) if disjoint else ()
        return calculator.get_accuracy(tensors[queries], classes[queries], *others)

    return ours, theirs


def compare(name: str, ours: Figures, theirs: Figures, rounds: int) -> None:
    seconds: dict[str, list[float]] = {"dr_keras": [], "pytorch-metric-learning": []}
    for _ in range(rounds):
        figures = []
        for who, measure in zip(seconds, (ours, theirs), strict=True):
            started = time.perf_counter()
            figures.append(measure())
            seconds[who].append(time.perf_counter() - started)
    mine, other = figures
    for key, their_key in THEIRS.items():
        print(f"  {key}: {mine[key]:.6f}, pytorch-metric-learning {other[their_key]:.6f}")
        if key != "nmi" and abs(mine[key] - other[their_key]) > 1e-6:
            raise SystemExit(f"{key} differs")
    for who, values in seconds.items():
        print(f"  {who}: {spread(values, 's')}")
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"  time of dr_keras / pytorch-metric-learning: {ratio:.2f}\n")
    record(name, seconds["dr_keras"], "s", ratio=ratio, to="pytorch-metric-learning")


if __name__ == "__main__":
    main()
