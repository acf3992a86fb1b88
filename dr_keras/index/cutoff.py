"""How near is near enough, for each query: a distance that falls where the query's neighbors disagree.

A single distance does not fit all queries: neighbors of a query that the gallery has nothing like are as near as those
of others, but they are of many classes. So a result is kept if its distance is at most `intercept` - `slope` * the
disagreement of the query's nearest images: the entropy of their labels, or without labels, how unlike each other they
are. Both numbers are fitted on images of the index (docs/quality.md has what was tried, and what it gains).
"""

import io
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from dr_keras.data.image_ids import image_path
from dr_keras.data.images import decode, read
from dr_keras.data.splits import MONITOR, SPLIT_NAMES
from dr_keras.errors import ImageError, InputError, RunError
from dr_keras.index.exact_search import distances, nearest
from dr_keras.index.index import CUTOFF_FILE, Index
from dr_keras.index.records import NO_CLASS
from dr_keras.index.sync import Reader

LABELS, COPIES = "labels", "copies"
NEIGHBORS = 100  # whose disagreement counts
KEPT = 30  # nearest images of a query that are kept or not
QUERIES = 1000
MIN_KEPT = 30  # a precision over fewer is not reliable
TRIED_LIMITS = 200  # for each slope
SLOPES = np.concatenate([[0.0], np.geomspace(0.01, 2, 24)])
ALTERED = 500  # images that are searched for in an altered form
EQUAL_DISTANCE = 0.05  # between the vectors of two files of the same picture
BLOCK_QUERIES = 64
ROUNDING = 1e-9  # added to the intercept, so that the result that sets it is kept


@dataclass(frozen=True)
class Cutoff:
    """A calibrated index.

    Attributes:
        model: What the vectors of the index depend on; for others, the cutoff means nothing.
        kind: 'labels' if what is right is of the query's class; 'copies' if it is the same picture.
        precision: The precision that was asked for.
        intercept, slope: The limit of a query is `intercept` - `slope` * its disagreement.
        queries: How many images it was fitted on. Each was searched for twice: as it is, and without its class or
            picture in the gallery, as a query of an unknown kind.
        found: The precision that the fit reached on both together.
        recall: The share of what was right among the `KEPT` nearest images that is kept.
        answered, unknown_answered: The share of queries with any result, of known and of unknown kinds.
    """

    model: str
    kind: str
    precision: float
    intercept: float
    slope: float
    queries: int
    found: float
    recall: float
    answered: float
    unknown_answered: float

    def limit(self, disagreement: float) -> float:
        """Returns the greatest distance of a result."""
        return max(0.0, self.intercept - self.slope * disagreement)

    def save(self, index: Index) -> None:
        """Keeps the cutoff with an index."""
        index.write_file(CUTOFF_FILE, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def of(cls, index: Index) -> "Cutoff | None":
        """Returns the cutoff of an index, or None if it has none for its vectors.

        Raises:
            RunError: The file is damaged.
        """
        try:
            kept = index.read_file(CUTOFF_FILE)
            if kept is None:
                return None
            found = cls(**json.loads(kept))
        except (ValueError, TypeError) as error:
            raise RunError(f"{CUTOFF_FILE} of {index.place} cannot be read: {error}") from error
        return found if found.model == index.model else None

    def limit_for(self, index: Index, vector: np.ndarray, exclude: Iterable[int] = ()) -> float:
        """Returns the greatest distance of a result of a query.

        Args:
            index: The index; hold it.
            vector: (D,) the query.
            exclude: Rows that are no results.
        """
        left_out = np.array([[*exclude]], np.int64)
        rows, _ = index.search(vector[None], NEIGHBORS, exclude=left_out)
        rows = rows[0][rows[0] >= 0]
        if self.kind == COPIES:
            return self.limit(incoherence(index.vectors[rows]))
        return self.limit(entropy([entry.label for entry in index.records.entries(rows)]))


def entropy(labels: Iterable[Any]) -> float:
    """Returns the entropy of labels, in nats: 0 if all are equal.

    Example:
        >>> round(entropy(["cat", "cat", "dog", "dog"]), 4)  # the logarithm of 2
        0.6931
    """
    _, counts = np.unique(np.asarray(list(labels)), return_counts=True)
    shares = counts / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum())


def incoherence(vectors: np.ndarray) -> float:
    """Returns 1 minus the mean cosine between vectors (K, D) of unit length; 0 for fewer than two."""
    count = len(vectors)
    if count < 2:
        return 0.0
    total = np.asarray(vectors, np.float64).sum(axis=0)
    return float(1 - (total @ total - count) / (count * (count - 1)))


@dataclass(frozen=True)
class Searched:
    """The nearest images of Q queries.

    Attributes:
        distances: (Q, K), ascending; infinite where there are fewer.
        right: (Q, K) bool, whether they are what was looked for.
        disagreement: (Q,).
    """

    distances: np.ndarray
    right: np.ndarray
    disagreement: np.ndarray

    @classmethod
    def joined(cls, searches: "Sequence[tuple[np.ndarray, np.ndarray, float]]") -> "Searched":
        """Joins searches: for each, (K,) distances, (K,) whether they are right, and the disagreement."""
        away, right, disagreement = zip(*searches, strict=True)
        return cls(np.stack(away), np.stack(right), np.array(disagreement))


def calibrate(index: Index, precision: float, *, seed: int = 0) -> Cutoff:
    """Fits the cutoff of an index that has classes.

    The queries are the images that a run watched while it trained, if the index has those, because it places the images
    that it was trained on nearer than others; else images of the index drawn at random.

    Args:
        index: The index.
        precision: The share of results that should be right, above 0 and at most 1, over queries of known and unknown
            kinds alike.
        seed: Seeds the draw.

    Raises:
        InputError: There are no two classes with two images, or no cutoff reaches the precision.
    """
    listing = [(row, label, split) for row, _, label, split in index.records.listing()]
    of = {row: label for row, label, _ in listing}
    rows = index.searched_rows()
    labels = np.array([of.get(row, NO_CLASS) for row in rows.tolist()])
    names, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    usable = (counts >= 2) & (names != NO_CLASS)
    if usable.sum() < 2:
        raise InputError("calibrating by classes needs two classes with two images at least; see --copies")
    watched = {row for row, _, split in listing if split == SPLIT_NAMES[MONITOR]}
    able = usable[numbers]
    mine = np.fromiter((row in watched for row in rows.tolist()), bool, len(rows)) & able
    places = np.flatnonzero(mine if mine.any() else able)
    places = np.sort(np.random.default_rng(seed).permutation(places)[:QUERIES])
    gallery = np.ascontiguousarray(index.vectors[rows])
    known, unknown = [], []
    for start in range(0, len(places), BLOCK_QUERIES):
        part = places[start : start + BLOCK_QUERIES]
        spare = NEIGHBORS + int(counts[numbers[part]].max())  # enough for others of other classes
        for own, (near, far) in zip(part.tolist(), nearest_places(gallery[part], gallery, spare), strict=True):
            same = numbers[near] == numbers[own]
            known.append(_first(near, far, same, near != own, numbers))
            unknown.append(_first(near, far, same, ~same, numbers))
    return fit(Searched.joined(known), Searched.joined(unknown), precision, index.model, LABELS)


def calibrate_copies(
    index: Index, reader: Reader, precision: float, *, seed: int = 0, slopes: np.ndarray = SLOPES
) -> Cutoff:
    """Fits the cutoff of an index without classes: what is right is the same picture.

    Images of the index are searched for in an altered form: cropped, brightened or darkened, and saved again as JPEG.

    Args:
        index, precision, seed: As for `calibrate`.
        reader: How the index's model reads files.
        slopes: As for `fit`.

    Raises:
        InputError: Too few images can be read, or no cutoff reaches the precision.
    """
    rows = index.searched_rows()
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(rows))[:ALTERED])
    entries = index.records.entries(rows[chosen])
    pixels, places = [], []
    for place, entry in zip(chosen.tolist(), entries, strict=True):
        with suppress(ImageError):
            pixels.append(decode(altered(read(image_path(entry.id, index.root)), random), reader.size, reader.resize))
            places.append(place)
    if len(places) < 2:
        raise InputError(f"calibrating needs two images at least whose files can be read; {index.place} has fewer")
    gallery = np.ascontiguousarray(index.vectors[rows])
    vectors = reader.embed(np.stack(pixels))
    known, unknown = [], []
    for start in range(0, len(places), BLOCK_QUERIES):
        part = places[start : start + BLOCK_QUERIES]
        found = nearest_places(vectors[start : start + BLOCK_QUERIES], gallery, 2 * NEIGHBORS)
        for own, (near, far) in zip(part, found, strict=True):
            same = gallery[near] @ gallery[own] > 1 - EQUAL_DISTANCE**2 / 2
            known.append(_first(near, far, same, np.ones(len(near), bool), None, gallery))
            unknown.append(_first(near, far, same, ~same, None, gallery))
    return fit(Searched.joined(known), Searched.joined(unknown), precision, index.model, COPIES, slopes)


def altered(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Returns a picture cropped by up to a tenth on each side, brightened or darkened by a tenth, saved as JPEG."""
    width, height = image.size
    left, top, right, bottom = random.uniform(0, 0.1, 4) * (width, height, width, height)
    box = (int(left), int(top), max(int(left) + 1, int(width - right)), max(int(top) + 1, int(height - bottom)))
    picture = ImageEnhance.Brightness(image.crop(box)).enhance(random.choice([0.9, 1.1]))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=int(random.integers(60, 90)))
    return read(stream.getvalue())


def fit(
    known: Searched, unknown: Searched, precision: float, model: str, kind: str, slopes: np.ndarray = SLOPES
) -> Cutoff:
    """Finds the line that keeps the most of what is right, at a precision over queries of known and unknown kinds.

    The precision, less its standard error over the queries (as of a ratio of means), has to be the one that is asked
    for; else the line would fit the chance of these queries.

    Args:
        known: Searches of queries of known kinds.
        unknown: Of unknown kinds, for which nothing is right.
        precision: The precision.
        model, kind: As in `Cutoff`.
        slopes: (S,) those to try.

    Raises:
        InputError: The precision is out of range, or no line reaches it.
    """
    if not 0 < precision <= 1:
        raise InputError(f"the precision is {precision}; it must be above 0 and at most 1")
    away, right = (np.concatenate([getattr(one, name) for one in (known, unknown)]) for name in ("distances", "right"))
    disagreement = np.concatenate([known.disagreement, unknown.disagreement])
    best: tuple[int, float, float, float] | None = None  # kept and right, slope, intercept, precision
    for slope in slopes.tolist():
        score = away + slope * disagreement[:, None]
        ordered = np.sort(score[np.isfinite(score)])
        ranks = np.unique(np.geomspace(MIN_KEPT, max(MIN_KEPT, len(ordered)), TRIED_LIMITS).astype(int))
        for limit in np.unique(ordered[ranks[ranks <= len(ordered)] - 1]).tolist():
            kept = score <= limit
            shown, hits = kept.sum(axis=1), (kept & right).sum(axis=1)
            total = int(hits.sum())
            if best is not None and total <= best[0]:
                continue
            share = total / int(shown.sum())
            error = float(np.sqrt(((hits - share * shown) ** 2).sum())) / int(shown.sum())
            if share - error >= precision:
                best = total, slope, limit + ROUNDING, share
    if best is None:
        raise InputError(f"no cutoff reaches a precision of {precision:g}; ask for less")
    most, slope, intercept, found = best
    answers = [
        float((one.distances <= intercept - slope * one.disagreement[:, None]).any(axis=1).mean())
        for one in (known, unknown)
    ]
    recall = most / max(1, int(known.right.sum()))
    return Cutoff(model, kind, precision, intercept, slope, len(known.distances), found, recall, *answers)


def nearest_places(queries: np.ndarray, gallery: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns for each query the numbers of the nearest vectors of a gallery, and their distances, ascending."""
    near, _ = nearest(queries, gallery, min(count, len(gallery)), unit=True)
    far = distances(queries, gallery, near)
    order = np.argsort(far, axis=1, kind="stable")
    return list(zip(np.take_along_axis(near, order, axis=1), np.take_along_axis(far, order, axis=1), strict=True))


def _first(
    near: np.ndarray,
    far: np.ndarray,
    right: np.ndarray,
    keep: np.ndarray,
    labels: np.ndarray | None,
    vectors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """A search: the first `KEPT` distances, whether they are right, and the disagreement of the first `NEIGHBORS`.

    Args:
        near, far: (N,) places and distances, ascending.
        right: (N,) bool.
        keep: (N,) bool, which of them are in the gallery.
        labels, vectors: Those of all images, whichever count.
    """
    near, far, right = near[keep][:NEIGHBORS], far[keep][:NEIGHBORS], right[keep][:KEPT]
    spare = max(0, KEPT - len(near))
    away = np.concatenate([far[:KEPT], np.full(spare, np.inf)])
    disagreement = entropy(labels[near]) if labels is not None else incoherence(vectors[near])  # type: ignore[index]
    return away, np.concatenate([right, np.zeros(spare, bool)]), disagreement
