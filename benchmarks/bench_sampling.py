#!/usr/bin/env python3
"""What does it cost to draw triplets by relevance from a million images? Time, memory, and triplets/s.

    python benchmarks/bench_sampling.py [--images 1000000] [--classes 1000] [--buffer 256]

The features are random, as long as those of color and gradients (192 numbers), and come in blocks, as from images.
`exact` draws from whole classes, `online` from a buffer of each class, which is drawn anew for each round.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import psutil
from machine import machine, record

from dr_keras.data.color_features import WIDTH
from dr_keras.data.relevance import FeatureRelevance
from dr_keras.data.relevance_sampler import RelevanceSampler

BLOCK = 4096
BATCH = 64
STEPS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--buffer", type=int, default=256)
    options = parser.parse_args()
    labels = np.random.default_rng(0).integers(0, options.classes, options.images)
    before = memory()
    started = time.perf_counter()
    relevance = FeatureRelevance(features(options.images), labels, seed=0)
    print(f"{machine()}; {options.images:,} images of {options.classes:,} classes")
    print(
        f"relevance: {time.perf_counter() - started:.1f} s, {memory() - before:.2f} GiB of memory besides mapped files"
    )
    for name, buffer, share in (
        ("exact, negatives of other classes", options.images, 1.0),
        ("exact, 0.2 of other classes", options.images, 0.2),
        (f"online, buffers of {options.buffer}, 0.2 of other classes", options.buffer, 0.2),
    ):
        sampler = RelevanceSampler(labels, relevance, BATCH, seed=0, out_of_class=share, buffer=buffer)
        sampler.batch(0)
        started = time.perf_counter()
        for step in range(1, STEPS + 1):
            sampler.batch(step)
        rate = STEPS * BATCH / (time.perf_counter() - started)
        print(f"{name}: {rate:,.0f} triplets/s, {memory() - before:.2f} GiB", flush=True)
        record(name, [rate], "triplets/s")
    started = time.perf_counter()
    sampler.batch(sampler._steps_per_round)
    print(f"a new round of buffers: {time.perf_counter() - started:.2f} s")


def features(count: int) -> Iterator[np.ndarray]:
    """Blocks of random features, not below 0 and of unit length."""
    random = np.random.default_rng(1)
    for start in range(0, count, BLOCK):
        values = random.random((min(BLOCK, count - start), WIDTH), np.float32)
        yield values / np.linalg.norm(values, axis=1, keepdims=True)


def memory() -> float:
    """The memory of this process in GiB, without files that are mapped into it."""
    found = psutil.Process().memory_info()
    return (found.rss - getattr(found, "shared", 0)) / 2**30


if __name__ == "__main__":
    main()
