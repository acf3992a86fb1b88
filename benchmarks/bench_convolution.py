#!/usr/bin/env python3
"""What the gradient of kernels as a matrix product gains: `dr_keras.model.convolution.Convolution` against Keras's.

    python benchmarks/bench_convolution.py [--rounds 5]

First single convolutions with all their gradients, then whole training steps (softmax, Muon, a constant batch), always
in turns with `keras.layers.Conv2D`. Milliseconds, the median of the rounds and their range; TensorFlow only.
"""

import argparse
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
from machine import machine

from dr_keras.backend import import_framework
from dr_keras.config import Config

SHAPES = (  # pixels per side, channels in and out, kernel, stride
    (16, 96, 96, 3, 1),
    (8, 128, 128, 3, 1),
    (8, 192, 192, 3, 1),
    (8, 256, 256, 3, 1),
    (4, 256, 256, 3, 1),
    (4, 384, 384, 3, 1),
    (2, 256, 256, 3, 1),
    (2, 384, 384, 3, 1),
    (8, 192, 384, 3, 2),
    (4, 192, 384, 3, 2),
    (4, 192, 384, 1, 2),
)
STEPS = ((32, 32), (32, 64), (48, 32), (48, 64))  # width, pixels per side
IMAGES = 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    import_framework()
    from dr_keras.model.convolution import Convolution

    print(f"{machine()}; {IMAGES} images, median (range) of {rounds} rounds, ms\n")
    print("| what | Keras | as a product | Keras / product |\n|---|---|---|---|")
    cases = {f"{side} x {side}, {c} to {d}, {k} x {k} / {s}": one(side, c, d, k, s) for side, c, d, k, s in SHAPES}
    for width, side in STEPS:
        cases[f"training step, width {width}, {side} px"] = step(width, side)
    for name, make in cases.items():
        ours = warm(make())
        with mock.patch.object(Convolution, "_gains", return_value=False):
            theirs = warm(make())
        times = np.array([[timed(theirs), timed(ours)] for _ in range(rounds)]).T
        cells = [f"{np.median(row):.1f} ({row.min():.1f} to {row.max():.1f})" for row in times]
        print(f"| {name} | {cells[0]} | {cells[1]} | {np.median(times[0] / times[1]):.2f} |", flush=True)


def one(side: int, channels: int, maps: int, kernel: int, stride: int) -> Callable[[], Callable[[], object]]:
    """Returns what makes a function that convolves and computes all gradients, in mixed bfloat16 where it is fast."""

    def make() -> Callable[[], object]:
        import keras
        import tensorflow as tf

        from dr_keras.model.convolution import Convolution
        from dr_keras.training.compile import training_precision

        with training_precision(Config(data="none")):
            layer = Convolution(maps, kernel, stride, padding="same", data_format="channels_last", use_bias=False)
            layer.build((None, side, side, channels))
        images = tf.cast(tf.random.normal((IMAGES, side, side, channels)), layer.compute_dtype)

        @tf.function
        def gradients() -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(images)
                loss = tf.reduce_sum(keras.ops.square(layer(images, training=True)))
            return tape.gradient(loss, [images, layer.kernel.value])

        return lambda: gradients()[1].numpy()

    return make


def step(width: int, side: int) -> Callable[[], Callable[[], object]]:
    """Returns what makes a function that takes a training step."""

    def make() -> Callable[[], object]:
        from dr_keras.model.network import embedding_network
        from dr_keras.training.compile import compiled_model, training_precision
        from dr_keras.training.phases import SOFTMAX

        config = Config(data="none", width=width)
        with training_precision(config):
            network = embedding_network(config, size=side)
            model = compiled_model(network, ranking=config, optimizer=config, steps=1000, classes=200, stage=SOFTMAX)
        random = np.random.default_rng(0)
        labels = random.integers(0, 200, IMAGES, np.int32)
        batch = {
            "image": random.integers(0, 256, (IMAGES, side, side, 3), np.uint8),
            "label": labels,
            "other": labels,
            "share": np.ones(IMAGES, np.float32),
        }
        return lambda: model.train_on_batch(batch)

    return make


def warm(call: Callable[[], object]) -> Callable[[], object]:
    """Calls it twice, so that it is compiled."""
    call()
    call()
    return call


def timed(call: Callable[[], object]) -> float:
    """The milliseconds of a call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
