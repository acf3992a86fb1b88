"""Fits the network, phase after phase: the one place that calls `fit`."""

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import keras
import numpy as np
from rich.console import Console

from dr_keras.config import ScheduleConfig
from dr_keras.data.batches import ImageSource, Source, TripletSource, batches
from dr_keras.embedders import embed_with_network
from dr_keras.errors import Interrupted
from dr_keras.invocation import command
from dr_keras.runs import Run
from dr_keras.training import callbacks, reporters
from dr_keras.training.checkpoint import Progress, restore_checkpoint, save_checkpoint
from dr_keras.training.compile import learning_rate_at, precision
from dr_keras.training.devices import on_one_device
from dr_keras.training.monitor import Monitor
from dr_keras.training.phase_models import KeptNetworks, PhaseModels, embedding_branch
from dr_keras.training.phases import Phase
from dr_keras.training.weight_average import WeightAverage


@dataclasses.dataclass(frozen=True)
class Fit:
    """Trains a network through all phases of a run, when called.

    Attributes:
        models: Makes the model of each phase.
        schedule: Settings of the epochs.
        course: The phases of the whole run.
        sources: The sources of the batches, by stage.
        run: The run folder, for checkpoints and the history.
        monitor: Ranks the monitor images, and holds the TensorBoard writer.
        console: Where progress is shown.
    """

    models: PhaseModels
    schedule: ScheduleConfig
    course: tuple[Phase, ...]
    sources: Mapping[str, TripletSource | ImageSource]
    run: Run
    monitor: Monitor
    console: Console

    def __call__(self, network: keras.Model, done: Progress, resume_from: Run | None = None) -> tuple[keras.Model, int]:
        """Trains `network` from step `done.step` on.

        Args:
            network: The embedding network for images of the full size.
            done: The progress of the run.
            resume_from: The run whose checkpoint is restored; None to start from the weights of `network`.

        Returns:
            The embedding network in float32, on one device, and the number of steps trained.

        Raises:
            InputError: The loss is not finite.
            Interrupted: The user asked to stop; a checkpoint is saved.
        """
        return _Fitting(self, network, done, resume_from).train()


class _Fitting:
    """A fit in progress: the model of the current phase, and the callbacks that all phases share."""

    def __init__(self, fit: Fit, network: keras.Model, done: Progress, resume_from: Run | None) -> None:
        self._fit, self._network, self._done = fit, network, done
        models, schedule, course = fit.models, fit.schedule, fit.course
        optimizer = models.optimizer
        self._phase = course[done.phase]
        self._model = models.first(self._phase, network)
        self._kept = KeptNetworks(models.network, optimizer)
        self._averages = optimizer.weight_average > 0
        self._saved: Progress | None = None  # what the last checkpoint holds
        self._average = WeightAverage(optimizer.weight_average, done.step)
        if resume_from:
            self._average.values = restore_checkpoint(resume_from.checkpoint_file, self._model)
            fit.console.print(f"resuming after step {done.step:,} of {models.steps:,}")
        self._line = reporters.ProgressLine(
            fit.console,
            epochs=schedule.epochs,
            steps=models.steps,
            images_per_step=3 * schedule.batch_size,
            ahead=lambda step: _work(course, step),
        )
        self._history = reporters.History(fit.run.history_file, done.step)
        self._log = callbacks.StepLog(
            done.step,
            lambda step: learning_rate_at(optimizer, models.steps, step),
            [self._history, fit.monitor.board.steps, self._alarm(), self._line],
            float32=precision(optimizer) == "float32",
        )
        self._checkpoints = callbacks.Checkpoints(self._save, schedule.checkpoint_minutes)
        self._each_epoch = callbacks.EachEpoch(
            self._watch,
            every=schedule.eval_every,
            epochs=schedule.epochs,
            patience=schedule.early_stopping,
            rankings=done.rankings,
        )

    def train(self) -> tuple[keras.Model, int]:
        """Trains the remaining phases; returns what `Fit` returns."""
        fit = self._fit
        try:
            with _stopping(self._checkpoints, fit.console):
                for phase in fit.course[self._done.phase :]:
                    self._train_phase(phase)
        finally:
            self._line.close()
            self._history.close()
        with on_one_device():
            branch = embedding_branch(self._model)
            return self._kept.network(branch, self._averaged_weights(), float32=True), self._log.step

    def _train_phase(self, phase: Phase) -> None:
        fit, log = self._fit, self._log
        self._each_epoch.patient = phase is not fit.course[-1]  # figures at different image sizes are not comparable
        if phase is not self._phase:
            self._model = fit.models.following(phase, self._model, self._network, log.step)
            self._phase = phase
        begin = next(other.first_step for other in fit.course if other.stage == phase.stage)
        source = dataclasses.replace(fit.sources[phase.stage], size=phase.size, begin=begin)
        if log.step == phase.first_step:
            self._announce(phase, source)
        whole, inside = divmod(log.step - phase.first_step, phase.steps_per_epoch)
        if whole and not inside:  # resumed at the end of an epoch, whose ranking is missing or has been purged
            self._each_epoch.rank(phase.first_epoch + whole)
        self._line.restart()
        while log.step < phase.last_step and not self._each_epoch.stopped:
            self._train_epoch(phase, source)
            if self._checkpoints.stop:
                if self._saved != self._progress():  # the stop came between the last step and here
                    self._save()
                raise Interrupted(
                    f"stopped after step {log.step:,} of {fit.models.steps:,}, and saved; "
                    f"go on with: {command('train')} --resume --run {fit.run.path.name}"
                )

    def _train_epoch(self, phase: Phase, source: Source) -> None:
        """Trains to the end of the current epoch, which may have begun before the run was resumed."""
        step = self._log.step
        whole, inside = divmod(step - phase.first_step, phase.steps_per_epoch)
        epoch, rest = phase.first_epoch + whole, phase.steps_per_epoch - inside
        averaging = [self._average] if self._averages else []
        self._model.fit(
            batches(source, step, step + rest),
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=rest,
            verbose=0,
            shuffle=False,  # the sampler has shuffled
            callbacks=callbacks.Callbacks(
                [self._log, *averaging, self._each_epoch, self._checkpoints], add_history=True, model=self._model
            ),
        )

    def _announce(self, phase: Phase, source: Source) -> None:
        """Announces a phase on the terminal and, with its first batch, in TensorBoard."""
        fit = self._fit
        fit.monitor.board.stage(phase.stage, phase.size, phase.first_step)
        fit.monitor.show_batch(source.batch(phase.first_step), phase.first_step)
        fit.console.print(
            f"epochs {phase.first_epoch + 1} to {phase.last_epoch}: {phase.stage}, {phase.size} px", highlight=False
        )

    def _save(self) -> None:
        """Saves a checkpoint of the step that has just ended."""
        self._log.flush()  # first, so that history.csv covers the checkpoint, and a non-finite loss prevents it
        progress = self._progress()
        save_checkpoint(self._fit.run.checkpoint_file, self._current_model(), progress, self._averaged_weights())
        self._saved = progress

    def _progress(self) -> Progress:
        phase = self._fit.course.index(self._phase)
        return Progress(self._log.step, self._done.data, phase, self._each_epoch.rankings)

    def _watch(self, epochs_done: int) -> float | None:
        """Ranks the monitor images; returns the metric to maximize, or None if there are no such images."""
        started = time.monotonic()
        monitor = self._fit.monitor
        branch = embedding_branch(self._current_model())
        seen = self._kept.network(branch, self._averaged_weights(), size=self._phase.size)
        figures = monitor.look(lambda rows: embed_with_network(seen, monitor.pixels, rows), self._log.step)
        figure, similarity = figures.get(monitor.figure), figures.get("similarity_precision")
        if figure is not None:
            more = "" if similarity is None else f"  similarity precision {similarity:.4f}"
            self._fit.console.print(f"epoch {epochs_done}: monitor {monitor.figure} {figure:.4f}{more}")
        self._line.pause(time.monotonic() - started)
        return figure

    def _current_model(self) -> keras.Model:
        """Returns the model of the current phase, in `fit` through a callback: on JAX, that syncs its variables."""
        return self._checkpoints.model or self._model

    def _averaged_weights(self) -> list[np.ndarray] | None:
        """Returns the running average of the weights; None if it is off or has seen no step yet."""
        return self._average.values if self._averages else None

    def _alarm(self) -> reporters.CollapseAlarm:
        """Makes the alarm, which ignores the loss of mined triplets: it may stay at the margin without a collapse."""
        ranking, console = self._fit.models.ranking, self._fit.console
        return reporters.CollapseAlarm(
            lambda text: console.print(text, style="bold red"),
            ranking.margin if ranking.mining == "none" else None,
            single=self._fit.schedule.batch_size == 1,
        )


def _work(course: tuple[Phase, ...], step: int) -> float:
    """Estimates the work from `step` on, in steps of the last image size.

    Half the side is a quarter of the pixels, but took a third of the time (docs/measurements.md).
    """
    full = course[-1].size
    return sum((phase.size / full) ** 1.5 * max(0, phase.last_step - max(step, phase.first_step)) for phase in course)


@contextmanager
def _stopping(checkpoints: callbacks.Checkpoints, console: Console) -> Iterator[None]:
    """Turns the first Ctrl-C or SIGTERM into a stop after the current step; a second one takes effect at once."""

    def stop(_number: int, _frame: object) -> None:
        checkpoints.stop = True
        console.print("stopping after this step; interrupt again to stop at once")
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)

    before = {}
    if threading.current_thread() is threading.main_thread():  # signals can only be handled there
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
