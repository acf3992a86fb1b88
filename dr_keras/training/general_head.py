"""Fits the general head of a run on its training images (`dr_keras.heads`)."""

from dataclasses import replace

import keras
import numpy as np
from rich.console import Console

from dr_keras.atomic_files import write_array, write_json
from dr_keras.data.catalog import Catalog, load_catalog
from dr_keras.data.pixel_store import Pixels, load_pixels
from dr_keras.data.splits import TRAIN
from dr_keras.embedders import embed_with_network
from dr_keras.errors import InputError
from dr_keras.heads import FIT_IMAGES, fit_general_head
from dr_keras.model.general_head import feature_network
from dr_keras.model.released import run_network
from dr_keras.progress import bar, stderr
from dr_keras.runs import Run
from dr_keras.training.devices import on_one_device

SAMPLE_IMAGES = 64  # kept in the run folder for checking exports


def write_general_head(run: Run, network: keras.Model, catalog: Catalog, pixels: Pixels, console: Console) -> None:
    """Writes the general head and the classes of a run, and sample images.

    Args:
        run: The run; its settings name the length of the vectors and the seed of the draws.
        network: Its embedding network.
        catalog: Its images.
        pixels: Their pixels, (N, H, W, 3) uint8.
        console: Shows progress.

    """
    config = run.config()
    random = np.random.default_rng(config.seed)
    samples = random.permutation(len(catalog))[:SAMPLE_IMAGES]
    rows = np.sort(random.permutation(catalog.rows(TRAIN))[:FIT_IMAGES])
    trained = np.unique(catalog.labels[catalog.rows(TRAIN)])  # other classes may be held out, whole
    write_json(run.classes_file, [catalog.classes[label] for label in trained])
    write_array(run.samples_file, pixels[np.sort(samples)])
    with on_one_device(), bar("fitting the general head", len(rows), console) as advance:
        features = embed_with_network(feature_network(network), pixels, rows, advance=advance)
    try:
        fit_general_head(features, config.general_dim).save(run.general_file)
    except InputError as error:  # all of them are equal
        console.print(f"no general head: {error}")


def fit_again(run: Run, data: str, console: Console | None = None) -> None:
    """Fits the general head of a run that was trained by an older version, or of a copy of a released model.

    Args:
        run: The run.
        data: The images it was trained on, as for `train.py --data`.
        console: Shows progress; standard error by default.

    Raises:
        InputError: The images or the network cannot be used.
    """
    console = console or stderr()
    config = run.config()
    catalog = load_catalog(
        data,
        monitor=config.monitor,
        validation=config.validation,
        seed=config.seed,
        protocol=config.protocol,
        one_class=bool(config.triplets),
        console=console,
    )
    if not len(catalog.rows(TRAIN)):
        raise InputError(f"--data {data} has no training images, on which the general head is fitted")
    catalog, pixels, _ = load_pixels(catalog, config.image_size, config.resize, console=console)
    if config.data is not None or config.epochs:  # a network as it is has no gallery of its own
        run.write_config(replace(config, data=data))
    write_general_head(run, run_network(run), catalog, pixels, console)
