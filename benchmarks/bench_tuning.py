#!/usr/bin/env python3
"""How fast is a pretrained network tuned? Images/s of a run's own training and of plain Keras `fit`.

    python benchmarks/bench_tuning.py [--size 128] [--freeze 3] [--steps 20] [--rounds 3]

MobileNet of keras.applications, by default on 128 px images, in steps of 96 images. A run reads, crops and mirrors the
images itself and trains with Muon, the default, or AdamW, with a rate for each layer. Plain Keras gets the images as
one array, without any augmentation, trains a classifier on the same features with AdamW, and may choose float32 or
mixed_bfloat16. Each has its own process, and they take turns; the first two steps, in which graphs are traced, do not
count.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from machine import machine, record, spread

from dr_keras.backend import import_framework
from dr_keras.config import Config

BATCH, CLASSES, WARM = 96, 200, 2  # images per step; classes; steps that do not count
PLAIN = ("plain Keras, float32", "plain Keras, mixed_bfloat16")
OURS = {"dr_keras, Muon": "muon", "dr_keras, AdamW": "adamw"}
CONTENDERS = (*OURS, *PLAIN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--freeze", default="none", help="as for train.py; plain Keras freezes the same layers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--constant", action="store_true", help="runs of dr_keras train on one batch, made once")
    parser.add_argument("--backbone-rate", type=float, default=0.1, help="as for train.py; 1: one rate for all weights")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)  # in the child process
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(images_per_second(options.contender, options)))
        return
    print(f"{machine()}; MobileNet, {options.size} px, --freeze {options.freeze}, {options.steps} steps of {BATCH}\n")
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name in CONTENDERS if number % 2 else reversed(CONTENDERS):
            command = [sys.executable, __file__, *sys.argv[1:], "--contender", name]
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            rates[name].append(json.loads(child.stdout.splitlines()[-1]))
    for name, values in rates.items():
        print(f"{name}: {spread(values, 'images/s', 1)}")
    best = max(PLAIN, key=lambda name: float(np.median(rates[name])))
    for name in OURS:
        ratios = [ours / plain for ours, plain in zip(rates[name], rates[best], strict=True)]
        print(f"{name} / {best}: {spread(ratios, '', 2)}")
        record(name, rates[name], "images/s", ratio=float(np.median(ratios)), to="plain Keras", goal=">= 0.97")


def images_per_second(contender: str, options: argparse.Namespace) -> float:
    """Trains for some steps; the rate of those that count."""
    import_framework()
    import keras

    size, steps = options.size, options.steps
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (BATCH * 4, size, size, 3), np.uint8)
    labels = random.integers(0, CLASSES, len(pixels))
    config = Config(
        backbone="MobileNet",
        weights="none",
        image_size=size,
        multiscale=False,
        embedding_dim=0,
        batch_size=BATCH // 3,
        backbone_rate=options.backbone_rate,
        freeze=options.freeze,
        optimizer=OURS.get(contender, "adamw"),
    )
    fit = own_fit if contender in OURS else plain_fit
    if contender.endswith("bfloat16"):
        keras.config.set_dtype_policy("mixed_bfloat16")
    times: list[float] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            times.append(time.perf_counter())

    if options.constant and contender in OURS:
        own_fit(config, pixels, labels, steps + WARM, Watch(), constant=True)
    else:
        fit(config, pixels, labels, steps + WARM, Watch())
    return BATCH * steps / (times[-1] - times[WARM - 1])


class Constant:
    """Makes the first batch of another source once, and then always the same."""

    def __init__(self, source: Any) -> None:
        self.signature, self.steps_per_epoch = source.signature, source.steps_per_epoch
        self._batch = source.batch(0)

    def batch(self, _step: int) -> Any:
        return self._batch


def own_fit(
    config: Config, pixels: np.ndarray, labels: np.ndarray, steps: int, watch: Any, *, constant: bool = False
) -> None:
    """The softmax stage of a training run."""
    from dr_keras.data.batches import Share, batches
    from dr_keras.model.network import initial_network
    from dr_keras.training.compile import compiled_model, training_precision
    from dr_keras.training.phases import SOFTMAX
    from dr_keras.training.sources import training_sources
    from dr_keras.training.tuning import prepare

    source: Any = training_sources(config, pixels, np.arange(len(pixels)), labels, Share())[SOFTMAX]
    source = Constant(source) if constant else source
    with training_precision(config):
        network = initial_network(config)
        prepare(network, config)
        model = compiled_model(network, ranking=config, optimizer=config, steps=steps, classes=CLASSES, stage=SOFTMAX)
    model.fit(batches(source, 0, steps), steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[watch])


def plain_fit(config: Config, pixels: np.ndarray, labels: np.ndarray, steps: int, watch: Any) -> None:
    """A classifier on the same network, frozen in the same way, in Keras alone."""
    import keras

    from dr_keras.model.network import initial_network
    from dr_keras.training.tuning import prepare

    network = initial_network(config)
    prepare(network, config)
    scores = keras.layers.Dense(CLASSES, dtype="float32")(network.output)
    model = keras.Model(network.input, scores)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(6e-4), loss, jit_compile=False)  # XLA takes three times as long on a CPU
    rows = np.arange(BATCH * steps) % len(pixels)
    model.fit(pixels[rows], labels[rows], batch_size=BATCH, shuffle=False, verbose=0, callbacks=[watch])


if __name__ == "__main__":
    main()
