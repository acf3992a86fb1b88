"""Trains: from the data set to a finished run folder. The one place that calls `fit`."""

import json
import random
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from dr_keras import export
from dr_keras.config import Config
from dr_keras.console import bar
from dr_keras.data import TRAIN
from dr_keras.data.catalog import Catalog, load_catalog
from dr_keras.data.pipeline import TripletSource, triplet_dataset
from dr_keras.data.pixels import load_pixels
from dr_keras.data.triplets import TripletSampler
from dr_keras.files import new_file, write_array, write_json
from dr_keras.model.network import embedding_network, training_network
from dr_keras.retrieval.embed import embed_with_network
from dr_keras.retrieval.index import Index
from dr_keras.runs import RUNS, Run, new_run, start_run
from dr_keras.training import callbacks
from dr_keras.training.watch import Monitor

SAMPLES = 64  # images kept in the run folder for checking exports


def run_training(config: Config, *, runs: Path = RUNS, overwrite: bool = False, console: Console | None = None) -> Run:
    """Trains as `config` says and leaves a finished run folder.

    Args:
        config: the settings.
        runs: the folder that run folders lie in.
        overwrite: replace an earlier run of the same name, once the new one's data is read.
        console: where progress is shown; standard error by default.

    Raises:
        InputError: the data cannot be used, or the run's name is taken.
    """
    console = console or Console(stderr=True)
    run = new_run(config, runs, overwrite=overwrite)
    catalog = load_catalog(config.data, monitor=config.monitor, validation=config.validation, seed=config.seed)
    with bar("reading images", len(catalog), console) as advance:
        catalog, pixels, report = load_pixels(catalog, config.image_size, advance=advance)
    rows = catalog.rows(TRAIN)
    sampler = TripletSampler(catalog.labels[rows], config.batch_size, config.seed)
    start_run(run, config)
    write_json(run.report_file, report)
    _say_data(console, catalog, report, run)

    source = TripletSource(pixels, rows, sampler, flip=config.flip, shift=config.shift)
    board = callbacks.Board(run.tensorboard)
    monitor = Monitor(catalog, pixels, board, config.seed)
    board.text("configuration", _markdown(config.to_dict()))
    monitor.show_triplets(source.batch(0))
    network, steps = _fit(config, source, monitor, board, run, console)

    with bar("embedding images", len(catalog), console) as advance:
        vectors = embed_with_network(network, pixels, advance=advance)
    figures = monitor.look(lambda wanted: vectors[wanted], steps)
    board.close()
    _save_network(run, network)
    Index.of(catalog, vectors).save(run.index)
    chosen = np.random.default_rng(config.seed).permutation(len(catalog))[:SAMPLES]
    write_array(run.samples_file, pixels[np.sort(chosen)])
    if figures:
        console.print(
            "monitor: " + "  ".join(f"{name} {figures[name]:.4f}" for name in ("precision@1", "precision@30", "map@r")),
            highlight=False,
        )
    console.print("exporting SavedModel and LiteRT")
    checks = export.export_in_child(run)
    write_json(run.metrics_file, {"steps": steps, "monitor": figures, "export": checks})
    console.print(f"finished: {run.path}", highlight=False)
    return run


def initial_network(config: Config) -> keras.Model:
    """The embedding network with the weights that training starts from; equal for equal seeds."""
    state = random.getstate()
    random.seed(config.seed)  # Keras draws the seeds of its initialisers from here
    try:
        return embedding_network(config)
    finally:
        random.setstate(state)


def optimizer(config: Config, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer with its schedule over `steps` steps: a linear warm-up, then a cosine down to 0."""
    warmup = round(config.warmup * steps)
    if warmup:
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(steps - warmup, 1), warmup_target=config.learning_rate, warmup_steps=warmup
        )
    else:
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    if config.optimizer == "sgd":
        chosen = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    else:
        chosen = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    chosen.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return chosen


def _fit(
    config: Config, source: TripletSource, monitor: Monitor, board: callbacks.Board, run: Run, console: Console
) -> tuple[keras.Model, int]:
    """Runs `fit`; returns the trained embedding network in float32 and the number of steps."""
    on_gpu = bool(keras.distribution.list_devices("gpu"))
    precision = ("mixed_bfloat16" if on_gpu else "float32") if config.precision == "auto" else config.precision
    steps_per_epoch = config.steps_per_epoch or source.sampler.steps_per_epoch
    steps = config.epochs * steps_per_epoch

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        network = initial_network(config)
        model = training_network(network, margin=config.margin, distance=config.distance)
    finally:
        keras.config.set_dtype_policy(before)
    # XLA compiles convolutions for a CPU to a third of the speed of TensorFlow's own kernels.
    model.compile(optimizer(config, steps), jit_compile="auto" if on_gpu else False)

    progress = callbacks.Progress(
        console, epochs=config.epochs, steps_per_epoch=steps_per_epoch, images_per_step=3 * config.batch_size
    )
    history = callbacks.History(run.history_file)

    def watch(epochs_done: int) -> None:
        started = time.monotonic()
        step = epochs_done * steps_per_epoch
        figures = monitor.look(lambda rows: embed_with_network(network, source.pixels, rows), step)
        if figures:
            console.print(
                f"epoch {epochs_done}: monitor precision@30 {figures['precision@30']:.4f}  "
                f"similarity precision {figures['similarity_precision']:.4f}",
                highlight=False,
            )
        progress.pause(time.monotonic() - started)

    schedule = model.optimizer._learning_rate  # the schedule; `learning_rate` is its value at the current step
    log = callbacks.StepLog(0, lambda step: float(schedule(step)), [history, board.steps, progress])
    try:
        model.fit(
            triplet_dataset(source, 0, steps),
            epochs=config.epochs,
            steps_per_epoch=steps_per_epoch,
            verbose=0,
            shuffle=False,  # the sampler has shuffled
            callbacks=[log, callbacks.EachEpoch(watch, every=config.eval_every, epochs=config.epochs)],
        )
    finally:
        progress.close()
        history.close()
    if precision == "float32":
        return network, steps
    plain = embedding_network(config)
    plain.set_weights(network.get_weights())
    return plain, steps


def _save_network(run: Run, network: keras.Model) -> None:
    with new_file(run.network_file) as temporary:
        network.save(temporary)


def _say_data(console: Console, catalog: Catalog, report: dict[str, Any], run: Run) -> None:
    splits = ", ".join(f"{count:,} {name}" for name, count in report["splits"].items())
    console.print(f"{len(catalog):,} images of {len(catalog.classes)} classes: {splits}", highlight=False)
    if report["skipped_count"]:
        console.print(
            f"{report['skipped_count']} files skipped, {report['skipped'][0]['id']} first "
            f"({report['skipped'][0]['reason']}); all are named in {run.report_file}",
            highlight=False,
        )
    for note in report["notes"]:
        console.print(f"note: {note}", highlight=False)


def _markdown(values: dict[str, Any]) -> str:
    return "| setting | value |\n|---|---|\n" + "\n".join(f"| {key} | {json.dumps(v)} |" for key, v in values.items())
