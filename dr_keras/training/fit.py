"""Fits the three-branch network: initial weights, schedule, optimizer, and the one place that calls `fit`."""

import dataclasses
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
from rich.console import Console

from dr_keras.config import Config
from dr_keras.data.pipeline import TripletSource
from dr_keras.data.pixels import Images
from dr_keras.data.sequence import batches
from dr_keras.errors import Interrupted
from dr_keras.model.network import embedding_network, training_network
from dr_keras.retrieval.embed import embed_with_network
from dr_keras.runs import Run
from dr_keras.training import callbacks
from dr_keras.training.checkpoint import Progress, restore_checkpoint, save_checkpoint
from dr_keras.training.devices import on_gpu, on_one_device
from dr_keras.training.watch import Monitor


def initial_network(config: Config) -> keras.Model:
    """The embedding network with the weights that training starts from; equal for equal seeds.

    Raises:
        InputError: the network cannot be built, see `dr_keras.model.network.embedding_network`.
    """
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
    optimizer.build(network.trainable_variables)  # within the first step, it would have the step traced twice
    model = training_network(network, margin=config.margin, distance=config.distance)
    # On a CPU, XLA compiles convolutions to a third of the speed of TensorFlow's own kernels. JAX has nothing else.
    compiles = keras.backend.backend() == "jax" or on_gpu()
    model.compile(optimizer, jit_compile="auto" if compiles else False)
    return model


def precision(config: Config) -> str:
    """The Keras dtype policy that the network is trained with."""
    return ("mixed_bfloat16" if on_gpu() else "float32") if config.precision == "auto" else config.precision


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fit of `config` in the run folder `run`.

    Attributes:
        config, run: the settings, and where checkpoints and the history are written.
        resume_from: the checkpoint to go on from; None starts anew.
        source: makes the batches.
        monitor, board, console: show how it goes.
    """

    config: Config
    run: Run
    resume_from: Run | None
    source: TripletSource
    monitor: Monitor
    board: callbacks.Board
    console: Console

    def __call__(self, network: keras.Model, done: Progress) -> tuple[keras.Model, int]:
        """Trains `network` from step `done.step` on.

        Returns:
            The embedding network in float32, on one device, and the number of steps trained.

        Raises:
            InputError: the loss is not a number.
            Interrupted: the person asked to stop; a checkpoint is saved.
        """
        config, console = self.config, self.console
        steps_per_epoch = config.steps_per_epoch or self.source.sampler.steps_per_epoch
        steps = config.epochs * steps_per_epoch
        if config.deterministic and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
        model = compiled_model(config, network, steps)
        if self.resume_from:
            restore_checkpoint(self.resume_from.checkpoint_file, model)
            console.print(f"resuming after step {done.step:,} of {steps:,}")
        alone = _Alone(config, network)

        line = callbacks.Progress(
            console, epochs=config.epochs, steps_per_epoch=steps_per_epoch, images_per_step=3 * config.batch_size
        )
        history = callbacks.History(self.run.history_file, done.step)
        alarm = callbacks.CollapseAlarm(lambda text: console.print(text, style="bold red"), config.margin)
        rates = learning_rates(config, steps)
        log = callbacks.StepLog(
            done.step,
            lambda step: float(rates(step)),
            [history, self.board.steps, alarm, line],
            float32=precision(config) == "float32",
        )

        def save() -> None:
            log.flush()  # first: history.csv then covers the checkpoint, and a loss that is no number is never saved
            save_checkpoint(self.run.checkpoint_file, model, Progress(log.step, done.data))

        def watch(epochs_done: int) -> float | None:
            started = time.monotonic()
            figures = self.monitor.look(
                lambda rows: alone.embed(self.source.pixels, rows), epochs_done * steps_per_epoch
            )
            if figures:
                console.print(
                    f"epoch {epochs_done}: monitor precision@30 {figures['precision@30']:.4f}  "
                    f"similarity precision {figures['similarity_precision']:.4f}"
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
                    rest = steps_per_epoch - inside  # less than an epoch where a resumed run begins within one
                    model.fit(
                        batches(self.source, log.step, log.step + rest),
                        initial_epoch=epoch,
                        epochs=epoch + 1,
                        steps_per_epoch=rest,
                        verbose=0,
                        shuffle=False,  # the sampler has shuffled
                        callbacks=[log, checkpoints, each_epoch],
                    )
                    if checkpoints.stop:
                        raise Interrupted(
                            f"stopped after step {log.step:,} of {steps:,}, and saved; "
                            f"go on with: python train.py --resume --run {self.run.path.name}"
                        )
        finally:
            line.close()
            history.close()
        return alone.network(), log.step


class _Alone:
    """The network as one process can use it on its own, in float32 where it is to be kept.

    A network that is spread over devices computes only when all hosts call it, each with its part of a batch.
    """

    def __init__(self, config: Config, network: keras.Model) -> None:
        self._config, self._trained = config, network
        self._spread = keras.distribution.distribution() is not None
        self._copy: keras.Model | None = None

    def embed(self, images: Images, rows: np.ndarray) -> np.ndarray:
        """As `embed_with_network`, in the precision of the training."""
        if not self._spread:
            return embed_with_network(self._trained, images, rows)
        with on_one_device():
            return embed_with_network(self.network(), images, rows)

    def network(self) -> keras.Model:
        """The trained network, or a float32 copy of it on one device."""
        if not self._spread and precision(self._config) == "float32":
            return self._trained
        with on_one_device():
            if self._copy is None:
                self._copy = embedding_network(self._config, weights=False)
            self._copy.set_weights(self._trained.get_weights())
        return self._copy


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
