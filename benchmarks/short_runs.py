#!/usr/bin/env python3
"""Compares settings of the softmax stage over a few hundred steps on small images, judged by the monitor images.

    python benchmarks/short_runs.py --data tiny-imagenet-200 -- "--optimizer adamw --learning-rate 2e-3" "--scale 16"

Each argument after -- holds flags of train.py and becomes a row of the table. A row trains the 64 px network on 32 px
images, as the recipe begins, for `--steps` steps of 192 images, with its own schedule that ends at zero. For equal
time, a row may have fewer or larger steps (`--steps-per-epoch`, `--batch-size`). Its columns:
the loss over the last 100 steps; the classifier's accuracy on the monitor images; precision@30, MAP@R and similarity
precision of the monitor images against 20,000 training images, fewer than evaluate.py uses, so lower; and images/s. The
validation images are not used.

To compare what helps a network that has learned something already, start from one: `--size 48 -- "--initial-weights
tiny-imagenet-64 --width 48"`.

A network that others have trained is tuned at its own size, by `--size 128 --steps 80 --gallery 10000 --` and rows such
as "--backbone MobileNet --weights FILE --image-size 128 --batch-size 32 --freeze 3".
"""

import argparse
import dataclasses
import shlex
import time

import numpy as np
from machine import machine

from dr_keras.backend import import_framework
from dr_keras.cli.flags import add_flags, parse
from dr_keras.config import Config
from dr_keras.runs import RUNS, starting_from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=32, help="pixels per side (default: 32)")
    parser.add_argument("--gallery", type=int, default=20_000, help="training images that are searched")
    parser.add_argument("rows", nargs="+", metavar="FLAGS")
    options = parser.parse_args()
    print(f"{machine()}; {options.steps} steps, {options.size} px, one seed\n")
    print("| flags | loss | accuracy | precision@30 | MAP@R | similarity precision | images/s |")
    print("|---|---|---|---|---|---|---|")
    for row in options.rows:
        flags = argparse.ArgumentParser()
        add_flags(flags)
        said, _ = parse(flags, shlex.split(row))
        config = Config(**{"data": options.data} | starting_from(said))
        cells = short_run(
            config, config.steps_per_epoch or options.steps, size=options.size, gallery_size=options.gallery
        )
        print(f"| `{row}` | " + " | ".join(cells) + " |", flush=True)


def short_run(config: Config, steps: int, *, size: int, gallery_size: int) -> list[str]:
    """Trains and returns the columns of the row."""
    import_framework()
    import keras

    from dr_keras.data.augment_pillow import augmented
    from dr_keras.data.augmentation_draws import Augmentation
    from dr_keras.data.batches import ImageSource, Share, batches
    from dr_keras.data.catalog import load_catalog
    from dr_keras.data.pixel_store import load_pixels
    from dr_keras.data.splits import MONITOR, TRAIN
    from dr_keras.embedders import embed_with_network
    from dr_keras.evaluation.metrics import evaluate
    from dr_keras.model.network import embedding_network, initial_network
    from dr_keras.progress import stderr
    from dr_keras.training.compile import compiled_model, training_precision
    from dr_keras.training.phases import SOFTMAX
    from dr_keras.training.run import start_from
    from dr_keras.training.sources import training_sources
    from dr_keras.training.tuning import prepare

    console = stderr()
    catalog = load_catalog(
        config.data, monitor=config.monitor, validation=config.validation, seed=config.seed, console=console
    )
    catalog, pixels, _ = load_pixels(catalog, config.image_size, config.resize, store="disk", console=console)
    rows, monitor = catalog.rows(TRAIN), catalog.rows(MONITOR)
    source = training_sources(config, pixels, rows, catalog.labels[rows], Share())[SOFTMAX]
    with training_precision(config):
        network = embedding_network(config, size=size)
        network.set_weights(initial_network(config).get_weights())
        if config.initial_weights:
            start_from(network, config, RUNS)
        prepare(network, config)
        model = compiled_model(
            network, ranking=config, optimizer=config, steps=steps, classes=len(catalog.classes), stage=SOFTMAX
        )
    losses: list[float] = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(float(logs["loss"])))
    started = time.monotonic()
    assert isinstance(source, ImageSource)
    source = dataclasses.replace(source, size=size, plain_steps=round(config.strong_after * steps))
    batch = batches(source, 0, steps)
    model.fit(batch, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[watch])
    rate = steps * 3 * config.batch_size / (time.monotonic() - started)

    def small(chosen: np.ndarray) -> np.ndarray:
        return augmented(pixels, chosen, Augmentation(), size=size)

    labels = catalog.labels[monitor].astype(np.int32)
    inputs = {"image": small(monitor), "label": labels, "other": labels, "share": np.ones(len(labels), np.float32)}
    accuracy = model.predict(inputs, batch_size=250, verbose=0)["accuracy"].mean()
    gallery = np.sort(np.random.default_rng(config.seed).choice(rows, min(gallery_size, len(rows)), replace=False))
    queries, vectors = embed_with_network(network, inputs["image"]), embed_with_network(network, small(gallery))
    figures = evaluate(
        queries,
        catalog.labels[monitor],
        vectors,
        catalog.labels[gallery],
        class_count=len(catalog.classes),
        seed=config.seed,
    ).figures
    return [
        f"{np.mean(losses[-100:]):.3f}",
        f"{accuracy:.3f}",
        f"{figures['precision@30']:.4f}",
        f"{figures['map@r']:.4f}",
        f"{figures['similarity_precision']:.4f}",
        f"{rate:.0f}",
    ]


if __name__ == "__main__":
    main()
