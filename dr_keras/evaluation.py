"""The figures of a run: its held-out images as queries, train + monitor as the gallery, and what they are worth."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from dr_keras.config import Config
from dr_keras.console import bar, stderr
from dr_keras.data import VALIDATION
from dr_keras.data.catalog import load_catalog
from dr_keras.data.pixels import decode_files, load_pixels
from dr_keras.errors import InputError
from dr_keras.files import read_json, write_json
from dr_keras.framework import import_framework
from dr_keras.library import Model
from dr_keras.retrieval.embed import embed_with_network
from dr_keras.retrieval.expansion import average_gallery, expand_queries, unit_length
from dr_keras.retrieval.index import Index
from dr_keras.retrieval.metrics import Ranking, class_table, confused_pairs, evaluate
from dr_keras.runs import Run

WORST = 10


@dataclass(frozen=True)
class SearchOptions:
    """What is done to the vectors at search time; none of it is part of a run's own figures.

    Attributes:
        flip_average: embed each image and its mirror image, and take the mean.
        query_expansion: average each query with this many of its neighbours.
        gallery_average: average each gallery vector with this many of its neighbours in the gallery.
    """

    flip_average: bool = False
    query_expansion: int = 0
    gallery_average: int = 0

    def __post_init__(self) -> None:
        for name in ("query_expansion", "gallery_average"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 0")


def evaluate_run(
    model: Model,
    *,
    data: str | None = None,
    baselines: bool = True,
    options: SearchOptions = SearchOptions(),
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluates a run on its own held-out images, or on another data set.

    Args:
        model: the run, by `dr_keras.load`.
        data: another data set, as for `train.py --data`; its images are embedded with this run's network.
        baselines: also rank by raw pixels and by the network before training, on the same images.
        options: also rank with these, each on its own, and together where they are several.
        console: where progress is shown; standard error by default.

    Returns:
        The figures of `dr_keras.retrieval.metrics.evaluate`; `classes`, precision@30 of each class, worst first;
        `worst_classes`; `confused_pairs`; `ranking_seconds`; `baselines` with the figures of `pixels` and `untrained`;
        and `search_options` with those of the options that were asked for. For the run's own data
        the figures are also kept in its metrics.json, as `validation`.

    Raises:
        InputError: there is no held-out image, or an image that a baseline needs is gone.
    """
    console = console or stderr()
    index, pixels = (model.index, None) if data is None else _index_other(model, data, console)
    if index.gallery == len(index.ids):
        raise InputError(
            "no image was held out, so there is no query; train with --validation 0.1, or give --data with a class "
            "of three images or more"
        )

    started = time.perf_counter()
    ranking = _rank(index, index.vectors, model.config.seed)
    seconds = time.perf_counter() - started
    classes = class_table(ranking, tuple(index.classes), tuple(index.class_names))
    result: dict[str, Any] = ranking.figures | {
        "ranking_seconds": round(seconds, 3),
        "worst_classes": classes[:WORST],
        "confused_pairs": confused_pairs(ranking, tuple(index.class_names)),
        "classes": classes,
    }
    if pixels is None and (baselines or options.flip_average):
        pixels = _decode_index(index, model.config, console)
    if options != SearchOptions():
        result["search_options"] = {
            name: _rank(index, vectors, model.config.seed).figures
            for name, vectors in _with_options(model, index, pixels, options, console)
        }
    if baselines:
        assert pixels is not None
        result["baselines"] = {
            name: _rank(index, vectors(), model.config.seed).figures
            for name, vectors in _baselines(model, pixels, console).items()
        }
    if data is None:
        _keep(model.run, {key: value for key, value in result.items() if key != "classes"}, console)
    return result


def _keep(run: Run, figures: dict[str, Any], console: Console) -> None:
    """Adds the figures to metrics.json of a finished run; where that cannot be written, the figures still count."""
    if not run.finished:
        console.print(f"{run.path} is not finished: its figures are shown and not kept")
        return
    try:
        write_json(run.metrics_file, read_json(run.metrics_file) | {"validation": figures})
    except OSError as error:
        console.print(f"the figures are not kept: {run.metrics_file}: {error.strerror}")


def _rank(index: Index, vectors: np.ndarray, seed: int) -> Ranking:
    return evaluate(
        vectors[index.gallery :],
        index.labels[index.gallery :],
        vectors[: index.gallery],
        index.labels[: index.gallery],
        class_count=len(index.classes),
        seed=seed,
    )


def _baselines(model: Model, pixels: np.ndarray, console: Console) -> dict[str, Callable[[], np.ndarray]]:
    def raw() -> np.ndarray:
        console.print("ranking by raw pixels")
        return pixels.reshape(len(pixels), -1)

    def untrained() -> np.ndarray:
        import_framework()
        from dr_keras.training.fit import initial_network

        with bar("embedding with the untrained network", len(pixels), console) as advance:
            return embed_with_network(initial_network(model.config), pixels, advance=advance)

    return {"pixels": raw, "untrained": untrained}


def _with_options(
    model: Model, index: Index, pixels: np.ndarray | None, options: SearchOptions, console: Console
) -> Iterator[tuple[str, np.ndarray]]:
    """The index's vectors, (N, D), with each option on its own, and with all of them together."""
    flipped = index.vectors
    if options.flip_average:
        assert pixels is not None
        console.print("embedding mirror images")
        flipped = unit_length(index.vectors + model.embed(np.ascontiguousarray(pixels[:, :, ::-1])))
        yield "flip average", flipped

    def averaged(vectors: np.ndarray) -> np.ndarray:
        gallery = average_gallery(vectors[: index.gallery], options.gallery_average)
        return np.concatenate([gallery, vectors[index.gallery :]])

    def expanded(vectors: np.ndarray) -> np.ndarray:
        gallery = vectors[: index.gallery]
        return np.concatenate([gallery, expand_queries(vectors[index.gallery :], gallery, options.query_expansion)])

    if options.gallery_average:
        yield f"gallery average {options.gallery_average}", averaged(index.vectors)
    if options.query_expansion:
        yield f"query expansion {options.query_expansion}", expanded(index.vectors)
    if options.flip_average + bool(options.gallery_average) + bool(options.query_expansion) > 1:
        together = averaged(flipped) if options.gallery_average else flipped
        yield "together", expanded(together) if options.query_expansion else together


def _decode_index(index: Index, config: Config, console: Console) -> np.ndarray:
    paths = [os.path.join(index.root, name) for name in index.ids]
    with bar("reading images for the baselines", len(paths), console) as advance:
        pixels, failures = decode_files(paths, config.image_size, config.resize, advance=advance)
    if failures:
        row, reason = next(iter(failures.items()))
        raise InputError(
            f"{len(failures)} of the run's {len(paths)} images cannot be read any more, {paths[row]} first ({reason}); "
            "--no-baselines needs none of them"
        )
    return pixels


def _index_other(model: Model, data: str, console: Console) -> tuple[Index, np.ndarray]:
    config = model.config
    share = config.validation or Config().validation
    catalog = load_catalog(data, monitor=0, validation=share, seed=config.seed, console=console)
    catalog, pixels, report = load_pixels(catalog, config.image_size, config.resize, console=console)
    assert isinstance(pixels, np.ndarray)  # in memory
    if report["skipped_count"]:
        console.print(f"{report['skipped_count']} files skipped, {report['skipped'][0]['id']} first")
    order = np.argsort(catalog.splits == VALIDATION, kind="stable")
    catalog, pixels = catalog.take(order), pixels[order]
    console.print(f"embedding {len(pixels):,} images", highlight=False)
    return Index.of(catalog, model.embed(pixels)), pixels
