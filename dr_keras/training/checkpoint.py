"""Checkpoints: everything that a run needs to resume as if it had never stopped, in one file, written atomically.

A checkpoint holds every variable of the model (weights, normalization statistics, the states of its random number
generators), every variable of the optimizer, the running average of the weights, the global step, and the rankings that
early stopping counts. Triplets and augmentation are functions of the step, so nothing else has state.
`reduce_checkpoint` shrinks it to a third.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.errors import RunError

CHECKPOINT_FORMAT = 2


@dataclass(frozen=True)
class Rankings:
    """The rankings of the monitor images so far, as early stopping remembers them.

    Attributes:
        epochs: The epochs that were done at the last ranking.
        best: The best value that counts toward the patience; None before the first.
        without: The number of rankings since then.
    """

    epochs: int = 0
    best: float | None = None
    without: int = 0


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        step: The next global step.
        data: Checksum of the data that the run is trained on.
        phase: The phase of the model. At the end of a phase, `step` already belongs to the next one.
        rankings: The rankings of the monitor images so far.
    """

    step: int
    data: int
    phase: int = 0
    rankings: Rankings = Rankings()


def save_checkpoint(
    file: Path, model: keras.Model, progress: Progress, average: list[np.ndarray] | None = None
) -> None:
    """Writes a checkpoint of a compiled model whose optimizer is built.

    Args:
        file: The checkpoint.
        model: The model of the current phase.
        progress: The progress of the run.
        average: The running average of the weights, if there is one.

    Raises:
        OSError: The disk is full or cannot be written; an earlier checkpoint is left unchanged.
    """
    weights = len(model.variables)
    adaptive = [weights + number for number in _adaptive_moments(model.optimizer)]
    description = {"format": CHECKPOINT_FORMAT, "weights": weights, "adaptive": adaptive} | asdict(progress)
    values = {str(number): keras.ops.convert_to_numpy(variable) for number, variable in enumerate(_variables(model))}
    values |= {f"average_{number}": value for number, value in enumerate(average or [])}
    with new_file(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, description=np.array(json.dumps(description)), **values)


def read_progress(file: Path) -> Progress:
    """Returns the progress that a checkpoint records.

    Raises:
        RunError: The file is missing, damaged, or of another format.
    """
    with _open(file) as archive:
        return _progress(file, archive)


def restore_checkpoint(file: Path, model: keras.Model) -> list[np.ndarray] | None:
    """Restores the state of a checkpoint in a freshly compiled model whose optimizer is built.

    Args:
        file: The checkpoint.
        model: The model; its variables are overwritten.

    Returns:
        The running average of the weights, if there was one.

    Raises:
        RunError: The file is damaged or holds the variables of a different network.
    """
    variables = _variables(model)
    with _open(file) as archive:
        _progress(file, archive)
        left_out = json.loads(str(archive["description"])).get("left_out", [])
        names = [name for name in archive.files if name != "description"]  # in the order they were written
        values = {int(name): archive[name] for name in names if not name.startswith("average_")}
        average = [_widened(archive[name]) for name in names if name.startswith("average_")]
    here = {number: tuple(variable.shape) for number, variable in enumerate(variables) if number not in left_out}
    if here != {number: value.shape for number, value in values.items()}:
        raise RunError(f"{file} belongs to a different network or optimizer: its variables have other shapes")
    for number, value in values.items():
        variables[number].assign(value)
    return average or None


def reduce_checkpoint(file: Path, reduced: Path) -> None:
    """Writes a checkpoint about a third as large, for copying off a machine that is about to be shut down.

    Kernels and matrices, and their averages, are rounded to half precision. Their momentum is left out and restarts at
    zero: it recovers within about ten steps. The moments of variables that have a second one are kept, because it
    would take a thousand steps. A run resumed from it is close to the original, but not identical.

    Args:
        file: The checkpoint.
        reduced: The file to write.

    Raises:
        RunError: `file` is missing, damaged, or of another format.
        OSError: The disk is full or cannot be written.
    """
    with _open(file) as archive:
        _progress(file, archive)
        description = json.loads(str(archive["description"]))
        values = {name: archive[name] for name in archive.files if name != "description"}
    kept_whole = {str(number) for number in description.get("adaptive", [])}
    large = {name for name, value in values.items() if value.ndim >= 2 and value.dtype == np.float32} - kept_whole
    left_out = sorted(int(name) for name in large if name.isdigit() and int(name) >= description["weights"])
    kept: dict[str, Any] = {
        name: value.astype(np.float16) if name in large else value
        for name, value in values.items()
        if not (name.isdigit() and int(name) in left_out)
    }
    description["left_out"] = sorted({*description.get("left_out", []), *left_out})
    with new_file(reduced) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, description=np.array(json.dumps(description)), **kept)


def _widened(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]


def _adaptive_moments(optimizer: keras.Optimizer) -> list[int]:
    """Returns the numbers of the optimizer's variables that belong to a variable with a second moment.

    In Muon, these are all but kernels and matrices: among them the class proxies, which are a tensor of three axes.
    """
    paths = [variable.path for variable in optimizer.variables]
    owners = {path.removesuffix("velocity") for path in paths if path.endswith("velocity")}
    return [
        number
        for number, path in enumerate(paths)
        if path.endswith(("momentum", "velocity")) and path.removesuffix("momentum").removesuffix("velocity") in owners
    ]


@contextmanager
def _open(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens a checkpoint; errors while it is read become a `RunError`. The archive checks its own CRCs."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            yield archive
    except FileNotFoundError:
        raise RunError(f"{file} does not exist; there is nothing to resume") from None
    except RunError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{file} is damaged and cannot be read as a checkpoint: {error}") from error


def _progress(file: Path, archive: np.lib.npyio.NpzFile) -> Progress:
    description = json.loads(str(archive["description"]))
    if description["format"] != CHECKPOINT_FORMAT:
        raise RunError(
            f"{file} has checkpoint format {description['format']}, this version reads {CHECKPOINT_FORMAT}; train again"
        )
    rankings = Rankings(**description.get("rankings", {}))
    return Progress(description["step"], description["data"], description["phase"], rankings)
