"""The callbacks of `fit`: the metrics of each step, checkpoints, and the ranking after each epoch."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from dr_keras.errors import InputError
from dr_keras.training.checkpoint import Rankings
from dr_keras.training.reporters import METRICS


class Callbacks(keras.callbacks.CallbackList):
    """A list of callbacks that receive the metrics of a step unconverted, still on the device.

    Keras's own list converts them to numbers first, which makes it wait for each step before starting the next one.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class StepLog(keras.callbacks.Callback):
    """Collects the metrics of every step and passes them on about once a second.

    Reading a metric waits for the device. A step is therefore read only once `AHEAD_STEPS` later ones are queued: the
    device always has work, but never so much that stopping takes long.

    Args:
        first_step: The global step of the first batch.
        learning_rate: The schedule, a function of the step.
        receivers: Called with a list of rows. A row maps "step", "epoch", "learning_rate", and the step's
            `METRICS` to numbers.
        float32: Whether the network computes in float32, for the advice when the loss is not finite.

    Raises:
        InputError: The loss of a step is not finite; its row is passed on first.
    """

    AHEAD_STEPS = 2

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
        if len(self._waiting) > self.AHEAD_STEPS:
            self._read()
        if time.monotonic() - self._last >= 1:
            self._pass_on()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.flush()

    def on_train_end(self, logs: Any = None) -> None:
        self.flush()

    def flush(self) -> None:
        """Reads the waiting steps and passes all rows on."""
        while self._waiting:
            self._read()
        self._pass_on()

    def _read(self) -> None:
        """Reads the step that has waited longest."""
        step, epoch, logs = self._waiting.popleft()
        values = {name: float(keras.ops.convert_to_numpy(logs[name])) for name in METRICS if name in logs}
        self._rows.append({"step": step, "epoch": epoch, "learning_rate": self._learning_rate(step)} | values)

    def _pass_on(self) -> None:
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


class Checkpoints(keras.callbacks.Callback):
    """Saves after each epoch, every few minutes, and before a requested stop.

    Args:
        save: Writes a checkpoint of the step that has just ended.
        minutes: Minutes between two checkpoints within an epoch.
    """

    # The end of an epoch is saved only if this many times the duration of a save has passed since the last one.
    MIN_INTERVAL_IN_SAVES = 50

    def __init__(self, save: Callable[[], None], minutes: float) -> None:
        super().__init__()
        self._save, self._seconds = save, 60 * minutes
        self._last, self._took = time.monotonic(), 0.0
        self.stop = False  # set it to stop the run after the current step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.stop:
            self.model.stop_training = True
        if self.stop or time.monotonic() - self._last >= self._seconds:
            self._keep()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.stop and time.monotonic() - self._last >= self.MIN_INTERVAL_IN_SAVES * self._took:
            self._keep()

    def _keep(self) -> None:
        started = time.monotonic()
        self._save()
        self._last = time.monotonic()
        self._took = self._last - started


class EachEpoch(keras.callbacks.Callback):
    """Ranks after every few epochs, and stops a run that no longer improves.

    After the last epoch it does nothing, because the end of the run ranks anyway.

    Args:
        watch: Called with the number of epochs done; returns the metric to maximize, or None if there is none.
        every: Epochs between two calls; 0 for never.
        epochs: Number of epochs of the run.
        patience: Stop the run after this many calls without a better value; None for never.
        rankings: The rankings that a resumed run has already done.
    """

    def __init__(
        self,
        watch: Callable[[int], float | None],
        *,
        every: int,
        epochs: int,
        patience: int | None = None,
        rankings: Rankings | None = None,
    ) -> None:
        super().__init__()
        self._watch, self._every, self._epochs, self._patience = watch, every, epochs, patience
        self.rankings = rankings or Rankings()
        self.patient = False  # while it is set, no value counts toward the patience
        self.stopped = patience is not None and self.rankings.without >= patience

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.model.stop_training:
            self.rank(epoch + 1)
            self.model.stop_training = self.stopped

    def rank(self, done: int) -> None:
        """Ranks after `done` epochs if that is due. A ranking that is repeated does not count again."""
        if not self._every or done % self._every or done >= self._epochs:
            return
        figure, best, without = self._watch(done), self.rankings.best, self.rankings.without
        if done <= self.rankings.epochs:
            return
        if figure is not None and self._patience is not None and not self.patient:
            better = best is None or figure > best
            best, without = (figure, 0) if better else (best, without + 1)
            self.stopped = without >= self._patience
        self.rankings = Rankings(done, best, without)
