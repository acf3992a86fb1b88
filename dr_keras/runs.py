"""Run folders: runs/<name>/ holds all that search, evaluation and export need."""

import datetime
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_keras.atomic_files import write_json
from dr_keras.config import ARCHITECTURE, Config, flags
from dr_keras.errors import RunError
from dr_keras.invocation import command
from dr_keras.version import __version__

RUN_FORMAT = 1
RUNS = Path("runs")
MODELS = Path(__file__).parent / "released"  # the models that come with the package
# Settings that a resumed run may have otherwise, as they change no result: the images are compared wherever they lie.
MAY_CHANGE = {"data", "checkpoint_minutes", "store", "hosts", "host_index", "coordinator"}


@dataclass(frozen=True)
class Run:
    """One run folder and the names of what lies in it."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def network_file(self) -> Path:
        return self.path / "embedding.keras"

    @property
    def weights_file(self) -> Path:
        """The weights of a released model, which has no `network_file`."""
        return self.path / "weights.npz"

    @property
    def saved_model(self) -> Path:
        return self.path / "saved_model"

    @property
    def litert_file(self) -> Path:
        return self.path / "embedding.tflite"

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.json"

    @property
    def history_file(self) -> Path:
        return self.path / "history.csv"

    @property
    def checkpoint_file(self) -> Path:
        """The state of a run that has not come to its end."""
        return self.path / "checkpoint.npz"

    @property
    def calibration_file(self) -> Path:
        """How near is near enough; `evaluate.py --calibrate` writes it."""
        return self.path / "calibration.json"

    @property
    def report_file(self) -> Path:
        return self.path / "data-report.json"

    @property
    def samples_file(self) -> Path:
        """A few of the run's images, (n, H, W, 3) uint8, by which every export is checked."""
        return self.path / "samples.npy"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def finished(self) -> bool:
        """Whether training and indexing came to their end; metrics.json is written last."""
        return self.metrics_file.is_file()

    def config(self) -> Config:
        """The settings that the run was made with.

        Raises:
            RunError: config.json is absent, damaged, or of another format version.
        """
        try:
            content = json.loads(self.config_file.read_text(encoding="utf-8"))
            version = content["format"]
            if version != RUN_FORMAT:
                raise RunError(
                    f"{self.path} has run format {version}, this version of dr_keras reads {RUN_FORMAT}; "
                    f"read it with dr_keras {content.get('dr_keras', 'that wrote it')}, or train again"
                )
            return Config.from_dict(content["config"])
        except OSError as error:
            raise RunError(f"{self.path} is no run folder: {error.strerror}: {error.filename}") from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{self.config_file} cannot be read: {error}") from error

    def fingerprint(self) -> str:
        """What vectors of this run depend on: its weights, and how images are brought to its size.

        Raises:
            RunError: the run holds no weights.
        """
        weights = next((file for file in (self.weights_file, self.network_file) if file.is_file()), None)
        if weights is None:
            raise RunError(f"{self.path} holds no network to embed with; it has to be trained again")
        config = self.config()
        return f"{zlib.crc32(weights.read_bytes()):08x} {config.image_size} {config.resize}"

    def lasting_name(self) -> str:
        """What `open_run` finds it by from any folder: the name of a released model, else the whole path."""
        return self.path.name if self.path.parent == MODELS else str(self.path.absolute())

    def write_config(self, config: Config) -> None:
        """Writes config.json, with the versions that made it."""
        write_json(
            self.config_file,
            {"format": RUN_FORMAT, "dr_keras": __version__, "config": config.to_dict()},
        )


def open_run(name: str | None, runs: Path = RUNS) -> Run:
    """The run of that name in `runs`, the released model of that name, or the run at that path.

    Without a name, the run that finished last.

    Raises:
        RunError: there is none, or it is not finished.
    """
    if name is None:
        finished = [run for run in _all_runs(runs) if run.finished]
        if not finished:
            raise RunError(f"{runs.resolve()} holds no finished run; train one first: {command('train')}")
        # Not metrics.json: evaluation and a later export write it again.
        return max(finished, key=lambda run: run.samples_file.stat().st_mtime)
    places = (Run(runs / name), Run(MODELS / name), Run(Path(name)))
    run = next((run for run in places if run.config_file.is_file()), None)
    if run is None:
        known = ", ".join(sorted(run.path.name for run in (*_all_runs(runs), *_all_runs(MODELS))))
        raise RunError(f"there is no run {name!r} in {runs}/" + (f"; there are {known}" if known else ""))
    if not run.index.is_dir() and not run.weights_file.is_file():
        raise RunError(f"{run.path} has no index; its training has not come to its end")
    return run


def starting_from(settings: dict[str, Any], runs: Path = RUNS) -> dict[str, Any]:
    """Settings with the network of the model that they start from, where they name one and leave the network open.

    Args:
        settings: fields of `Config`; `initial_weights` names the model.
        runs: the folder that run folders lie in.

    Raises:
        RunError: there is no such model.
    """
    name = settings.get("initial_weights")
    if name is None:
        return settings
    model = open_run(name, runs).config().to_dict()
    return {field: model[field] for field in (*ARCHITECTURE, "resize")} | settings


def new_run(config: Config, runs: Path = RUNS, *, overwrite: bool = False) -> Run:
    """The folder that a new run will have, not made yet; `start_run` makes it.

    Raises:
        RunError: the name is taken and `overwrite` is off, or a folder of that name is no run.
    """
    run = Run(runs / (config.run or datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))
    if run.path.exists():
        if not overwrite:
            raise RunError(f"{run.path} exists; choose another --run, or replace it with --overwrite")
        if not run.path.is_dir() or (any(run.path.iterdir()) and not run.config_file.is_file()):
            raise RunError(f"{run.path} exists and is no run folder; --overwrite replaces only runs")
    return run


def resumable_run(config: Config, runs: Path = RUNS) -> Run:
    """The run folder that training with `config` goes on in: that of a run, finished or not, or one to begin.

    Raises:
        RunError: the run was made with other settings; or it has none yet, and `config` does not name its data or a
            folder of that name is no run.
    """
    if config.run is None:
        raise RunError("--resume needs the name of the run: --run NAME")
    run = Run(runs / config.run)
    if not run.config_file.is_file():  # it was killed before it had one, or never started
        if run.path.exists() and not (run.path.is_dir() and all(path.name[0] == "." for path in run.path.iterdir())):
            raise RunError(f"{run.path} exists and is no run folder; choose another --run")
        if config.data is None:
            raise RunError(f"{run.path} has not been started; name the --data to start it with")
        return run
    made_with, asked = run.config().to_dict(), config.to_dict()
    other = [name for name in asked if asked[name] != made_with[name] and name not in MAY_CHANGE]
    if (made_with["store"] == "device") != (asked["store"] == "device"):  # which rounds otherwise
        other.append("store")
    if other:
        raise RunError(f"{run.path} was made with other values of {flags(other)}; leave them out to resume it")
    return run


def start_run(run: Run, config: Config, *, overwrite: bool = False, again: bool = False) -> None:
    """Makes the run folder and writes its config.json.

    Args:
        run: from `new_run` or `resumable_run`.
        config: the settings.
        overwrite: remove an earlier run of the same name first.
        again: use a folder that is there, without what an earlier try has written about its steps.

    Raises:
        RunError: another run has taken the name since `new_run` looked, or the folder cannot be made.
    """
    try:
        if overwrite and run.path.exists():
            shutil.rmtree(run.path)
        run.path.mkdir(parents=True, exist_ok=again)
        run.history_file.unlink(missing_ok=True)
        shutil.rmtree(run.tensorboard, ignore_errors=True)
        run.write_config(config)
    except FileExistsError:
        raise RunError(f"{run.path} exists; another run took the name meanwhile") from None
    except OSError as error:
        raise RunError(f"{run.path} cannot be made: {error.strerror}") from error


def _all_runs(runs: Path) -> list[Run]:
    return [Run(path) for path in runs.iterdir() if (path / "config.json").is_file()] if runs.is_dir() else []
