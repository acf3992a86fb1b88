#!/usr/bin/env python3
"""Does an index in bfloat16 find the same neighbors, and how much sooner is it made?

    pip install -e .[fast]
    python benchmarks/bench_precision.py --data tiny-imagenet-200/val/images --run mobilenet [--images 5000]

Embeds the same images by OpenVINO in float32 and in bfloat16. The first 500 of them are queries, always in float32, as
`retrieve.py` embeds a new file: which of their 30 nearest in the float32 vectors are among the 30 nearest in the
bfloat16 vectors? int8 is not offered, because it needs calibration images that a run does not have.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from machine import machine, spread

from dr_keras.data.decoding import decode_files
from dr_keras.data.folders import all_pictures
from dr_keras.embedders import OpenVINOEmbedder
from dr_keras.index.exact_search import nearest
from dr_keras.runs import open_run

QUERIES, K = 500, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of images, at any depth")
    parser.add_argument("--run", default="tiny-imagenet-64")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    run = open_run(options.run)
    config = run.config()
    files = all_pictures([options.data])[0][: options.images]
    pixels, failures = decode_files(files, config.image_size, config.resize)
    pixels = np.delete(pixels, list(failures), axis=0)
    embedders = {precision: OpenVINOEmbedder(run.litert_file, precision=precision) for precision in ("f32", "bf16")}
    rates: dict[str, list[float]] = {name: [] for name in embedders}
    vectors = {}
    for embed in embedders.values():
        embed(pixels[:64])  # warms up
    for _ in range(options.rounds):
        for name, embed in embedders.items():
            started = time.perf_counter()
            vectors[name] = embed(pixels)
            rates[name].append(len(pixels) / (time.perf_counter() - started))
    print(f"{machine()}; {run.path.name}, {config.image_size} px, {len(pixels):,} images")
    for name, values in rates.items():
        print(f"{name}: {spread(values, 'images/s', 1)}")
    ratio = statistics.median(b / a for a, b in zip(rates["f32"], rates["bf16"], strict=True))
    exact, rounded = (found(vectors["f32"][:QUERIES], vectors[name]) for name in ("f32", "bf16"))
    same = np.mean([len(set(a) & set(b)) / K for a, b in zip(exact, rounded, strict=True)])
    largest = np.abs(vectors["bf16"] - vectors["f32"]).max()
    print(f"bf16 / f32: {ratio:.2f}; recall@{K} of the same neighbors: {same:.4f}; largest difference: {largest:.1e}")


def found(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The rows of the K nearest of each query, without the query itself."""
    rows, _ = nearest(queries, gallery, K + 1)
    return np.array([[row for row in of if row != number][:K] for number, of in enumerate(rows)])


if __name__ == "__main__":
    main()
