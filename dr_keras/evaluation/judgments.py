"""How often a run agrees with people's judgments: is a query more like one image or another?"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dr_keras.data.catalog import load_catalog
from dr_keras.data.decoding import decode_files
from dr_keras.data.image_lookup import ImageLookup
from dr_keras.data.judgments import Judgments, read_judgments
from dr_keras.errors import InputError
from dr_keras.evaluation.baselines import baselines_of
from dr_keras.evaluation.metrics import BOOTSTRAP_DRAWS
from dr_keras.filenames import existing
from dr_keras.heads import HEADS
from dr_keras.progress import bar, stderr
from dr_keras.search_model import Model

BLOCK = 1024  # pairs


def evaluate_judgments(
    model: Model,
    file: str | os.PathLike[str],
    *,
    data: str | None = None,
    head: str = "auto",
    baselines: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compares the distances of a run with people's judgments.

    Args:
        model: The run, from `dr_keras.load`.
        file: A CSV file with the columns query, positive, negative, and perhaps votes and votes_against.
        data: The images that the file names, as for `train.py --data`; by default, paths relative to the file's folder,
            or else the images that the run was trained on.
        head: The vectors to compare by, see `dr_keras.heads`. 'auto' is the trained head of a run that was trained on
            judgments, and else the general head, if there is one.
        baselines: Whether to also compare by raw pixels and by the untrained network.
        console: Shows the progress; standard error by default.

    Returns:
        The figures of `judgment_figures`, the `head`, and by name those of the `baselines`.

    Raises:
        InputError: The file or an image that it names cannot be read.
    """
    console = console or stderr()
    if head not in HEADS:
        raise InputError(f"head is {head!r}; choose one of {', '.join(HEADS)}")
    if head == "auto":
        head = model.auto_head(())
    try:
        judgments, files = _judged_files(Path(file).expanduser(), data, console)
    except InputError:
        if data is not None or model.config.data is None:
            raise
        # Not relative to the file: names of the images that the run was trained on.
        judgments, files = _judged_files(Path(file).expanduser(), model.config.data, console)
    with bar("reading images", len(files), console) as advance:
        pixels, failures = decode_files(files, model.config.image_size, model.config.resize, advance=advance)
    if failures:
        row, reason = next(iter(failures.items()))
        raise InputError(f"{len(failures)} images of {file} cannot be read, first {files[row]} ({reason})")
    seed = model.config.seed
    result = {"head": head} | judgment_figures(judgments, model.vectors(pixels, head), seed)
    if baselines:
        result["baselines"] = {
            name: judgment_figures(judgments, vectors(), seed)
            for name, vectors in baselines_of(model, pixels, console).items()
        }
    return result


def judgment_figures(judgments: Judgments, vectors: np.ndarray, seed: int) -> dict[str, Any]:
    """Returns how often distances agree with judgments.

    A distance agrees if the query is nearer to the image that the voters found more alike.

    Args:
        judgments: M judgments about N images.
        vectors: (N, D).
        seed: Seeds the bootstrap.

    Returns:
        - `agreement`: the share of judgments with a majority that the distances agree with.
        - `vote_agreement`: the share of all votes that they agree with.
        - `vote_ceiling`: the share of votes that are with the majority, or half of a tie; no distance can agree with
          more of them.
        - `judgments`, `votes`: the counts behind them; `ties`: judgments without a majority.
        - `intervals`: 95% bootstrap intervals of the first two. Whole queries are drawn, because judgments about one
          query depend on each other.

    Raises:
        InputError: No judgment has a majority.

    Example:
        >>> judgments = Judgments(np.array([[0, 1, 2]]), votes=np.array([3.0]), against=np.array([1.0]))
        >>> found = judgment_figures(judgments, np.array([[0.0], [1.0], [3.0]]), seed=0)
        >>> found["agreement"], found["vote_agreement"], found["vote_ceiling"]
        (1.0, 0.75, 0.75)
    """
    query, positive, negative = judgments.images.T
    near, far = (_distances(vectors, query, other) for other in (positive, negative))
    for_votes = np.where(near < far, judgments.votes, judgments.against)  # of M judgments, those who agree
    all_votes = judgments.votes + judgments.against
    decided = judgments.votes != judgments.against
    if not decided.any():
        raise InputError("no judgment has a majority")
    right = decided & (for_votes > all_votes / 2)
    sums = {
        "agreement": (right, decided),
        "vote_agreement": (for_votes, all_votes),
    }
    return {
        **{name: float(part.sum() / whole.sum()) for name, (part, whole) in sums.items()},
        "vote_ceiling": float(np.maximum(judgments.votes, judgments.against).sum() / all_votes.sum()),
        "judgments": int(decided.sum()),
        "ties": int((~decided).sum()),
        "votes": int(all_votes.sum()),
        "intervals": {name: _interval(query, part, whole, seed) for name, (part, whole) in sums.items()},
    }


def _distances(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The distances (M,) of pairs of rows of `vectors` (N, D), some at a time, because raw pixels are long."""
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), BLOCK):
        part = slice(start, start + BLOCK)
        found[part] = np.linalg.norm(vectors[first[part]].astype(np.float32) - vectors[second[part]], axis=1)
    return found


def _interval(query: np.ndarray, part: np.ndarray, whole: np.ndarray, seed: int) -> list[float]:
    """The 95% percentile bootstrap interval of sum(part) / sum(whole) over draws of queries."""
    own = np.unique(query, return_inverse=True)[1]
    parts, wholes = (np.bincount(own, values.astype(np.float64)) for values in (part, whole))
    drawn = np.random.default_rng(seed).integers(0, len(parts), (BOOTSTRAP_DRAWS, len(parts)))
    totals = wholes[drawn].sum(axis=1)
    low, high = np.percentile(parts[drawn].sum(axis=1)[totals > 0] / totals[totals > 0], (2.5, 97.5))
    return [float(low), float(high)]


def _judged_files(file: Path, data: str | None, console: Console) -> tuple[Judgments, list[str]]:
    """The judgments, and the files of the images that they are about."""
    if data is not None:
        catalog = load_catalog(data, monitor=0, validation=0, seed=0, one_class=True, console=console)
        judgments = read_judgments(file, ImageLookup(catalog, file.parent).row)
        rows, numbers = np.unique(judgments.images, return_inverse=True)
        images = numbers.reshape(judgments.images.shape)
        return Judgments(images, judgments.votes, judgments.against), catalog.take(rows).paths()
    numbers_of: dict[str, int] = {}

    def find(name: str, where: str) -> int:
        path = existing(os.path.normpath(file.parent.resolve() / os.path.expanduser(name)))
        if path not in numbers_of and not os.path.isfile(path):
            raise InputError(f"{where}: there is no file {path}; name the folder of the images by --data")
        return numbers_of.setdefault(path, len(numbers_of))

    judgments = read_judgments(file, find)
    return judgments, list(numbers_of)
