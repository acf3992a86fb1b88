"""What watches a run: the progress line, history.csv, TensorBoard, and the ranking of the monitor images."""

import csv
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tensorboardX import SummaryWriter

from dr_keras.errors import InputError
from dr_keras.files import new_file

METRICS = (
    "loss",
    "accuracy",
    "classifier_loss",
    "triplet_loss",
    "proxy_loss",
    "triplet_accuracy",
    "zero_loss",
    "positive_distance",
    "negative_distance",
    "pairwise_distance",
)
SMOOTHING = 20  # the progress line averages over about this many steps


class Callbacks(keras.callbacks.CallbackList):
    """A list of callbacks that get the metrics of a step as they are, on the device.

    Keras's own makes numbers of them first, and so waits for every step before it starts the next one.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class StepLog(keras.callbacks.Callback):
    """Keeps the metrics of every step, and hands them on about once a second.

    Reading a metric waits for the device, so they are read when `AHEAD` more steps are on their way to it: it always
    has work, and never so much that a stop would take long.

    Args:
        first_step: the global step of the first batch.
        learning_rate: the schedule, step -> rate.
        receivers: called with a list of rows; a row maps 'step', 'epoch', 'learning_rate' and those of `METRICS` that
            the step has to numbers.
        float32: whether the network computes in float32, for the advice when the loss is not a number.

    Raises:
        InputError: at a step whose loss is not finite; its row is handed on first.
    """

    AHEAD = 2

    def __init__(
        self,
        first_step: int,
        learning_rate: Callable[[int], float],
        receivers: Sequence[Callable[[list[dict[str, float]]], None]],
        *,
        float32: bool = True,
    ) -> None:
        super().__init__()
        self._float32 = float32
        self.step = first_step  # the next one
        self._epoch = 0
        self._learning_rate = learning_rate
        self._receivers = receivers
        self._waiting: deque[tuple[int, int, Mapping[str, Any]]] = deque()
        self._rows: list[dict[str, float]] = []
        self._last = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._waiting.append((self.step, self._epoch, dict(logs)))
        self.step += 1
        if len(self._waiting) > self.AHEAD:
            self._read()
        if time.monotonic() - self._last >= 1:
            self._hand_on()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.flush()

    def on_train_end(self, logs: Any = None) -> None:
        self.flush()

    def flush(self) -> None:
        """Reads the waiting steps and hands all on."""
        while self._waiting:
            self._read()
        self._hand_on()

    def _read(self) -> None:
        """Reads the step that has waited longest."""
        step, epoch, logs = self._waiting.popleft()
        values = {name: float(keras.ops.convert_to_numpy(logs[name])) for name in METRICS if name in logs}
        self._rows.append({"step": step, "epoch": epoch, "learning_rate": self._learning_rate(step)} | values)

    def _hand_on(self) -> None:
        rows, self._rows = self._rows, []
        self._last = time.monotonic()
        if rows:
            for receive in self._receivers:
                receive(rows)
        for row in rows:
            if not math.isfinite(row["loss"]):
                raise InputError(
                    f"the loss is {row['loss']} at step {row['step']}; try a lower --learning-rate"
                    + ("" if self._float32 else ", or --precision float32")
                )


class History:
    """Appends one row a step to history.csv; floats are written so that they read back equal.

    What a step does not have, such as the distances of triplets in the softmax stage, stays empty.

    Args:
        path: the file.
        first_step: rows of this step and later ones are removed first: a run that was killed may have written more
            rows than its checkpoint covers.
    """

    def __init__(self, path: Path, first_step: int = 0) -> None:
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines[1:] if line.endswith("\n") and int(line.partition(",")[0]) < first_step]
            with new_file(path) as temporary:
                temporary.write_text("".join(lines[:1] + kept), encoding="utf-8")
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._writer = csv.DictWriter(self._file, ["step", "epoch", "learning_rate", *METRICS], lineterminator="\n")
        if not self._file.tell():
            self._writer.writeheader()

    def __call__(self, rows: list[dict[str, float]]) -> None:
        self._writer.writerows(rows)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Board:
    """Writes TensorBoard events without TensorFlow, for every backend."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def steps(self, rows: list[dict[str, float]]) -> None:
        """The mean of each metric over a group of steps."""
        step = int(rows[-1]["step"]) + 1
        for name in METRICS:
            if values := [row[name] for row in rows if name in row]:
                self._writer.add_scalar(f"training/{name}", np.mean(values), step)
        self._writer.add_scalar("training/learning_rate", rows[-1]["learning_rate"], step)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def text(self, name: str, markdown: str) -> None:
        self._writer.add_text(name, markdown, 0)

    def stage(self, stage: str, size: int, step: int) -> None:
        """Marks where a stage or an image size begins."""
        self._writer.add_scalar("training/image_size", size, step)
        self._writer.add_text("training/stage", f"{stage}, {size} px, from step {step}", step)

    def picture(self, name: str, image: Any, step: int) -> None:
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._writer.add_histogram(name, values, step, bins=64)

    def close(self) -> None:
        self._writer.close()


class Progress:
    """One line on the terminal that is always up to date; without a terminal, a new line every 20 s.

    Args:
        console: where to print.
        epochs, steps: of the run.
        images_per_step: images that pass the network in a step, three a triplet.
        ahead: the work behind a step and all later ones, in units of one step of the last image size; smaller images
            are less work.
    """

    def __init__(
        self, console: Console, *, epochs: int, steps: int, images_per_step: int, ahead: Callable[[int], float]
    ) -> None:
        self._console = console
        self._epochs, self._steps, self._ahead = epochs, steps, ahead
        self._images = images_per_step
        self._means: dict[str, float] = {}
        self._started: tuple[float, int] | None = None
        self._paused = 0.0
        self._told = False
        self._last_line = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        if self._live:
            self._live.start()

    def __call__(self, rows: list[dict[str, float]]) -> None:
        now, done = time.monotonic(), int(rows[-1]["step"]) + 1
        for row in rows:
            for name in ("loss", "accuracy", "triplet_accuracy"):
                if name in row:
                    last = self._means.get(name, row[name])
                    self._means[name] = last + (row[name] - last) / SMOOTHING
                else:
                    self._means.pop(name, None)
        if self._started is None:  # the first steps compile the network; the clock starts after them
            self._started = (now, done)
            return
        seconds, steps = now - self._started[0] - self._paused, done - self._started[1]
        if steps <= 0 or seconds <= 0:
            return
        rate = steps / seconds
        effort = (self._ahead(self._started[1]) - self._ahead(done)) / seconds
        left = self._ahead(done) / effort
        if not self._told and seconds > 5:
            self._told = True
            self._console.print(
                f"{self._epochs} epochs, {self._steps:,} steps, begun at {rate * self._images:,.0f} images/s: "
                f"training takes about {duration(self._ahead(0) / effort)} here"
            )
        line = (
            f"epoch {int(rows[-1]['epoch']) + 1}/{self._epochs}  step {done:,}/{self._steps:,}  "
            + "".join(f"{name.replace('_', ' ')} {value:.3f}  " for name, value in self._means.items())
            + f"{rate * self._images:,.0f} images/s  {duration(left)} left"
        )
        if self._live:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now - self._last_line >= 20 or done == self._steps:
            self._last_line = now
            self._console.print(line, highlight=False, soft_wrap=True)

    def pause(self, seconds: float) -> None:
        """Takes time that was not spent on training out of the images/s."""
        self._paused += seconds

    def restart(self) -> None:
        """Begins the images/s anew, where a phase begins with other work in a step."""
        self._started, self._paused = None, 0.0

    def close(self) -> None:
        if self._live:
            self._live.stop()


def duration(seconds: float) -> str:
    """A length of time for people: '45 s', '12 min', '7 h 05 min'."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class CollapseAlarm:
    """Says once, plainly, when a run has collapsed: all images in one place, and the loss at the margin.

    Args:
        say: prints a line.
        margin: the gap of the loss; None where the loss may well lie at it, as that of mined triplets does, and the
            distances alone tell.
    """

    STEPS = 200  # in a row
    NEAR_MARGIN = 0.01  # of the margin
    NEAR_ZERO = 0.01  # mean distance between unit vectors

    def __init__(self, say: Callable[[str], None], margin: float | None) -> None:
        self._say, self._margin = say, margin
        self._bad = 0

    def __call__(self, rows: list[dict[str, float]]) -> None:
        for row in rows:
            loss, margin = row.get("triplet_loss"), self._margin  # the softmax stage has no such loss
            stuck = loss is not None and margin is not None and abs(loss - margin) <= self.NEAR_MARGIN * margin
            self._bad = self._bad + 1 if stuck or row["pairwise_distance"] < self.NEAR_ZERO else 0
            if self._bad == self.STEPS:
                at_margin = f"the loss was at the margin ({loss:.3f} of {margin:g}) or " if stuck else ""
                self._say(
                    f"The embedding has collapsed: for {self.STEPS} steps up to {int(row['step'])} {at_margin}"
                    f"all images lay together (mean distance {row['pairwise_distance']:.4f}). "
                    "Try a lower --learning-rate, --distance squared, or another --seed"
                )


class Checkpoints(keras.callbacks.Callback):
    """Saves after each epoch, every few minutes, and before a stop that was asked for.

    Args:
        save: writes a checkpoint of the step that has just ended.
        minutes: between two checkpoints inside an epoch.
    """

    WORTH = 50  # the end of an epoch is saved once so many times what saving takes have passed since the last time

    def __init__(self, save: Callable[[], None], minutes: float) -> None:
        super().__init__()
        self._save, self._seconds = save, 60 * minutes
        self._last, self._took = time.monotonic(), 0.0
        self.stop = False  # set to stop the run after the step that is under way

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.stop:
            self.model.stop_training = True
        if self.stop or time.monotonic() - self._last >= self._seconds:
            self._keep()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.stop and time.monotonic() - self._last >= self.WORTH * self._took:
            self._keep()

    def _keep(self) -> None:
        started = time.monotonic()
        self._save()
        self._last = time.monotonic()
        self._took = self._last - started


class EachEpoch(keras.callbacks.Callback):
    """Calls `watch(epochs done)` after every `every`-th epoch but the last, after which the end of the run looks.

    Args:
        watch: returns the figure that should rise, or None where there is none.
        every: 0 for never.
        epochs: of the run.
        patience: stop the run when the figure has not risen this many times; None for never.
    """

    def __init__(
        self, watch: Callable[[int], float | None], *, every: int, epochs: int, patience: int | None = None
    ) -> None:
        super().__init__()
        self._watch, self._every, self._epochs, self._patience = watch, every, epochs, patience
        self._best, self._without = -math.inf, 0
        self.patient = False  # while it is set, no figure counts
        self.stopped = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        done = epoch + 1
        if self.model.stop_training:
            return
        if self._every and done % self._every == 0 and done < self._epochs:
            figure = self._watch(done)
            if figure is None or self._patience is None or self.patient:
                return
            self._without = 0 if figure > self._best else self._without + 1
            self._best = max(self._best, figure)
            if self._without >= self._patience:
                self.stopped = self.model.stop_training = True
