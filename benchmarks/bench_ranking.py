#!/usr/bin/env python3
"""All figures of evaluate.py for many queries against a large gallery: in what time and memory?

    python benchmarks/bench_ranking.py [--rows 1000000] [--queries 10000] [--classes 1000] [--rounds 1]

The vectors, around the center of each class, are read from a file. MAP@R ranks as many images as the largest class has.
Each round is a process of its own; memory is its peak, with the pages of the file that it has read.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_index import PART, memory, unit
from machine import machine, record, spread

from dr_keras.evaluation.metrics import evaluate

NOISE = 0.12  # of each of 256 values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the vectors are written (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in the child process
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.queries, options.classes)))
        return
    title = f"{options.queries:,} queries against {options.rows:,}"
    print(f"{machine()}; {title} x {options.dim}, {options.classes:,} classes")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "vectors.npy"
        write(file, options.rows + options.queries, options.dim, options.classes)
        seconds, peaks = [], []
        for _ in range(options.rounds):
            command = [sys.executable, __file__, "--measure", str(file), "--queries", str(options.queries)]
            command += ["--classes", str(options.classes)]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(child.stdout.splitlines()[-1])
            seconds.append(found["seconds"])
            peaks.append(found["GiB"])
            print(f"  {found}", flush=True)
    print(f"{spread(seconds, 's', 1)}; {spread(peaks, 'GiB', 2)}")
    record(title, seconds, "s", goal="<= 60" if options.rows == 1_000_000 else "")
    record(f"{title}: memory", peaks, "GiB", goal="<= 4" if options.rows == 1_000_000 else "")


def write(file: Path, count: int, dim: int, classes: int) -> None:
    """Row n is of class n modulo the number of classes."""
    random = np.random.default_rng(0)
    centers = unit(random.standard_normal((classes, dim), np.float32))
    out = np.lib.format.open_memmap(file, "w+", np.float32, (count, dim))
    for start in range(0, count, PART):
        labels = np.arange(start, min(start + PART, count)) % classes
        out[start : start + PART] = unit(
            centers[labels] + NOISE * random.standard_normal((len(labels), dim), np.float32)
        )
    out.flush()


def measure(file: Path, queries: int, classes: int) -> dict[str, float]:
    vectors = np.load(file, mmap_mode="r")
    labels = np.arange(len(vectors)) % classes
    started = time.perf_counter()
    found = evaluate(vectors[-queries:], labels[-queries:], vectors[:-queries], labels[:-queries], class_count=classes)
    seconds = time.perf_counter() - started
    figures = {name: found.figures[name] for name in ("precision@30", "map@r", "similarity_precision")}
    return {"seconds": seconds, "GiB": memory() / 1024} | figures


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
