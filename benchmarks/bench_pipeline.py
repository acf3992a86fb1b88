#!/usr/bin/env python3
"""Does the data pipeline keep the network busy? Images/s of real training relative to `fit` on one constant batch.

    python benchmarks/bench_pipeline.py --data FOLDER

Both use the same compiled model, real training with its history and TensorBoard; they take turns. Two networks: the
default one, and one about five times cheaper, where the pipeline has to be five times as fast. Also measures the
images/s of decoding the dataset for the first time.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from machine import machine, record, spread

from dr_keras.config import Config
from dr_keras.data.augmentation_draws import Augmentation
from dr_keras.data.batches import TripletSource, dataset
from dr_keras.data.catalog import load_catalog
from dr_keras.data.pixel_store import load_pixels
from dr_keras.data.samplers import TripletSampler
from dr_keras.data.splits import TRAIN
from dr_keras.model.network import initial_network
from dr_keras.training.callbacks import StepLog
from dr_keras.training.compile import compiled_model
from dr_keras.training.reporters import Board, History

START = 3  # steps of each fit before timing starts: both begin with an empty buffer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=6, help="length of each of the two fits per round")
    parser.add_argument("--network", choices=("default", "cheap"), help="measure only this network")
    options = parser.parse_args()
    print(machine())

    catalog = load_catalog(options.data, monitor=0.01, validation=0.1, seed=0)
    started = time.perf_counter()
    catalog, pixels, _ = load_pixels(catalog, 64)
    seconds = time.perf_counter() - started
    print(f"decode: {len(catalog):,} images in {seconds:.1f} s, {len(catalog) / seconds:,.0f} images/s (n = 1)")
    record("opening the images", [seconds], "s")

    rows = catalog.rows(TRAIN)
    networks = {"default": Config(), "cheap": Config(backbone="resnet10", width=16)}
    for config in [networks[options.network]] if options.network else networks.values():
        sampler = TripletSampler(catalog.labels[rows], config.batch_size, config.seed)
        source = TripletSource(pixels, rows, sampler, Augmentation(config.flip, config.shift))
        compare(config, source, options.rounds, options.seconds)


class Clock(keras.callbacks.Callback):
    """Records when each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ends.append(time.perf_counter())


def compare(config: Config, source: TripletSource, rounds: int, seconds: float) -> None:
    """Prints the images/s of both fits, run in turns, and the ratio of each pair."""
    model = compiled_model(initial_network(config), ranking=config, optimizer=config, steps=10_000)
    constant = tf.data.Dataset.from_tensors(source.batch(0)).repeat().prefetch(2)
    images = 3 * config.batch_size

    def rate(batches: tf.data.Dataset, steps: int, watchers: list[keras.callbacks.Callback]) -> float:
        clock = Clock()
        model.fit(batches, steps_per_epoch=steps + START, verbose=0, shuffle=False, callbacks=[*watchers, clock])
        return images * steps / (clock.ends[-1] - clock.ends[START - 1])

    rate(constant, 4, [])  # compiles
    steps = max(10, round(rate(constant, 10, []) * seconds / images))
    real: list[float] = []
    same: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        history, board = History(Path(folder) / "history.csv"), Board(Path(folder))
        for number in range(rounds):
            first = number * (steps + START)
            watch = StepLog(first, lambda _: 1e-3, [history, board.steps])
            turns = [
                (same, constant, []),
                (real, dataset(source, first, first + steps + START), [watch]),
            ]
            for values, batches, watchers in turns if number % 2 else reversed(turns):
                values.append(rate(batches, steps, watchers))
        history.close()
        board.close()
    ratios = [one / other for one, other in zip(real, same, strict=True)]
    print(f"{config.backbone} --width {config.width}, batches of {config.batch_size} triplets, {steps} steps a fit")
    print(f"  constant batch: {spread(same, 'images/s', 0)}")
    print(f"  real pipeline:  {spread(real, 'images/s', 0)}")
    print(f"  ratio:          {spread(ratios, '', 3)}")
    title = f"{config.backbone} --width {config.width}"
    record(title, real, "images/s", ratio=statistics.median(ratios), to="a constant batch", goal=">= 0.97")


if __name__ == "__main__":
    main()
