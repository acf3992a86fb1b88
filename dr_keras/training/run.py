"""Training, from a data set to a finished run folder."""

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from dr_keras import export
from dr_keras.atomic_files import new_file, write_array, write_json
from dr_keras.backend import keras_defaults
from dr_keras.config import (
    ARCHITECTURE,
    RESNETS,
    Config,
    NetworkConfig,
    OptimizerConfig,
    RankingConfig,
    RunConfig,
    ScheduleConfig,
)
from dr_keras.data.batches import ImageSource, Share, TripletSource
from dr_keras.data.catalog import Catalog, load_catalog
from dr_keras.data.drawings import drawn_images
from dr_keras.data.pixel_store import Pixels, StreamedImages, load_pixels
from dr_keras.data.samplers import Sampler
from dr_keras.data.splits import TRAIN, VALIDATION
from dr_keras.duplicates.leaks import leaks_between
from dr_keras.embedders import embed_with_network
from dr_keras.errors import InputError, MissingPackage, RunError
from dr_keras.export.onnx import require_onnx
from dr_keras.index.file_stamps import file_stamps
from dr_keras.index.write_index import write_index
from dr_keras.invocation import command
from dr_keras.model.network import initial_network
from dr_keras.model.released import run_network
from dr_keras.model.source_card import source_card
from dr_keras.model.widening import widened_weights
from dr_keras.options import flags
from dr_keras.progress import bar, stderr
from dr_keras.runs import RUNS, Run, new_run, open_run, resumable_run, start_run
from dr_keras.training import reporters
from dr_keras.training.checkpoint import Progress, read_progress
from dr_keras.training.compile import training_precision
from dr_keras.training.devices import Devices, devices_for, on_one_device
from dr_keras.training.fit import Fit
from dr_keras.training.general_head import SAMPLE_IMAGES, write_general_head
from dr_keras.training.judgments import judgment_sampler
from dr_keras.training.messages import other_images, print_data, print_lost, settings_table
from dr_keras.training.monitor import Monitor
from dr_keras.training.phase_models import PhaseModels
from dr_keras.training.phases import phases
from dr_keras.training.relevance import relevance_sampler
from dr_keras.training.sources import training_sources
from dr_keras.training.tuning import prepare


def run_training(
    config: Config,
    *,
    runs: Path = RUNS,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> Run:
    """Trains a network and leaves a finished run folder.

    Args:
        config: The settings.
        runs: The folder of all run folders. Of several hosts, only the first writes to it; to resume, all read it.
        overwrite: Whether to replace an earlier run of the same name, once the data of the new one has been read.
        resume: Whether to continue the run of that name from its last checkpoint, or from its beginning if it has none;
            a finished run is left unchanged.
        console: Where progress is shown; standard error by default.

    Returns:
        The run folder.

    Raises:
        InputError: The data cannot be used; the network cannot be built; the name of the run is taken; the run to
            resume has other settings or images; a package is not installed; the disk is full.
        Interrupted: Ctrl-C or SIGTERM; the run is saved and can be resumed.
    """
    console = console or (stderr() if config.host_index == 0 else Console(quiet=True))
    if config.onnx:
        require_onnx()
    run = _run(config, runs, overwrite=overwrite, resume=resume)
    if resume and run.finished:
        more = ""
        if config.onnx and not run.onnx_file.is_file():
            more = f"; for embedding.onnx: {command('train')} --export-only --onnx --run {run.path.name}"
        console.print(f"{run.path} is finished; there is nothing to resume{more}")
        return run
    with (
        keras_defaults(),
        devices_for(
            config.part(RunConfig),
            batch_size=config.batch_size,
            store=config.store,
            deterministic=config.deterministic,
        ) as devices,
    ):
        if devices.count > 1:
            console.print(f"computing on {devices.count} devices of {devices.hosts} hosts")
        _Training(config, run, runs, devices, console, overwrite=overwrite, resume=resume).train()
    return run


def _run(config: Config, runs: Path, *, overwrite: bool, resume: bool) -> Run:
    if resume:
        return resumable_run(config, runs)
    if config.host_index:  # the first host checks whether the name is free
        return Run(runs / (config.run or "run"))
    return new_run(config, runs, overwrite=overwrite)


@dataclass(frozen=True)
class _Images:
    """The usable images, the report on the others, and a checksum that a resumed run compares."""

    catalog: Catalog
    pixels: Pixels
    report: dict[str, Any]
    checksum: int


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """The result of the fit."""

    network: keras.Model
    steps: int
    vectors: np.ndarray  # (N, D), of all images
    figures: dict[str, float]  # of the monitor images


@dataclass(frozen=True)
class _Training:
    """What `run_training` does once the devices are set up, step by step."""

    config: Config
    run: Run
    runs: Path
    devices: Devices
    console: Console
    _: KW_ONLY
    overwrite: bool
    resume: bool

    def train(self) -> None:
        """Trains, and leaves a finished run folder."""
        config, run = self.config, self.run
        done = read_progress(run.checkpoint_file) if self.resume and run.checkpoint_file.exists() else None
        network = build_network(config)  # before anything is read or written, because its settings may be invalid
        if config.initial_weights and not done:
            start_from(network, config, self.runs)
        if config.epochs:
            prepare(network, config.part(OptimizerConfig))
        if not config.epochs and config.data is None:
            with self._folder(fresh=True) as folder, _writing(folder):
                self._finish_without_data(folder, network)
            return
        images = self._load_images()
        if done and done.data != images.checksum:
            if changed := config.tables:
                raise RunError(
                    f"the images of {run.path} or the lines of {changed[0]} have changed since it was started; resume "
                    "it with those, or start another --run"
                )
            raise RunError(other_images(images.catalog, run))
        rows = images.catalog.rows(TRAIN)
        share = Share(self.devices.host, self.devices.hosts, self.devices.count)
        sampler: Sampler | None = None
        if config.sampling == "relevance":
            sampler = relevance_sampler(config, images.catalog, images.pixels, rows, self.runs, self.console)
        elif config.triplets:
            sampler = judgment_sampler(config, images.catalog, rows, self.console)
        sources = training_sources(config, images.pixels, rows, images.catalog.labels[rows], share, sampler)
        with self._folder(fresh=not done) as folder, _writing(folder):
            self._begin(folder, images, fresh=not done)
            trained = self._fit(folder, images, sources, network, done)
            if not config.host_index:
                self._finish(folder, images, trained)

    def _load_images(self) -> _Images:
        config = self.config
        catalog = load_catalog(
            config.data,
            monitor=config.monitor,
            validation=config.validation,
            seed=config.seed,
            protocol=config.protocol,
            one_class=bool(config.triplets),
            console=self.console,
        )
        if not len(catalog.rows(TRAIN)):
            raise InputError(f"--data {config.data} has no training images; it can only be evaluated on")
        store = "auto" if config.store == "device" else config.store  # from which they are copied to the device
        catalog, pixels, report = load_pixels(
            catalog, config.image_size, config.resize, store=store, console=self.console
        )
        checksum = zlib.crc32("\n".join(catalog.ids).encode(errors="surrogateescape"))
        for table in config.tables:  # a resumed run needs the same lines
            checksum = zlib.crc32(table.read_bytes() if table.is_file() else b"", checksum)
        return _Images(catalog, pixels, report, checksum)

    @contextmanager
    def _folder(self, *, fresh: bool) -> Iterator[Run]:
        """Yields the folder to write to: that of the run, or a temporary one on the other hosts."""
        if not self.config.host_index:
            if fresh:
                start_run(self.run, self.config, overwrite=self.overwrite, again=self.resume)
            yield self.run
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Run(Path(folder) / self.run.path.name)

    def _begin(self, folder: Run, images: _Images, *, fresh: bool) -> None:
        """Writes and prints what is known before the first step."""
        config, report = self.config, images.report
        if fresh:
            report["leaks"] = _leaks(images.catalog, images.pixels)
            write_json(folder.report_file, report)
        elif not config.host_index:  # the same images, perhaps in another place
            self.run.write_config(replace(self.run.config(), data=config.data, onnx=config.onnx))
        print_data(self.console, images.catalog, report, folder)

    def _fit(
        self,
        folder: Run,
        images: _Images,
        sources: dict[str, TripletSource | ImageSource],
        network: keras.Model,
        done: Progress | None,
    ) -> _Trained:
        """Trains `network`, and ranks the monitor images with the result."""
        config, catalog, pixels = self.config, images.catalog, images.pixels
        progress = done or Progress(0, images.checksum)
        board = reporters.Board(folder.tensorboard, progress.step)
        monitor = Monitor(catalog, pixels, board, config.seed)
        steps = 0
        try:
            if not progress.step:
                board.text("configuration", settings_table(config.to_dict()))
            if config.epochs:
                fit = self._make_fit(folder, sources, monitor, len(catalog.classes))
                network, steps = fit(network, progress, self.run if done else None)
            with on_one_device(), bar("embedding images", len(catalog), self.console) as advance:
                vectors = embed_with_network(network, pixels, advance=advance)
            figures = monitor.look(lambda wanted: vectors[wanted], steps)
            if config.projector:
                monitor.project(vectors, config.projector, steps)
        finally:
            board.close()
        return _Trained(network=network, steps=steps, vectors=vectors, figures=figures)

    def _make_fit(
        self, folder: Run, sources: dict[str, TripletSource | ImageSource], monitor: Monitor, classes: int
    ) -> Fit:
        config = self.config
        schedule = config.part(ScheduleConfig)
        course = phases(schedule, config.sizes, {stage: source.steps_per_epoch for stage, source in sources.items()})
        models = PhaseModels(
            config.part(NetworkConfig),
            config.part(RankingConfig),
            config.part(OptimizerConfig),
            classes=classes,
            steps=course[-1].last_step,
            weighted=bool(config.triplets),
        )
        return Fit(models, schedule, course, sources, folder, monitor, self.console)

    def _finish_without_data(self, run: Run, network: keras.Model) -> None:
        """Writes a network as it is, with exports that are checked on drawn images; there is nothing to index."""
        with new_file(run.network_file) as temporary:
            network.save(temporary)
        write_array(run.samples_file, drawn_images(SAMPLE_IMAGES, self.config.image_size, self.config.seed))
        self._write_metrics(run, network, steps=0, monitor={})
        self.console.print(f"finished: {run.path}")

    def _finish(self, run: Run, images: _Images, trained: _Trained) -> None:
        """Writes the network, the index, the samples, the exports and, last, the metrics, which mark a finished run."""
        catalog, pixels, figures, console = images.catalog, images.pixels, trained.figures, self.console
        with new_file(run.network_file) as temporary:
            trained.network.save(temporary)
        write_index(
            run.index,
            catalog,
            trained.vectors,
            model=run.fingerprint(),
            run=run.lasting_name(),
            stamps=file_stamps(catalog.paths()),
        )
        write_general_head(run, trained.network, catalog, pixels, console)
        if figures:
            shown = ("precision@1", "precision@30", "map@r")
            console.print("monitor: " + "  ".join(f"{name} {figures[name]:.4f}" for name in shown))
        print_lost(console, pixels)
        self._write_metrics(run, trained.network, steps=trained.steps, monitor=figures)
        run.checkpoint_file.unlink(missing_ok=True)
        console.print(f"finished: {run.path}")

    def _write_metrics(self, run: Run, network: keras.Model, **figures: Any) -> None:
        """Exports the network and writes the metrics, which mark a finished run."""
        part = self.config.part(NetworkConfig)
        if part.pretrained:
            with new_file(run.card_file) as temporary:
                temporary.write_text(source_card(part), encoding="utf-8")
        dim = network.output_shape[-1]
        write_json(run.metrics_file, figures | {"embedding_dim": dim, "export": _export(run, self.console)})


@contextmanager
def _writing(run: Run) -> Iterator[None]:
    """Turns a full disk or a read-only folder into a one-line error."""
    try:
        yield
    except OSError as error:
        message = f"{run.path} cannot be written: {error.strerror or error}"
        if run.config_file.exists():
            message += f"; when there is room, resume with: {command('train')} --resume --run {run.path.name}"
        raise RunError(message) from error


def build_network(config: Config) -> keras.Model:
    """Returns the embedding network with its initial weights, in the precision of the training, if there is any.

    Args:
        config: The settings.

    Raises:
        InputError: The network cannot be built with these settings.
    """
    with training_precision(config.part(OptimizerConfig)) if config.epochs else nullcontext():
        return initial_network(config.part(NetworkConfig))


def start_from(network: keras.Model, config: Config, runs: Path) -> None:
    """Sets the weights of `network` to those of `config.initial_weights`.

    Args:
        network: Built with `config`. A ResNet may have more channels than the one that it starts from, and another
            stride of the first convolution.
        config: The settings.
        runs: The folder of all run folders.

    Raises:
        RunError: There is no such model, or its weights do not fit.
    """
    assert config.initial_weights
    other = open_run(config.initial_weights, runs)
    theirs = other.config()
    wrong = [name for name in ARCHITECTURE if getattr(theirs, name) != getattr(config, name)]
    if theirs.backbone in RESNETS:  # any stride accepts its weights, and so does a larger width
        wrong = [name for name in wrong if name != "stem_stride" and (name != "width" or theirs.width > config.width)]
    if wrong:
        values = ", ".join(f"{name} {getattr(theirs, name)}" for name in wrong)
        wider = "; a larger --width is accepted" if theirs.backbone in RESNETS and "width" in wrong else ""
        raise RunError(f"the weights of {other.path} do not fit {flags(wrong)}; they are for {values}{wider}")
    with on_one_device():
        trained = run_network(other)
        same = theirs.width == config.width
        network.set_weights(trained.get_weights() if same else widened_weights(trained, network, config.seed))


def _export(run: Run, console: Console) -> dict[str, float]:
    """Exports the run; without TensorFlow, prints the command to run where it is installed."""
    console.print("exporting SavedModel and LiteRT")
    try:
        return export.export_in_child(run)
    except MissingPackage:
        console.print(
            "TensorFlow is not installed here; to export SavedModel and LiteRT, run this where it is installed: "
            f"{command('train')} --export-only --run {run.path.name}"
        )
        return {}


def _leaks(catalog: Catalog, pixels: Pixels) -> list[list[str]]:
    """Returns the ids of validation images that are equal, pixel by pixel, to training or monitor images."""
    if isinstance(pixels, StreamedImages):
        return []  # all would have to be decoded again
    return [[catalog.ids[row] for row in rows] for rows in leaks_between(pixels, catalog.splits == VALIDATION)]
