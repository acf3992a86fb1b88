#!/usr/bin/env python3
"""How long does a user wait for neighbors (the whole process), and how long does evaluate.py take to rank?

    python benchmarks/bench_retrieve.py

Creates a finished run of random vectors in a temporary folder: a 100,000 x 256 gallery with 5,000 held-out queries, and
the untrained default network as its LiteRT file. The page cache is warm: each command runs once before it is timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine, record, spread
from PIL import Image

from dr_keras.atomic_files import write_array, write_json
from dr_keras.config import Config
from dr_keras.data.catalog import Catalog
from dr_keras.data.splits import TRAIN, VALIDATION
from dr_keras.evaluation.metrics import evaluate
from dr_keras.index.exact_search import numpy_search
from dr_keras.index.index import Index
from dr_keras.index.write_index import write_index
from dr_keras.runs import Run, start_run

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ("tensorflow", "keras", "jax", "torch")
GALLERY, QUERIES, LENGTH, CLASSES = 100_000, 5_000, 256, 200
GOALS = {"by name": "<= 1.35", "new file": "<= 1.6"}  # of the imports alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run = Run(place / "runs" / "bench")
        make_run(run, place)
        print(f"gallery {GALLERY:,} x {LENGTH}, top 30, whole process, page cache warm")
        asked = {"by name": "image_77.jpg", "new file": str(place / "new.png")}
        seconds: dict[str, list[float]] = {title: [] for title in ("imports alone", *asked)}
        for turn in range(options.rounds + 1):
            for title, found in seconds.items():
                arguments = ["--query", asked[title], "--json"] if title in asked else []
                found += [timed(place, arguments)] * bool(turn)  # the first one is a warm-up
        base = statistics.median(seconds["imports alone"])
        for title, found in seconds.items():
            frameworks = imported(place, ["--query", asked[title], "--json"]) if title in asked else []
            ratio = statistics.median(found) / base
            print(
                f"  {title}: {spread(found, 's')}, {ratio:.2f}; frameworks imported: {', '.join(frameworks) or 'none'}"
            )
            if title in GOALS:
                record(f"retrieve.py --json, {title}", found, "s", ratio=ratio, to="imports alone", goal=GOALS[title])
        index = Index.open(run.index)
        labels = np.arange(GALLERY + QUERIES) % CLASSES
        ranking = []
        for _ in range(3):
            started = time.perf_counter()
            evaluate(
                index.vectors[GALLERY:],
                labels[GALLERY:],
                index.vectors[:GALLERY],
                labels[:GALLERY],
                class_count=CLASSES,
            )
            ranking.append(time.perf_counter() - started)
        print(f"  ranking {QUERIES:,} queries, all figures of evaluate.py: {spread(ranking, 's', 2)}")
        record(f"all figures of {QUERIES:,} queries", ranking, "s")
        compare_engines(index)


def compare_engines(index: Index) -> None:
    """NumPy against FAISS for few and many queries: docs/decisions/002."""
    import faiss

    gallery = np.array(index.vectors[:GALLERY])
    for count in (1, 8, 64, 1000):
        queries = np.array(index.vectors[GALLERY : GALLERY + count])
        for name, search in (("FAISS", faiss.knn), ("NumPy", numpy_search)):
            seconds = []
            for _ in range(5):
                started = time.perf_counter()
                search(queries, gallery, 30)
                seconds.append(1e3 * (time.perf_counter() - started))
            print(f"  {count:,} queries by {name}: {spread(seconds, 'ms', 1)}")


def make_run(run: Run, place: Path) -> None:
    """Writes a finished run whose images do not exist, with the network of a real one."""
    config = Config(data=str(place), run="bench")
    start_run(run, config)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((GALLERY + QUERIES, LENGTH), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = (np.arange(GALLERY + QUERIES) % CLASSES).astype(np.int32)
    names = [f"n{label:08d}" for label in range(CLASSES)]
    ids = [f"train/{names[row % CLASSES]}/images/image_{row}.jpg" for row in range(GALLERY + QUERIES)]
    splits = np.where(np.arange(GALLERY + QUERIES) < GALLERY, TRAIN, VALIDATION).astype(np.uint8)
    catalog = Catalog(place, place, tuple(ids), labels, tuple(names), tuple(names), splits)
    write_index(run.index, catalog, vectors)
    samples = random.integers(0, 256, (8, config.image_size, config.image_size, 3), dtype=np.uint8)
    write_array(run.samples_file, samples)
    Image.fromarray(samples[0]).save(place / "new.png")
    code = (
        "import sys, json; from pathlib import Path; from dr_keras.config import Config\n"
        "from dr_keras.model.network import initial_network\n"
        "initial_network(Config()).save(sys.argv[1])\n"
    )
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", code, str(run.network_file)], check=True, env=quiet, cwd=ROOT)
    subprocess.run([sys.executable, "-m", "dr_keras.export", str(run.path)], check=True, env=quiet, cwd=ROOT)
    write_json(run.metrics_file, {})


def timed(place: Path, arguments: list[str]) -> float:
    """Seconds that a run of retrieve.py takes; without arguments, what any search would have to import."""
    script = [str(ROOT / "retrieve.py"), *arguments] if arguments else ["-c", "import numpy, PIL.Image, sqlite3"]
    started = time.perf_counter()
    result = subprocess.run([sys.executable, *script], cwd=place, capture_output=True, check=True)
    seconds = time.perf_counter() - started
    if arguments and len(json.loads(result.stdout)["results"]) != 30:
        raise SystemExit("retrieve.py did not return 30 neighbors")
    return seconds


def imported(place: Path, arguments: list[str]) -> list[str]:
    """The frameworks that retrieve.py imported."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "retrieve.py"), *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    return sorted(modules & set(FRAMEWORKS))


if __name__ == "__main__":
    main()
