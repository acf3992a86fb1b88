"""Run folders: runs/<name>/ contains all that search, evaluation, and export need."""

import datetime
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_keras.atomic_files import write_json
from dr_keras.errors import RunError
from dr_keras.heads import GENERAL, TRAINED, GeneralHead
from dr_keras.invocation import command
from dr_keras.options import flags
from dr_keras.version import __version__

if TYPE_CHECKING:  # what a search by name need not import
    from dr_keras.config import Config

RUN_FORMAT = 1
RUNS = Path("runs")
MODELS = Path(__file__).parent / "released"  # the models that come with the package
# Settings that may differ when a run is resumed, because they do not affect the result. The images themselves are
# compared, wherever they are; the run is the one in the folder, whose name may be of the time, or new.
MAY_CHANGE = {"run", "data", "checkpoint_minutes", "store", "onnx", "projector", "hosts", "host_index", "coordinator"}


@dataclass(frozen=True)
class Run:
    """A run folder and the paths of its files.

    Attributes:
        path: The folder.

    Example:
        >>> Run(Path("runs/first")).config_file.name
        'config.json'
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The settings of the run."""
        return self.path / "config.json"

    @property
    def network_file(self) -> Path:
        """The embedding network, as Keras saves it."""
        return self.path / "embedding.keras"

    @property
    def weights_file(self) -> Path:
        """The weights of a released model, which has no `network_file`."""
        return self.path / "weights.npz"

    @property
    def projection_file(self) -> Path:
        """The linear layer, for explanations without Keras; only where these are exact."""
        return self.path / "projection.npz"

    @property
    def saved_model(self) -> Path:
        """The export for TensorFlow."""
        return self.path / "saved_model"

    @property
    def litert_file(self) -> Path:
        """The export for LiteRT."""
        return self.path / "embedding.tflite"

    @property
    def onnx_file(self) -> Path:
        """The export for ONNX, if it was asked for."""
        return self.path / "embedding.onnx"

    @property
    def index(self) -> Path:
        """The index folder of the run's images."""
        return self.path / "index"

    @property
    def metrics_file(self) -> Path:
        """The metrics of the run, written last."""
        return self.path / "metrics.json"

    @property
    def history_file(self) -> Path:
        """The metrics of each step."""
        return self.path / "history.csv"

    @property
    def checkpoint_file(self) -> Path:
        """The state of a run that is not finished."""
        return self.path / "checkpoint.npz"

    @property
    def general_file(self) -> Path:
        """The general head."""
        return self.path / "general.npz"

    @property
    def card_file(self) -> Path:
        """The model card: of a released model, or of a run that starts from weights of others."""
        return self.path / "README.md"

    @property
    def classes_file(self) -> Path:
        """The classes of the training images."""
        return self.path / "classes.json"

    def calibration_file(self, head: str = TRAINED) -> Path:
        """The distance limit of a head, which `evaluate.py --calibrate` writes."""
        return self.path / ("calibration.json" if head == TRAINED else f"calibration-{head}.json")

    @property
    def report_file(self) -> Path:
        """The data report: counts, and the files that were skipped."""
        return self.path / "data-report.json"

    @property
    def samples_file(self) -> Path:
        """A few of the run's images, (n, H, W, 3) uint8, used to check every export."""
        return self.path / "samples.npy"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def finished(self) -> bool:
        """Whether training and indexing are complete; metrics.json is written last."""
        return self.metrics_file.is_file()

    def has_gallery(self) -> bool:
        """Whether images belong to the run; a released model and a network as it is (0 epochs) have none.

        Raises:
            RunError: config.json is missing, damaged, or of another format version.
        """
        if self.weights_file.is_file():
            return False
        return self.settings().get("data") is not None or self.config().epochs > 0

    def general_head(self) -> GeneralHead:
        """Reads the general head.

        Raises:
            RunError: The run has none, or it is damaged.
        """
        if not self.general_file.is_file():
            how = (
                f"one on its training images: {command('train')} --export-only --run {self.path.name} --data DATA"
                if self.config().embedding_dim
                else f"one on the images to search: {command('index')} add --fit-head"
            )
            raise RunError(
                f"{self.path} has no general head: it is a network as it is, or an older version trained it; fit {how}"
            )
        return GeneralHead.load(self.general_file)

    def classes(self) -> frozenset[str]:
        """The classes of the training images; empty if they are not known."""
        try:
            return frozenset(json.loads(self.classes_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return frozenset()

    def embedding_dim(self, head: str = TRAINED) -> int:
        """The length of a vector of a head.

        Raises:
            RunError: config.json, metrics.json or the general head is missing or damaged.
        """
        if head == GENERAL:
            return self.general_head().dim
        if dim := self.config().embedding_dim:
            return dim
        try:
            return int(json.loads(self.metrics_file.read_text(encoding="utf-8"))["embedding_dim"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.metrics_file} cannot be read: {error}") from error

    def settings(self) -> dict[str, Any]:
        """Reads the settings of the run as they are in config.json; their values are not checked.

        Raises:
            RunError: Config.json is missing, damaged, or of another format version.
        """
        with self._config_errors():
            content = json.loads(self.config_file.read_text(encoding="utf-8"))
            version = content["format"]
            if version != RUN_FORMAT:
                raise RunError(
                    f"{self.path} has run format {version}, but this version of dr_keras reads format {RUN_FORMAT}; "
                    f"use dr_keras {content.get('dr_keras', 'of the version that wrote it')}, or train again"
                )
            return dict(content["config"])

    def config(self) -> "Config":
        """Reads and checks the settings of the run.

        Raises:
            RunError: Config.json is missing, damaged, or of another format version.
        """
        from dr_keras.config import Config

        with self._config_errors():
            return Config.from_dict(self.settings())

    @contextmanager
    def _config_errors(self) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except OSError as error:
            raise RunError(f"{self.path} is not a run folder: {error.strerror}: {error.filename}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.config_file} cannot be read: {error}") from error

    def fingerprint(self, head: str = TRAINED) -> str:
        """Returns a string that identifies the embedding: a checksum of the weights, the image size, and the resizing.

        Args:
            head: The head; that of the general one also has its checksum.

        Raises:
            RunError: The run has no weights, or no such head.
        """
        weights = next((file for file in (self.weights_file, self.network_file) if file.is_file()), None)
        if weights is None:
            raise RunError(f"{self.path} has no network to embed with; train it again")
        config = self.config()
        general = f" {GENERAL} {self.general_head().checksum}" if head == GENERAL else ""
        return f"{zlib.crc32(weights.read_bytes()):08x} {config.image_size} {config.resize}{general}"

    def lasting_name(self) -> str:
        """Returns a name by which `open_run` finds the run from any folder: a released model's name, or a path."""
        return self.path.name if self.path.parent == MODELS else str(self.path.absolute())

    def write_config(self, config: "Config") -> None:
        """Writes config.json, with the versions of the format and of dr_keras."""
        write_json(
            self.config_file,
            {"format": RUN_FORMAT, "dr_keras": __version__, "config": config.to_dict()},
        )


def open_run(name: str | None, runs: Path = RUNS) -> Run:
    """Finds a finished run.

    Args:
        name: The name of a run in `runs` or of a released model, or the path of a run folder; None for the run that
            finished last.
        runs: The folder of the run folders.

    Raises:
        RunError: There is no such run, or it is not finished.
    """
    if name is None:
        finished = [run for run in _all_runs(runs) if run.finished]
        if not finished:
            raise RunError(f"{runs.resolve()} has no finished run; train one first: {command('train')}")
        return max(finished, key=_finished_at)
    places = (Run(runs / name), Run(MODELS / name), Run(Path(name)))
    run = next((run for run in places if run.config_file.is_file()), None)
    if run is None:
        known = ", ".join(sorted(run.path.name for run in (*_all_runs(runs), *_all_runs(MODELS))))
        raise RunError(f"there is no run {name!r} in {runs}/" + (f"; there are {known}" if known else ""))
    if not (run.index.is_dir() or run.weights_file.is_file() or run.finished):
        raise RunError(f"{run.path} has no index, because its training is not finished")
    return run


def starting_from(settings: dict[str, Any], runs: Path = RUNS) -> dict[str, Any]:
    """Fills in the settings of the network from the model that `initial_weights` names.

    Args:
        settings: Fields of `Config`.
        runs: The folder of the run folders.

    Returns:
        The settings, unchanged if they do not name a model. Network settings that they contain take precedence.

    Raises:
        RunError: There is no such model.
    """
    from dr_keras.config import ARCHITECTURE

    name = settings.get("initial_weights")
    if name is None:
        return settings
    model = open_run(name, runs).config().to_dict()
    return {field: model[field] for field in (*ARCHITECTURE, "resize")} | settings


def new_run(config: "Config", runs: Path = RUNS, *, overwrite: bool = False) -> Run:
    """Chooses the folder of a new run, which `start_run` creates.

    Args:
        config: The settings, which may name the run; by default it is named after the time.
        runs: The folder of the run folders.
        overwrite: Whether an existing run may be replaced.

    Raises:
        RunError: The name is taken and `overwrite` is false, or the folder of that name is not a run.
    """
    run = Run(runs / (config.run or datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))
    if run.path.exists():
        if not overwrite:
            raise RunError(f"{run.path} exists; choose another --run, or replace it with --overwrite")
        if not run.path.is_dir() or (any(run.path.iterdir()) and not run.config_file.is_file()):
            raise RunError(f"{run.path} exists and is not a run folder; --overwrite replaces only run folders")
    return run


def resumable_run(config: "Config", runs: Path = RUNS) -> Run:
    """Finds the run folder in which training with `config` continues or, if it has not started, begins.

    Args:
        config: The settings, which name the run.
        runs: The folder of the run folders.

    Raises:
        RunError: The run has other settings; or it has not started, and `config` does not name its data or the folder
            of that name is not a run.
    """
    if config.run is None:
        raise RunError("--resume needs the name of the run: --run NAME")
    run = Run(runs / config.run)
    if not run.config_file.is_file():  # it was killed early, or never started
        if run.path.exists() and not (run.path.is_dir() and all(path.name[0] == "." for path in run.path.iterdir())):
            raise RunError(f"{run.path} exists and is not a run folder; choose another --run")
        if config.data is None:
            raise RunError(f"{run.path} has not been started; name the --data to start it with")
        return run
    made_with, asked = run.config().to_dict(), config.to_dict()
    other = [name for name in asked if asked[name] != made_with[name] and name not in MAY_CHANGE]
    if (made_with["store"] == "device") != (asked["store"] == "device"):  # which rounds differently
        other.append("store")
    if other:
        raise RunError(f"{run.path} was made with other values of {flags(other)}; leave them out to resume it")
    return run


def start_run(run: Run, config: "Config", *, overwrite: bool = False, again: bool = False) -> None:
    """Creates the run folder and writes its config.json.

    Args:
        run: From `new_run` or `resumable_run`.
        config: The settings.
        overwrite: Whether to remove an existing run of the same name first.
        again: Whether to use an existing folder, after removing the history of an earlier attempt.

    Raises:
        RunError: Another run took the name in the meantime, or the folder cannot be created.
    """
    try:
        if overwrite and run.path.exists():
            shutil.rmtree(run.path)
        run.path.mkdir(parents=True, exist_ok=again)
        run.history_file.unlink(missing_ok=True)
        shutil.rmtree(run.tensorboard, ignore_errors=True)
        run.write_config(config)
    except FileExistsError:
        raise RunError(f"{run.path} exists; another run took the name in the meantime") from None
    except OSError as error:
        raise RunError(f"{run.path} cannot be created: {error.strerror}") from error


def _finished_at(run: Run) -> float:
    """The time at which a run finished. Not that of metrics.json, which evaluation and later exports rewrite."""
    return (run.samples_file if run.samples_file.exists() else run.config_file).stat().st_mtime


def _all_runs(runs: Path) -> list[Run]:
    return [Run(path) for path in runs.iterdir() if (path / "config.json").is_file()] if runs.is_dir() else []
