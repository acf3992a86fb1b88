"""Fits the network, phase after phase: the one place that calls `fit`."""

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import keras
import numpy as np
from rich.console import Console

from dr_keras.config import Config
from dr_keras.data.batches import ImageSource, Source, TripletSource, batches
from dr_keras.embedders import embed_with_network
from dr_keras.errors import Interrupted
from dr_keras.model.network import embedding_network
from dr_keras.runs import Run
from dr_keras.training import callbacks, reporters
from dr_keras.training.checkpoint import Progress, restore_checkpoint, save_checkpoint
from dr_keras.training.compile import compiled_model, learning_rate_at, precision, training_precision
from dr_keras.training.devices import on_one_device
from dr_keras.training.monitor import Monitor
from dr_keras.training.phases import Phase, phases
from dr_keras.training.weight_average import WeightAverage


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fit of `config` in the run folder `run`.

    Attributes:
        config, run: the settings, and where checkpoints and the history are written.
        resume_from: the checkpoint to go on from; None starts anew.
        sources: make the batches, by stage.
        classes: how many classes there are.
        monitor, board, console: show how it goes.
    """

    config: Config
    run: Run
    resume_from: Run | None
    sources: Mapping[str, TripletSource | ImageSource]
    classes: int
    monitor: Monitor
    board: reporters.Board
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
        course = phases(config, {stage: source.steps_per_epoch for stage, source in self.sources.items()})
        steps = course[-1].last_step
        model = self._model(course[done.phase], network, steps)
        average = WeightAverage(config.weight_average, done.step)
        if self.resume_from:
            average.values = restore_checkpoint(self.resume_from.checkpoint_file, model)
            console.print(f"resuming after step {done.step:,} of {steps:,}")
        kept = _Kept(config)

        line = reporters.Progress(
            console,
            epochs=config.epochs,
            steps=steps,
            images_per_step=3 * config.batch_size,
            ahead=lambda step: _work(course, step),
        )
        history = reporters.History(self.run.history_file, done.step)
        alarm = reporters.CollapseAlarm(
            lambda text: console.print(text, style="bold red"), config.margin if config.mining == "none" else None
        )
        log = callbacks.StepLog(
            done.step,
            lambda step: learning_rate_at(config, steps, step),
            [history, self.board.steps, alarm, line],
            float32=precision(config) == "float32",
        )
        weights_of = (lambda: average.values) if config.weight_average else (lambda: None)

        def save() -> None:
            log.flush()  # first: history.csv then covers the checkpoint, and a loss that is no number is never saved
            progress = Progress(log.step, done.data, course.index(phase))
            save_checkpoint(self.run.checkpoint_file, checkpoints.model, progress, weights_of())

        def watch(epochs_done: int) -> float | None:
            started = time.monotonic()
            seen = kept.network(_branch(checkpoints.model), weights_of(), size=phase.size)
            figures = self.monitor.look(lambda rows: embed_with_network(seen, self.monitor.pixels, rows), log.step)
            figure, similarity = figures.get(self.monitor.figure), figures.get("similarity_precision")
            if figure is not None:
                more = "" if similarity is None else f"  similarity precision {similarity:.4f}"
                console.print(f"epoch {epochs_done}: monitor {self.monitor.figure} {figure:.4f}{more}")
            line.pause(time.monotonic() - started)
            return figure

        checkpoints = callbacks.Checkpoints(save, config.checkpoint_minutes)
        each_epoch = callbacks.EachEpoch(
            watch, every=config.eval_every, epochs=config.epochs, patience=config.early_stopping
        )
        averaging = [average] if config.weight_average else []
        try:
            with _stopping(checkpoints, console):
                for phase in course[done.phase :]:
                    each_epoch.patient = phase is not course[-1]  # figures of other image sizes cannot be compared
                    if phase is not course[done.phase]:
                        model = self._next(phase, model, network, steps, log.step)
                    begin = next(other.first_step for other in course if other.stage == phase.stage)
                    source = dataclasses.replace(self.sources[phase.stage], size=phase.size, begin=begin)
                    if log.step == phase.first_step:
                        self._begin(phase, source)
                    line.restart()
                    while log.step < phase.last_step and not each_epoch.stopped:
                        inside = (log.step - phase.first_step) % phase.steps_per_epoch
                        epoch = phase.first_epoch + (log.step - phase.first_step) // phase.steps_per_epoch
                        rest = (
                            phase.steps_per_epoch - inside
                        )  # less than an epoch where a resumed run begins within one
                        model.fit(
                            batches(source, log.step, log.step + rest),
                            initial_epoch=epoch,
                            epochs=epoch + 1,
                            steps_per_epoch=rest,
                            verbose=0,
                            shuffle=False,  # the sampler has shuffled
                            callbacks=callbacks.Callbacks(
                                [log, *averaging, checkpoints, each_epoch], add_history=True, model=model
                            ),
                        )
                        if checkpoints.stop:
                            raise Interrupted(
                                f"stopped after step {log.step:,} of {steps:,}, and saved; "
                                f"go on with: python train.py --resume --run {self.run.path.name}"
                            )
        finally:
            line.close()
            history.close()
        with on_one_device():
            return kept.network(_branch(model), weights_of(), float32=True), log.step

    def _model(self, phase: Phase, network: keras.Model, steps: int) -> keras.Model:
        """The compiled model of a phase, around `network` where that takes the phase's image size."""
        if phase.size != self.config.image_size:
            with training_precision(self.config):
                smaller = embedding_network(self.config, size=phase.size, weights=False)
            smaller.set_weights(network.get_weights())
            network = smaller
        return compiled_model(self.config, network, steps, self.classes, phase.stage)

    def _next(self, phase: Phase, before: keras.Model, network: keras.Model, steps: int, step: int) -> keras.Model:
        """The model of the next phase, with all of the last one's state that it has a place for."""
        network.set_weights(_branch(before).get_weights())
        model = self._model(phase, network, steps)
        names = {layer.name for layer in model.layers}
        if "proxies" in names and any(layer.name == "proxies" for layer in before.layers):
            model.get_layer("proxies").set_weights(before.get_layer("proxies").get_weights())
        state = {variable.path: variable for variable in before.optimizer.variables}
        for variable in model.optimizer.variables:
            if variable.path in state and variable.shape == state[variable.path].shape:
                variable.assign(state[variable.path])
        model.optimizer.iterations.assign(step)
        return model

    def _begin(self, phase: Phase, source: Source) -> None:
        """Marks the beginning of a phase on the terminal and on the board, where it shows its first batch too."""
        self.board.stage(phase.stage, phase.size, phase.first_step)
        self.monitor.show_batch(source.batch(phase.first_step), phase.first_step)
        self.console.print(
            f"epochs {phase.first_epoch + 1} to {phase.last_epoch}: {phase.stage}, {phase.size} px", highlight=False
        )


def _branch(model: keras.Model) -> keras.Model:
    """The embedding network inside a model that is trained."""
    return model.get_layer("embedding_network")


def _work(course: tuple[Phase, ...], step: int) -> float:
    """The work from `step` on, about, in steps of the last image size.

    Half as many pixels a side are a quarter of the pixels, but took a third of the time (docs/benchmarks.md).
    """
    full = course[-1].size
    return sum((phase.size / full) ** 1.5 * max(0, phase.last_step - max(step, phase.first_step)) for phase in course)


class _Kept:
    """Makes the network that would be kept, or is: of averaged weights, of another precision, on one device.

    A network that is spread over devices computes only when all hosts call it, each with its part of a batch.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._copies: dict[tuple[int, bool], keras.Model] = {}

    def network(
        self,
        trained: keras.Model,
        weights: list[np.ndarray] | None,
        *,
        size: int | None = None,
        float32: bool = False,
    ) -> keras.Model:
        """The network itself where nothing is to be different, or a copy.

        Args:
            trained: the network that is trained.
            weights: other weights for it; its own by default.
            size: the side of the images, that of the finished network by default.
            float32: not in the precision of the training.
        """
        config = self._config
        size = size or config.image_size
        float32 = float32 or precision(config) == "float32"
        spread = keras.distribution.distribution() is not None
        same = trained.input_shape[1] == size and (not float32 or precision(config) == "float32")
        if same and weights is None and not spread:
            return trained
        with on_one_device():
            copy = self._copies.get((size, float32))
            if copy is None:
                with nullcontext() if float32 else training_precision(config):
                    copy = embedding_network(config, size=size, weights=False)
                self._copies[size, float32] = copy
            copy.set_weights(trained.get_weights() if weights is None else weights)
        return copy


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
