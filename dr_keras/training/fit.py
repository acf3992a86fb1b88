"""Trains: from the data set to a finished run folder. The one place that calls `fit`."""

import json
import random
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from dr_keras import export
from dr_keras.config import Config
from dr_keras.console import bar, stderr
from dr_keras.data import TRAIN
from dr_keras.data.catalog import Catalog, load_catalog
from dr_keras.data.pipeline import TripletSource, triplet_dataset
from dr_keras.data.pixels import load_pixels
from dr_keras.data.triplets import TripletSampler
from dr_keras.errors import Interrupted, RunError
from dr_keras.files import new_file, write_array, write_json
from dr_keras.model.network import embedding_network, training_network
from dr_keras.retrieval.embed import embed_with_network
from dr_keras.retrieval.index import Index
from dr_keras.runs import RUNS, Run, new_run, resumable_run, start_run
from dr_keras.training import callbacks
from dr_keras.training.checkpoint import Progress, read_progress, restore_checkpoint, save_checkpoint
from dr_keras.training.watch import Monitor

SAMPLES = 64  # images kept in the run folder for checking exports


def run_training(
    config: Config,
    *,
    runs: Path = RUNS,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> Run:
    """Trains as `config` says and leaves a finished run folder.

    Args:
        config: the settings.
        runs: the folder that run folders lie in.
        overwrite: replace an earlier run of the same name, once the new one's data is read.
        resume: go on with the unfinished run of that name, from its last checkpoint.
        console: where progress is shown; standard error by default.

    Raises:
        InputError: the data cannot be used; the run's name is taken; there is nothing to resume.
        Interrupted: Ctrl-C or SIGTERM; the run is saved and can be resumed.
    """
    console = console or stderr()
    run = resumable_run(config, runs) if resume else new_run(config, runs, overwrite=overwrite)
    done = read_progress(run.checkpoint_file) if resume else None
    catalog = load_catalog(config.data, monitor=config.monitor, validation=config.validation, seed=config.seed)
    with bar("reading images", len(catalog), console) as advance:
        catalog, pixels, report = load_pixels(catalog, config.image_size, advance=advance)
    data = zlib.crc32("\n".join(catalog.ids).encode(errors="surrogateescape"))
    if done and done.data != data:
        raise RunError(f"the images in {catalog.root} are not those that {run.path} was started with")
    rows = catalog.rows(TRAIN)
    sampler = TripletSampler(catalog.labels[rows], config.batch_size, config.seed)
    if not resume:
        start_run(run, config, overwrite=overwrite)
        write_json(run.report_file, report)
    _say_data(console, catalog, report, run)

    progress = done or Progress(0, data)
    source = TripletSource(pixels, rows, sampler, flip=config.flip, shift=config.shift)
    board = callbacks.Board(run.tensorboard, progress.step)
    monitor = Monitor(catalog, pixels, board, config.seed)
    try:
        if not progress.step:
            board.text("configuration", _markdown(config.to_dict()))
            monitor.show_triplets(source.batch(0))
        network, steps = _fit(config, source, monitor, board, run, progress, console)
        with bar("embedding images", len(catalog), console) as advance:
            vectors = embed_with_network(network, pixels, advance=advance)
        figures = monitor.look(lambda wanted: vectors[wanted], steps)
    finally:
        board.close()
    with new_file(run.network_file) as temporary:
        network.save(temporary)
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
    run.checkpoint_file.unlink(missing_ok=True)
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


def learning_rates(config: Config, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate over `steps` steps: a linear warm-up, then a cosine down to 0."""
    warmup = round(config.warmup * steps)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - warmup, 1), warmup_target=config.learning_rate, warmup_steps=warmup
    )


def compiled_model(config: Config, network: keras.Model, steps: int) -> keras.Model:
    """The three-branch model around `network`, compiled with the optimizer and its schedule over `steps` steps."""
    rates = learning_rates(config, steps)
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rates, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    else:
        optimizer = keras.optimizers.AdamW(rates, weight_decay=config.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model = training_network(network, margin=config.margin, distance=config.distance)
    # XLA compiles convolutions for a CPU to a third of the speed of TensorFlow's own kernels.
    model.compile(optimizer, jit_compile="auto" if _on_gpu() else False)
    return model


def _fit(
    config: Config,
    source: TripletSource,
    monitor: Monitor,
    board: callbacks.Board,
    run: Run,
    done: Progress,
    console: Console,
) -> tuple[keras.Model, int]:
    """Runs `fit` from step `done.step`; returns the embedding network in float32 and the number of steps trained."""
    steps_per_epoch = config.steps_per_epoch or source.sampler.steps_per_epoch
    steps = config.epochs * steps_per_epoch
    precision = ("mixed_bfloat16" if _on_gpu() else "float32") if config.precision == "auto" else config.precision
    if config.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        network = initial_network(config)
        model = compiled_model(config, network, steps)
    finally:
        keras.config.set_dtype_policy(before)
    if done.step:
        restore_checkpoint(run.checkpoint_file, model)
        console.print(f"resuming after step {done.step:,} of {steps:,}", highlight=False)

    line = callbacks.Progress(
        console, epochs=config.epochs, steps_per_epoch=steps_per_epoch, images_per_step=3 * config.batch_size
    )
    history = callbacks.History(run.history_file, done.step)
    alarm = callbacks.CollapseAlarm(lambda text: console.print(text, style="bold red"), config.margin)
    rates = learning_rates(config, steps)
    log = callbacks.StepLog(
        done.step,
        lambda step: float(rates(step)),
        [history, board.steps, alarm, line],
        float32=precision == "float32",
    )

    def save() -> None:
        log.flush()  # first, so that history.csv covers the checkpoint, and a loss that is no number is never saved
        save_checkpoint(run.checkpoint_file, model, Progress(log.step, done.data))

    def watch(epochs_done: int) -> float | None:
        started = time.monotonic()
        step = epochs_done * steps_per_epoch
        figures = monitor.look(lambda rows: embed_with_network(network, source.pixels, rows), step)
        if figures:
            console.print(
                f"epoch {epochs_done}: monitor precision@30 {figures['precision@30']:.4f}  "
                f"similarity precision {figures['similarity_precision']:.4f}",
                highlight=False,
            )
        line.pause(time.monotonic() - started)
        return figures.get("precision@30")

    checkpoints = callbacks.Checkpoints(save, config.checkpoint_minutes)
    each_epoch = callbacks.EachEpoch(
        watch, every=config.eval_every, epochs=config.epochs, patience=config.early_stopping
    )
    try:
        with _stopping(checkpoints, console):
            while log.step < steps and not each_epoch.stopped:
                epoch, inside = divmod(log.step, steps_per_epoch)
                rest = steps_per_epoch - inside if inside else 0  # of an epoch that a resumed run begins within
                model.fit(
                    triplet_dataset(source, log.step, log.step + rest if rest else steps),
                    initial_epoch=epoch,
                    epochs=epoch + 1 if rest else config.epochs,
                    steps_per_epoch=rest or steps_per_epoch,
                    verbose=0,
                    shuffle=False,  # the sampler has shuffled
                    callbacks=[log, checkpoints, each_epoch],
                )
                if checkpoints.stop:
                    raise Interrupted(
                        f"stopped after step {log.step:,} of {steps:,}, and saved; "
                        f"go on with: python train.py --resume --run {run.path.name}"
                    )
    finally:
        line.close()
        history.close()
    if precision == "float32":
        return network, log.step
    plain = embedding_network(config)
    plain.set_weights(network.get_weights())
    return plain, log.step


@contextmanager
def _stopping(checkpoints: callbacks.Checkpoints, console: Console) -> Iterator[None]:
    """Turns the first Ctrl-C or SIGTERM into a stop after the step under way; a second one takes effect at once."""

    def stop(_number: int, _frame: object) -> None:
        checkpoints.stop = True
        console.print("stopping after this step; again to stop at once")
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)

    before = {}
    if threading.current_thread() is threading.main_thread():  # only there can signals be handled
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_gpu() -> bool:
    return bool(keras.distribution.list_devices("gpu"))


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
