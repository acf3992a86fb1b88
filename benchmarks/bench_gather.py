#!/usr/bin/env python3
"""Ways to gather an augmented batch from the store, in milliseconds for 192 64 x 64 images: docs/decisions/001.

python benchmarks/bench_gather.py
"""

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from machine import machine, record, spread

from dr_keras.data.augment_pillow import gather

BATCH, SIZE, SHIFT, SEED = 192, 64, 4, (0, 1, 2)
OURS = "copied rectangles (kept)"


def main() -> None:
    print(machine())
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (20_000, SIZE, SIZE, 3), dtype=np.uint8)
    rows = random.integers(0, len(pixels), BATCH)
    expected = gather(pixels, rows, flip=True, shift=SHIFT, seed=SEED)
    on_tensorflow = tensorflow_gather(pixels, rows)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "no augmentation": lambda: gather(pixels, rows),
        OURS: lambda: gather(pixels, rows, flip=True, shift=SHIFT, seed=SEED),
        "one flat take": lambda: flat_take(pixels, rows),
        "batched tf.gather": on_tensorflow,
    }
    all_seconds: dict[str, list[float]] = {}
    for name, way in ways.items():
        if name != "no augmentation" and not np.array_equal(way(), expected):
            raise SystemExit(f"{name} gives other pixels")
        seconds = []
        for _ in range(50):
            started = time.perf_counter()
            way()
            seconds.append(1e3 * (time.perf_counter() - started))
        print(f"  {name}: {spread(seconds, 'ms', 2)}")
        all_seconds[name] = seconds
    ours = all_seconds[OURS]
    ratio = statistics.median(ours) / statistics.median(all_seconds["batched tf.gather"])
    record(OURS, ours, "ms", ratio=ratio, to="tf.gather")


def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same random draw as in `gather`: shifts down and right, (B, 1), and the mirrored images, (B, 1)."""
    random = np.random.default_rng(SEED)
    down, right = random.integers(-SHIFT, SHIFT + 1, (2, BATCH, 1))
    return down, right, random.random((BATCH, 1)) < 0.5


def flat_take(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """One take of 3-byte pixels by their computed positions in the whole store."""
    down, right, mirrored = draw()
    y, x = (np.clip(np.arange(SIZE) + by, 0, SIZE - 1) for by in (down, right))
    x = np.where(mirrored, x[:, ::-1], x)
    place = (rows[:, None, None] * SIZE + y[:, :, None]) * SIZE + x[:, None, :]
    return np.take(pixels.reshape(-1).view("V3"), place).view(np.uint8).reshape(BATCH, SIZE, SIZE, 3)


def tensorflow_gather(pixels: np.ndarray, rows: np.ndarray) -> Callable[[], np.ndarray]:
    """Batched gathers along rows and columns, compiled."""
    store, place = tf.constant(pixels), np.arange(SIZE)

    @tf.function
    def take(images: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        found = tf.gather(tf.gather(store, images), y, axis=1, batch_dims=1)
        return tf.gather(found, tf.tile(x[:, None, :], (1, SIZE, 1)), axis=2, batch_dims=2)

    def way() -> np.ndarray:
        down, right, mirrored = draw()
        y, x = np.clip(place + down, 0, SIZE - 1), np.clip(place + right, 0, SIZE - 1)
        return take(rows, y, np.where(mirrored, x[:, ::-1], x)).numpy()

    return way


if __name__ == "__main__":
    main()
