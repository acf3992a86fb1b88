"""Evaluates a run: its held-out images are the queries, and its training and monitor images are the gallery.

If whole classes were held out (`dr_keras.data.held_out`), the gallery of a query is the other held-out images.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
from rich.console import Console

from dr_keras.atomic_files import read_json, write_json
from dr_keras.config import Config
from dr_keras.data.catalog import Catalog, load_catalog
from dr_keras.data.decoding import decode_files
from dr_keras.data.held_out import among_themselves
from dr_keras.data.pixel_store import Pixels, StreamedImages, load_pixels
from dr_keras.data.splits import VALIDATION
from dr_keras.embedders import check_finite
from dr_keras.errors import InputError
from dr_keras.evaluation.baselines import baselines_of, vectors_of
from dr_keras.evaluation.calibration import at, calibrate
from dr_keras.evaluation.metric_learning import metric_learning_figures
from dr_keras.evaluation.metrics import Moved, Ranking, class_table, confused_pairs, evaluate, nearest_others
from dr_keras.evaluation.query_expansion import (
    average_gallery,
    average_without,
    expand_among_others,
    expand_queries,
    unit_length,
)
from dr_keras.evaluation.ranked_images import RankedImages
from dr_keras.evaluation.report import check_report, write_report
from dr_keras.heads import HEADS, TRAINED
from dr_keras.index.exact_search import distances
from dr_keras.progress import bar, stderr
from dr_keras.runs import Run
from dr_keras.search_model import Model

MEMORY_SHARE = 0.25  # of the memory that is available, for decoded images
WORST_CLASSES = 10
CALIBRATION_K = 30  # as many results as retrieve.py shows


class EmbedFiles(Protocol):
    """Takes N paths and a head, and returns (N, D) vectors and why others could not be read, by row."""

    def __call__(self, files: Sequence[str], head: str) -> tuple[np.ndarray, dict[int, str]]: ...


@dataclass(frozen=True)
class SearchOptions:
    """Changes to the vectors at search time, which the figures of the run itself do not include.

    Attributes:
        flip_average: Embed each image and its mirror image, and take the mean.
        query_expansion: Average each query with this many of its nearest neighbors.
        gallery_average: Average each gallery vector with this many of its nearest neighbors in the gallery.
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
    head: str = "auto",
    baselines: bool = True,
    options: SearchOptions = SearchOptions(),
    calibrate_to: float | None = None,
    protocol: str = "standard",
    report: str | os.PathLike[str] | None = None,
    embed_files: EmbedFiles | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluates a run on its own held-out images, or on another data set.

    The figures of the trained head on the run's own data are also written to its metrics.json, as `validation`.

    Args:
        model: The run, from `dr_keras.load`.
        data: Another data set, as for `train.py --data`, whose images are embedded with this run's network.
        head: The vectors to rank by, see `dr_keras.heads`. 'auto' is the trained head for the run's own data, and for
            another data set the general head, unless it has the same classes, or the run was trained on judgments or
            has no general head.
        baselines: Whether to also rank the same images by raw pixels and by the untrained network.
        options: Search options; each is also evaluated alone, and all together if there are several.
        calibrate_to: A precision; also finds the largest distance within which this share of the 30 nearest neighbors
            of the monitor images is of the query's class, and stores it in the run for
            `retrieve.py --max-distance auto`.
        protocol: 'class-disjoint' adds the figures of metric learning; the held-out images must be of classes that were
            not trained on. Another data set is split in that way.
        report: An HTML file to write, see `dr_keras.evaluation.report`.
        embed_files: Embeds files by a head in the place of this process.
        console: Shows the progress; standard error by default.

    Returns:
        The figures of `dr_keras.evaluation.metrics.evaluate`, and:

        - `head`: the head.
        - `classes`: the precision@30 of each class, worst first; `worst_classes`: the first of them.
        - `confused_pairs`: the pairs of classes that are mistaken for each other most often.
        - `ranking_seconds`: the time that ranking took.
        - `baselines`: the figures of `pixels` and `untrained`.
        - `search_options`: the figures with each of the options.
        - `metric_learning`: with the class-disjoint protocol, see `dr_keras.evaluation.metric_learning`.
        - `calibration`: the distance, with its figures on the monitor images and on the held-out images.

    Raises:
        InputError: No image is held out, an image that a baseline needs is missing, or embeddings are not finite.
    """
    console = console or stderr()
    if head not in HEADS:
        raise InputError(f"head is {head!r}; choose one of {', '.join(HEADS)}")
    if report is not None:
        check_report(Path(report))  # before the evaluation, which may take a while
    if data is None:
        images, pixels = RankedImages.of_index(model.index), None
        head = model.index.head if head == "auto" else head
        if head != model.index.head and embed_files is not None:
            vectors, failures = embed_files(images.paths, head)
            _check_read(images, failures)
            images = replace(images, vectors=vectors)
        elif head != model.index.head:
            pixels = _decode(images, model.config, console)
            images = replace(images, vectors=vectors_of(model, pixels, head))
    else:
        images, pixels, head = _other_images(model, data, head, protocol, embed_files, console)
    _check(images)
    result = {"head": head} | _figures(images, model.config.seed)
    if protocol == "class-disjoint":
        result["metric_learning"] = _metric_learning(images, model.config.seed)
    if pixels is None and (baselines or options.flip_average):
        pixels = _decode(images, model.config, console)
    if options != SearchOptions():
        result["search_options"] = {
            name: _ranked(images, queries, gallery, model.config.seed, moved).figures
            for name, queries, gallery, moved in _with_options(model, images, pixels, options, head, console)
        }
    if calibrate_to is not None:
        result["calibration"] = _calibrate(images, calibrate_to)
        _keep_calibration(model.run, head, result["calibration"], own_data=data is None, console=console)
    if baselines:
        assert pixels is not None
        result["baselines"] = {
            name: _rank(images, vectors(), model.config.seed).figures
            for name, vectors in baselines_of(model, pixels, console).items()
        }
    if data is None and head == TRAINED and model.index.place == str(model.run.index):
        _keep(model.run, {key: value for key, value in result.items() if key != "classes"}, console)
    if report is not None:
        console.print("writing the report")
        write_report(model, images, head, result, Path(report))
    return result


def _check(images: RankedImages) -> None:
    if not images.held.any():
        raise InputError(
            "no image was held out, so there are no queries; train with --validation 0.1, or give --data with a class "
            "of three images or more, or ten classes of two"
        )
    check_finite(images.vectors)


def _figures(images: RankedImages, seed: int) -> dict[str, Any]:
    """The figures of the embedding itself, with the classes on which it is worst."""
    started = time.perf_counter()
    ranking = _rank(images, images.vectors, seed)
    seconds = time.perf_counter() - started
    classes = class_table(ranking, images.classes, images.class_names)
    return ranking.figures | {
        "ranking_seconds": round(seconds, 3),
        "worst_classes": classes[:WORST_CLASSES],
        "confused_pairs": confused_pairs(ranking, images.class_names),
        "classes": classes,
    }


def _metric_learning(images: RankedImages, seed: int) -> dict[str, float]:
    trained = ~(images.held | images.apart)
    if not among_themselves(images.labels, images.held, trained):
        raise InputError(
            "the held-out images are of classes that were trained on; train with --protocol class-disjoint, or give "
            "another data set"
        )
    queries, labels = images.vectors[images.held], images.labels[images.held]
    if images.apart.any():
        return metric_learning_figures(
            queries, labels, images.vectors[images.apart], images.labels[images.apart], seed=seed
        )
    return metric_learning_figures(queries, labels, None, None, seed=seed)


def _keep_calibration(run: Run, head: str, calibration: dict[str, Any], *, own_data: bool, console: Console) -> None:
    """Writes a calibrated distance to the run, unless it belongs to another data set."""
    if not own_data and run.has_gallery():  # a released model has no data of its own
        console.print("the distance is not kept, because it belongs to another data set")
        return
    kept = {key: value for key, value in calibration.items() if key != "held_out"}
    _write(run.calibration_file(head), kept, "the distance is", console)


def _keep(run: Run, figures: dict[str, Any], console: Console) -> None:
    """Adds the figures to metrics.json of a finished run; a file that cannot be written is only reported."""
    if not run.finished:
        console.print(f"{run.path} is not finished: its figures are shown, but not kept")
        return
    _write(run.metrics_file, read_json(run.metrics_file) | {"validation": figures}, "the figures are", console)


def _write(file: Path, values: dict[str, Any], what: str, console: Console) -> None:
    try:
        write_json(file, values)
    except OSError as error:
        console.print(f"{what} not kept: {file}: {error.strerror}")


def _rank(images: RankedImages, vectors: np.ndarray, seed: int) -> Ranking:
    """Ranks by the vectors (M, D) of all images."""
    return _ranked(images, *_sides(images, vectors), seed)


def _ranked(
    images: RankedImages, queries: np.ndarray, gallery: np.ndarray, seed: int, moved: Moved | None = None
) -> Ranking:
    return evaluate(
        queries,
        images.labels[images.held],
        gallery,
        images.labels[images.gallery],
        class_count=len(images.classes),
        seed=seed,
        leave_one_out=images.among_themselves,
        moved=moved,
    )


def _sides(images: RankedImages, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the queries and of the gallery, from the vectors (M, D) of all images."""
    return _part(vectors, images.held), _part(vectors, images.gallery)


def _part(vectors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The rows of `vectors` (M, D) for which `chosen` (M,) is true; a view if they are contiguous."""
    rows = np.flatnonzero(chosen)
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return vectors[rows[0] : rows[-1] + 1]
    return vectors[rows]


def _calibrate(images: RankedImages, wanted: float) -> dict[str, Any]:
    """Calibrates a distance on the monitor images, and evaluates it on the held-out images."""
    if not images.monitor.any():
        raise InputError("there are no monitor images to calibrate a distance on; train with --monitor 0.01")

    def neighbors(which: np.ndarray, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distances (Q, K), whether they are of the same class (Q, K), and positives (Q,), without the query itself."""
        queries, gallery = np.flatnonzero(which), np.flatnonzero(ranked)
        own = np.searchsorted(gallery, queries) if ranked[queries].all() else None
        vectors = np.asarray(images.vectors[gallery])
        places = nearest_others(images.vectors[queries], vectors, CALIBRATION_K, own)
        far = distances(images.vectors[queries], vectors, places)
        same = images.labels[gallery[places]] == images.labels[queries][:, None]
        counts = np.bincount(images.labels[gallery], minlength=len(images.classes))
        return far, same, counts[images.labels[queries]] - (own is not None)

    train = ~(images.held | images.monitor)
    watched = images.monitor if among_themselves(images.labels, images.monitor, train) else ~images.held
    found = calibrate(*neighbors(images.monitor, watched), wanted)
    figures = at(*neighbors(images.held, images.gallery), found.max_distance)
    return found.to_dict() | {"held_out": dict(zip(("precision", "recall", "coverage"), figures, strict=True))}


def _with_options(
    model: Model, images: RankedImages, pixels: Pixels | None, options: SearchOptions, head: str, console: Console
) -> Iterator[tuple[str, np.ndarray, np.ndarray, Moved | None]]:
    """Yields name, queries, gallery, and moved vectors, for each option alone and for all of them together."""
    flipped = images.vectors
    if options.flip_average:
        assert pixels is not None
        console.print("embedding mirror images")
        flipped = unit_length(images.vectors + vectors_of(model, pixels, head, mirrored=True))
        yield "flip average", *_sides(images, flipped), None

    def averaged(gallery: np.ndarray) -> tuple[np.ndarray, Moved | None]:
        count = options.gallery_average
        moved = average_without(gallery, count) if images.among_themselves else None
        return average_gallery(gallery, count), moved

    def expanded(queries: np.ndarray, gallery: np.ndarray, moved: Moved | None = None) -> np.ndarray:
        if images.among_themselves:
            return expand_among_others(queries, gallery, options.query_expansion, moved)
        return expand_queries(queries, gallery, options.query_expansion)

    queries, gallery = _sides(images, images.vectors)
    if options.gallery_average:
        yield f"gallery average {options.gallery_average}", queries, *averaged(gallery)
    if options.query_expansion:
        yield f"query expansion {options.query_expansion}", expanded(queries, gallery), gallery, None
    if options.flip_average + bool(options.gallery_average) + bool(options.query_expansion) > 1:
        moved = None
        queries, gallery = _sides(images, flipped)
        if options.gallery_average:
            gallery, moved = averaged(gallery)
        yield "together", expanded(queries, gallery, moved) if options.query_expansion else queries, gallery, moved


def _decode(images: RankedImages, config: Config, console: Console) -> Pixels:
    pixels: Pixels
    if _fits(len(images.paths), config):
        with bar("reading images", len(images.paths), console) as advance:
            pixels, failures = decode_files(images.paths, config.image_size, config.resize, advance=advance)
    else:
        nothing = np.empty((0, config.image_size, config.image_size, 3), np.uint8)
        with bar("checking images", len(images.paths), console) as advance:
            failures = decode_files(images.paths, config.image_size, config.resize, out=nothing, advance=advance)[1]
        pixels = StreamedImages(images.paths, config.image_size, config.resize)
    _check_read(images, failures)
    return pixels


def _check_read(images: RankedImages, failures: dict[int, str]) -> None:
    if failures:
        row, reason = next(iter(failures.items()))
        raise InputError(
            f"{len(failures)} of the run's {len(images.paths)} images can no longer be read, first "
            f"{images.paths[row]} ({reason}); --no-baselines does not read them"
        )


def _fits(count: int, config: Config) -> bool:
    """Whether the pixels of images fit into memory with room to spare."""
    return count * config.image_size**2 * 3 <= psutil.virtual_memory().available * MEMORY_SHARE


def _other_images(
    model: Model, data: str, head: str, protocol: str, embed_files: EmbedFiles | None, console: Console
) -> tuple[RankedImages, Pixels | None, str]:
    config = model.config
    share = config.validation or Config().validation
    catalog = load_catalog(
        data, monitor=config.monitor, validation=share, seed=config.seed, protocol=protocol, console=console
    )
    if embed_files is not None:
        head = _head_for(model, catalog, head)
        return RankedImages.of_catalog(*_embedded(catalog, partial(embed_files, head=head), console)), None, head
    store = "memory" if _fits(len(catalog), config) else "stream"
    catalog, pixels, report = load_pixels(catalog, config.image_size, config.resize, store=store, console=console)
    if report["skipped_count"]:
        console.print(f"{report['skipped_count']} files skipped, {report['skipped'][0]['id']} first")
    order = _held_out_last(catalog)
    catalog = catalog.take(order)
    if isinstance(pixels, np.ndarray):
        pixels = pixels[order]
    else:
        pixels = StreamedImages(catalog.paths(), config.image_size, config.resize)
    head = _head_for(model, catalog, head)
    with bar(f"embedding images by the {head} head", len(pixels), console) as advance:
        vectors = vectors_of(model, pixels, head, advance=advance)
    return RankedImages.of_catalog(catalog, vectors), pixels, head


def _embedded(
    catalog: Catalog, embed: Callable[[Sequence[str]], tuple[np.ndarray, dict[int, str]]], console: Console
) -> tuple[Catalog, np.ndarray]:
    """The images that can be read, and their vectors."""
    vectors, failures = embed(catalog.paths())
    if failures:
        row = min(failures)
        if len(failures) == len(catalog):
            raise InputError(f"none of the {len(catalog)} images can be read; {catalog.ids[row]} {failures[row]}")
        console.print(f"{len(failures)} files skipped, {catalog.ids[row]} first")
        good = np.setdiff1d(np.arange(len(catalog)), np.fromiter(failures, np.int64))
        catalog, vectors = catalog.take(good), vectors[good]
    order = _held_out_last(catalog)
    return catalog.take(order), vectors[order]


def _held_out_last(catalog: Catalog) -> np.ndarray:
    """The order in which held-out images are last, so that queries and gallery are views and not copies."""
    return np.argsort(catalog.splits == VALIDATION, kind="stable")


def _head_for(model: Model, catalog: Catalog, head: str) -> str:
    return model.auto_head(catalog.classes) if head == "auto" else head
