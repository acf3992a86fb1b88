"""The relevance of training images to each other, from what `--relevance` names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from dr_keras.config import COLOR, NETWORK, Config
from dr_keras.data.catalog import Catalog
from dr_keras.data.color_features import color_features
from dr_keras.data.image_lookup import ImageLookup
from dr_keras.data.pixel_store import Pixels
from dr_keras.data.relevance import FeatureRelevance, PairRelevance, Relevance
from dr_keras.data.relevance_sampler import RelevanceSampler
from dr_keras.data.sources.table import read_table
from dr_keras.embedders import embed_with_network
from dr_keras.errors import InputError
from dr_keras.model.released import run_network
from dr_keras.progress import bar
from dr_keras.runs import open_run
from dr_keras.training.devices import on_one_device

BLOCK_BYTES = 1 << 26  # of pixels that are looked at at a time
DEFAULT_NETWORK = "tiny-imagenet-64"


def relevance_sampler(
    config: Config, catalog: Catalog, pixels: Pixels, rows: np.ndarray, runs: Path, console: Console
) -> RelevanceSampler:
    """Returns the sampler of `--sampling relevance`; the arguments are those of `training_relevance`."""
    return RelevanceSampler(
        catalog.labels[rows],
        training_relevance(config, catalog, pixels, rows, runs, console),
        config.batch_size,
        config.seed,
        out_of_class=config.out_of_class,
        positive_bound=config.positive_bound,
        gap=config.relevance_gap,
        buffer=config.buffer,
    )


def training_relevance(
    config: Config, catalog: Catalog, pixels: Pixels, rows: np.ndarray, runs: Path, console: Console
) -> Relevance:
    """Returns the relevance of the training images.

    Args:
        config: The settings; `relevance` names what is measured.
        catalog: The images of all splits.
        pixels: Their pixels.
        rows: (n,) the rows of the training images.
        runs: The folder of the run folders.
        console: Shows progress.

    Raises:
        InputError: The run or the file cannot be used.
    """
    labels = catalog.labels[rows]
    if config.relevance_file:
        return pair_relevance(config.relevance_file, catalog, rows)
    step = max(1, BLOCK_BYTES // int(np.prod(pixels.shape[1:])))
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    with bar("relevance", len(rows), console) as advance:

        def by_color() -> Iterator[np.ndarray]:
            for block in blocks:
                yield color_features(pixels[block])
                advance(len(block))

        if config.relevance == COLOR:
            return FeatureRelevance(by_color(), labels, config.seed)
        name = (config.initial_weights or DEFAULT_NETWORK) if config.relevance == NETWORK else config.relevance
        run = open_run(name, runs)
        size = run.config().image_size
        if size > config.image_size:
            raise InputError(f"--relevance {name} needs images of {size} px, but --image-size is {config.image_size}")
        with on_one_device():
            network = run_network(run)
            vectors = (embed_with_network(network, pixels, block, advance=advance) for block in blocks)
            return FeatureRelevance(vectors, labels, config.seed)


def pair_relevance(file: Path, catalog: Catalog, rows: np.ndarray) -> PairRelevance:
    """Reads the relevance of pairs from a CSV file with the columns query, positive and perhaps relevance.

    Pairs with an image that is not a training image are left out.

    Args:
        file: The file; paths in it may be relative to its folder.
        catalog: The images of all splits.
        rows: (n,) the rows of the training images.

    Raises:
        InputError: The file cannot be read, or a line of it cannot be used; the message names the line.
    """
    lookup = ImageLookup(catalog, file.parent)
    place = np.full(len(catalog), -1)
    place[rows] = np.arange(len(rows))
    found: list[tuple[int, int, float]] = []
    for line in read_table(file, "query", "positive"):
        first, second = (lookup.row(line.values[name], line.where) for name in ("query", "positive"))
        value = line.number("relevance", 1.0)
        if first == second or catalog.labels[first] != catalog.labels[second]:
            raise InputError(f"{line.where}: relevance is between two images of one class")
        if not 0 < value < float("inf"):
            raise InputError(f"{line.where}: relevance is {value:g}; it must be a positive number")
        if place[first] >= 0 and place[second] >= 0:
            found.append((int(place[first]), int(place[second]), value))
    if not found:
        raise InputError(f"{file} has no pair of two training images")
    one, other, values = (np.array(column) for column in zip(*found, strict=True))
    return PairRelevance(one, other, values, catalog.labels[rows])
