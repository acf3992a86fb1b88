"""Reports how a run is going: the progress line, history.csv, TensorBoard, and an alarm if the embedding collapses."""

import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dr_keras.atomic_files import new_file
from dr_keras.backend import unavailable

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
SMOOTHING_STEPS = 20  # the progress line averages over about this many steps
LINE_SECONDS = 20  # between two lines if there is no terminal


class History:
    """Appends one row per step to history.csv; floats are written so that they read back exactly.

    Metrics that a step does not have, such as the distances of triplets in the softmax stage, are left empty.

    Args:
        path: The file.
        first_step: Rows of this step and later ones are removed first: a run that was killed may have written more
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
        """Closes the file."""
        self._file.close()


class Board:
    """Writes TensorBoard events without TensorFlow, for every backend."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        # tensorboardX imports PyTorch if it is installed, which takes a second; where it trains, threads may need it.
        with nullcontext() if "torch" in sys.modules else unavailable("torch"):
            from tensorboardX import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def steps(self, rows: list[dict[str, float]]) -> None:
        """Writes the mean of each metric over the steps of `rows`."""
        step = int(rows[-1]["step"]) + 1
        for name in METRICS:
            if values := [row[name] for row in rows if name in row]:
                self._writer.add_scalar(f"training/{name}", np.mean(values), step)
        self._writer.add_scalar("training/learning_rate", rows[-1]["learning_rate"], step)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Writes a group of scalars."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def text(self, name: str, markdown: str) -> None:
        """Writes a text in Markdown at step 0."""
        self._writer.add_text(name, markdown, 0)

    def stage(self, stage: str, size: int, step: int) -> None:
        """Marks the step at which a stage or an image size begins."""
        self._writer.add_scalar("training/image_size", size, step)
        self._writer.add_text("training/stage", f"{stage}, {size} px, from step {step}", step)

    def picture(self, name: str, image: Any, step: int) -> None:
        """Writes an (H, W, 3) uint8 image."""
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Writes a histogram of (n,) values."""
        self._writer.add_histogram(name, values, step, bins=64)

    def embedding(
        self,
        name: str,
        vectors: np.ndarray,
        thumbnails: np.ndarray,
        about: Sequence[tuple[str, ...]],
        header: tuple[str, ...],
        step: int,
    ) -> None:
        """Writes (n, D) vectors for the projector, with (n, S, S, 3) uint8 thumbnails and a line about each."""
        printable = [[text.encode("utf-8", "replace").decode() for text in line] for line in about]
        images = thumbnails.transpose(0, 3, 1, 2) / 255
        self._writer.add_embedding(vectors, printable, images, step, name, list(header))

    def close(self) -> None:
        """Flushes and closes the files."""
        self._writer.close()


class ProgressLine:
    """A line that is updated in place on a terminal; without a terminal, a new line every 20 seconds.

    Args:
        console: Where to print.
        epochs: Number of epochs of the run.
        steps: Number of steps of the run.
        images_per_step: Images that pass through the network in a step, three per triplet.
        ahead: Returns the work left after a step, in steps of the last image size; smaller images are less work.
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
                    self._means[name] = last + (row[name] - last) / SMOOTHING_STEPS
                else:
                    self._means.pop(name, None)
        if self._started is None:  # the first steps include compilation; the clock starts after them
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
                f"{self._epochs} epochs, {self._steps:,} steps, starting at {rate * self._images:,.0f} images/s: "
                f"training takes about {duration(self._ahead(0) / effort)} here"
            )
        line = (
            f"epoch {int(rows[-1]['epoch']) + 1}/{self._epochs}  step {done:,}/{self._steps:,}  "
            + "".join(f"{name.replace('_', ' ')} {value:.3f}  " for name, value in self._means.items())
            + f"{rate * self._images:,.0f} images/s  {duration(left)} left"
        )
        if self._live:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now - self._last_line >= LINE_SECONDS or done == self._steps:
            self._last_line = now
            self._console.print(line, highlight=False, soft_wrap=True)

    def pause(self, seconds: float) -> None:
        """Excludes time that was not spent on training from the images/s."""
        self._paused += seconds

    def restart(self) -> None:
        """Restarts the measurement of images/s, because steps of a new phase take a different time."""
        self._started, self._paused = None, 0.0

    def close(self) -> None:
        """Removes the line from the terminal."""
        if self._live:
            self._live.stop()


def duration(seconds: float) -> str:
    """Formats a duration: "45 s", "12 min", "7 h 05 min"."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class CollapseAlarm:
    """Warns once if the embedding has collapsed: all images lie together, or the loss stays at the margin.

    Args:
        say: Prints a line.
        margin: The margin of the loss; None to check only the distances, because the loss of mined triplets may stay
            at the margin.
        single: Whether a batch has a single query, which has no distance to others.
    """

    STEPS = 200  # consecutive ones
    NEAR_MARGIN = 0.01  # as a share of the margin
    NEAR_ZERO = 0.01  # mean distance between unit vectors

    def __init__(self, say: Callable[[str], None], margin: float | None, *, single: bool = False) -> None:
        self._say, self._margin, self._single = say, margin, single
        self._bad = 0

    def __call__(self, rows: list[dict[str, float]]) -> None:
        for row in rows:
            loss, margin = row.get("triplet_loss"), self._margin  # the softmax stage has no such loss
            stuck = loss is not None and margin is not None and abs(loss - margin) <= self.NEAR_MARGIN * margin
            near = row["pairwise_distance"] < self.NEAR_ZERO and not self._single
            self._bad = self._bad + 1 if stuck or near else 0
            if self._bad == self.STEPS:
                at_margin = f"the loss was at the margin ({loss:.3f} of {margin:g}) or " if stuck else ""
                self._say(
                    f"The embedding has collapsed: for {self.STEPS} steps up to {int(row['step'])} {at_margin}"
                    f"all images were in one place (mean distance {row['pairwise_distance']:.4f}). "
                    "Try a lower --learning-rate, --distance squared, or another --seed"
                )
