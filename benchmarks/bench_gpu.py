#!/usr/bin/env python3
"""How fast is training on a GPU, what fraction of the chip does it use, and how many epochs fit in the given time?

    python benchmarks/bench_gpu.py --preset tiny-imagenet-gpu --images 99000 --minutes 20
    python benchmarks/bench_gpu.py --preset tiny-imagenet-gpu --count      # only counts operations, needs no GPU

Runs on JAX, or on PyTorch with KERAS_BACKEND and --store memory. Also accepts the flags of train.py, to look for
bottlenecks: --optimizer sgd, --precision float32, --batch-size 512. The images are noise; no dataset is needed. For
each phase of the run:

- `alone`: images/s of `fit` on a single batch that stays on the device.
- `fed`: the same with the run's own batches: sampled, gathered from the store and augmented. `fed / alone` is the
  fraction of the time the device is not waiting.
- operations: two per multiply-add of convolutions and matrix products, times three for forward and backward pass.

Then images/s of embedding, with the network in float32 (as in a SavedModel) and in bfloat16.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import machine, spread

from dr_keras.backend import import_framework
from dr_keras.cli.flags import add_flags, parse
from dr_keras.config import Config

if TYPE_CHECKING:
    from dr_keras.training.phases import Phase

CLASSES = 200
WARM = 3  # steps before the clock starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    own = parser.add_argument_group("the benchmark's own")
    own.add_argument("--images", type=int, default=99_000, help="size of the training set (default: 99000)")
    own.add_argument("--kept", type=int, default=20_000, help="how many of them to generate (default: 20000)")
    own.add_argument("--seconds", type=float, default=5, help="approximate length of each measurement (default: 5)")
    own.add_argument("--minutes", type=float, default=20, help="how long a run may take (default: 20)")
    own.add_argument("--peak", type=float, default=989, help="the chip's bf16 TFLOP/s, dense (default: 989, an H100)")
    own.add_argument("--count", action="store_true", help="only count operations and time the random draws on the CPU")
    said, options = parse(parser)
    config = Config(**said)
    import_framework(config.backend or "jax")
    import keras

    if keras.backend.backend() == "tensorflow":
        sys.exit("bench_gpu.py measures training without tf.data: set KERAS_BACKEND=jax or torch")
    count(config, options)
    if options.count:
        return
    print(f"{machine()}; keras {keras.__version__} on {keras.backend.backend()}: {devices()}")
    product = matrix_product(options.seconds)
    print(f"a bf16 product of two large matrices: {product:.1f} TFLOP/s, {product / options.peak:.1%} of the peak")
    measure(config, product, options)


def count(config: Config, options: argparse.Namespace) -> None:
    """Prints the operations of the network and the whole run, and how long a step's random draws take on the CPU."""
    from dr_keras.data.augmentation_draws import Augmentation, draw_changes, draw_mixing
    from dr_keras.model.network import embedding_network
    from dr_keras.model.operations import multiply_adds

    course, images = phases_of(config, options.images), 3 * config.batch_size
    each = {size: multiply_adds(embedding_network(config, size=size)) for size, _ in config.sizes}
    counted = ", ".join(f"{number / 1e9:.2f}e9 at {size} px" for size, number in each.items())
    print(f"{embedding_network(config).count_params():,} parameters; multiply-adds of an image, forward: {counted}")
    steps = {phase: phase.last_step - phase.first_step for phase in course}
    total = sum(6 * each[phase.size] * images * number for phase, number in steps.items())
    seen, seconds = images * course[-1].last_step, 60 * options.minutes
    print(f"{config.epochs} epochs: {seen / 1e6:.1f} million images, {total:.2e} operations; ", end="")
    print(f"{options.minutes:g} min ask for {total / seconds / 1e12:.0f} TFLOP/s")
    how = Augmentation(config.flip, config.shift, config.crop, config.color, config.operations, config.erase)
    shape, took = (config.image_size, config.image_size), []
    for number in range(50):
        started = time.perf_counter()
        draw_changes(how, images, shape, config.image_size, (number,))
        draw_mixing(images, shape, mixup=config.mixup, cutmix=config.cutmix, seed=(number,))
        took.append(1000 * (time.perf_counter() - started))
    print(f"draws of a step of {images} images on the CPU: {spread(took, 'ms', 1)}")


def phases_of(config: Config, images: int) -> "tuple[Phase, ...]":
    """The phases of a run with `images` training images, each of which can be a query."""
    from dr_keras.training.phases import phases

    batch = config.batch_size
    return phases(config, config.sizes, {"softmax": -(-images // (3 * batch)), "triplets": -(-images // batch)})


def devices() -> str:
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return ", ".join(device.device_kind for device in jax.devices())
    return ", ".join(keras.distribution.list_devices())


def matrix_product(seconds: float) -> float:
    """TFLOP/s of a product of two square bfloat16 matrices: the most this device can do."""
    import keras
    from keras import ops

    side = 8192 if any(name.startswith("gpu") for name in keras.distribution.list_devices()) else 1024
    matrix = ops.cast(keras.random.normal((side, side), seed=0), "bfloat16")

    def step() -> Any:
        return ops.matmul(matrix, matrix)

    return 2 * side**3 * rate(step, seconds) / 1e12


def rate(step: Callable[[], Any], seconds: float) -> float:
    """Calls per second of a function that returns a lazily computed tensor."""
    from keras import ops

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            last = step()
        float(ops.sum(ops.cast(last, "float32")))  # waits for the result
        return time.perf_counter() - started

    run(WARM)
    once = run(WARM) / WARM
    count = max(WARM, round(seconds / once))
    return count / run(count)


def measure(config: Config, product: float, options: argparse.Namespace) -> None:
    from dr_keras.data.batches import Share
    from dr_keras.model.network import embedding_network
    from dr_keras.model.operations import multiply_adds
    from dr_keras.training.compile import compiled_model, precision, training_precision
    from dr_keras.training.devices import set_up_devices
    from dr_keras.training.sources import training_sources

    set_up_devices(config, batch_size=config.batch_size, store=config.store)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (options.kept, config.image_size, config.image_size, 3), np.uint8)
    sources = training_sources(
        config, pixels, np.arange(options.kept), random.integers(0, CLASSES, options.kept), Share()
    )
    batch = config.batch_size
    course = phases_of(config, options.images)
    print(
        f"{config.backbone}, width {config.width}, {precision(config)}, {config.optimizer}, {3 * batch} images a step"
    )
    print("phase | compiled | alone | fed | fed / alone | TFLOP/s | of the peak | of the product | steps | minutes")
    minutes = compiling = 0.0
    for phase in course:
        with training_precision(config):
            network = embedding_network(config, size=phase.size)
            model = compiled_model(
                network,
                ranking=config,
                optimizer=config,
                steps=course[-1].last_step,
                classes=CLASSES,
                stage=phase.stage,
            )
        source = dataclasses.replace(sources[phase.stage], size=phase.size)
        started = time.perf_counter()
        alone, first = fitted(model, Constant(source.batch(0)), options.seconds)
        fed, _ = fitted(model, source, options.seconds)
        compiled = first - started
        per_image = 6 * multiply_adds(network)
        images = 3 * batch * fed
        teraflops = images * per_image / 1e12
        took = (phase.last_step - phase.first_step) / fed / 60
        minutes, compiling = minutes + took, compiling + compiled / 60
        print(
            f"{phase.stage}, {phase.size} px | {compiled:.0f} s | {3 * batch * alone:,.0f}/s | {images:,.0f}/s | "
            f"{fed / alone:.3f} | {teraflops:.1f} | {teraflops / options.peak:.1%} | {teraflops / product:.1%} | "
            f"{phase.last_step - phase.first_step:,} | {took:.1f}",
            flush=True,
        )
    epochs = config.epochs * max(options.minutes - compiling, 0) / minutes
    print(f"{config.epochs} epochs take {minutes:.1f} min and {compiling:.1f} min of compiling; ", end="")
    print(f"{options.minutes:g} min are enough for {epochs:.0f}, rankings of the monitor images not counted")
    embedding(config, options.seconds)


class Constant:
    """A source that repeats one batch without moving it."""

    def __init__(self, batch: dict[str, Any]) -> None:
        import keras

        self._batch = {name: keras.ops.convert_to_tensor(value) for name, value in batch.items()}

    def batch(self, step: int) -> dict[str, Any]:
        return self._batch


def fitted(model: Any, source: Any, seconds: float) -> tuple[float, float]:
    """Steps per second of `fit`, and the time at which its first step was done."""
    import keras

    from dr_keras.data.batches import batches
    from dr_keras.training.callbacks import Callbacks

    class Clock(keras.callbacks.Callback):
        times: dict[int, float]

        def on_train_begin(self, logs: Any = None) -> None:
            self.times = {}

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch in (0, WARM - 1, self.params["steps"] - 1):
                float(keras.ops.convert_to_numpy(logs["loss"]))  # waits for the step
                self.times[batch] = time.perf_counter()

    def run(count: int) -> dict[int, float]:
        clock = Clock()
        callbacks = Callbacks([clock], add_history=True, model=model, steps=count)
        model.fit(batches(source, 0, count), steps_per_epoch=count, verbose=0, shuffle=False, callbacks=callbacks)
        return clock.times

    times = run(2 * WARM)
    first = times[0]
    count = WARM + max(WARM, round(seconds * WARM / (times[2 * WARM - 1] - times[WARM - 1])))
    times = run(count)
    return (count - WARM) / (times[count - 1] - times[WARM - 1]), first


def embedding(config: Config, seconds: float) -> None:
    """Prints images/s of the embedding network, in float32 as in a SavedModel, and in bfloat16."""
    from dr_keras.model.network import embedding_network
    from dr_keras.model.operations import multiply_adds
    from dr_keras.training.compile import training_precision

    side = config.image_size
    for policy in ("float32", "mixed_bfloat16"):
        with training_precision(dataclasses.replace(config, precision=policy)):
            network = embedding_network(config, weights=False)
        for count in (1, 256, 1024):
            images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
            done = count * rate(functools.partial(network.predict_on_batch, images), seconds)
            teraflops = 2 * multiply_adds(network) * done / 1e12
            print(f"embedding, {policy}, {count} at a time: {done:,.0f} images/s, {teraflops:.2f} TFLOP/s", flush=True)


if __name__ == "__main__":
    main()
