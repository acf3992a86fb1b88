"""Searches, in the form that clients send and in the form that the index takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_keras.data.crop import Crop
from dr_keras.errors import InputError, RunError
from dr_keras.image_names import find_indexed
from dr_keras.index.cutoff import Cutoff
from dr_keras.index.index import Index
from dr_keras.invocation import command
from dr_keras.retrieval import check_cutoff
from dr_keras.search_model import Model
from dr_keras.search_results import Answer, Result, make_answer, refined_query
from dr_keras.server.errors import Problem, busy
from dr_keras.variety import NEAREST, Variety

UPLOADED = "uploaded image"  # stands for the name of an uploaded image in the answer


@dataclass(frozen=True)
class Vector:
    """The vector of an image that was sent.

    Attributes:
        values: (D,) float32; of an image to add to an index that keeps parts, (1 + P, D).
        model: What it depends on, as `dr_keras.index.index.Index.model`.
    """

    values: np.ndarray
    model: str


@dataclass(frozen=True)
class Query:
    """A search: for uploaded images, which come first, and for images of the index.

    Attributes:
        uploaded: The vectors of the uploaded images.
        positives: Ids or unique base names of images to be like.
        negatives: Ids or unique base names of images to be unlike.
        where: As in `dr_keras.Model.retrieve`.
        max_distance: As in `dr_keras.Model.retrieve`.
        include_self: As in `dr_keras.Model.retrieve`.
        whole: As in `dr_keras.Model.retrieve`.
        variety: What is asked for besides nearness.
        crop: The part of its only image that is searched for, or None for the whole.
        part: The vector of that part.
    """

    uploaded: Sequence[Vector] = ()
    positives: Sequence[str] = ()
    negatives: Sequence[str] = ()
    where: str | None = None
    max_distance: float | str | None = None
    include_self: bool = False
    whole: bool = False
    variety: Variety = NEAREST
    crop: Crop | None = None
    part: Vector | None = None


@dataclass(frozen=True)
class Resolved:
    """A query as the index takes it.

    Attributes:
        vector: (D,) float32.
        limit: The greatest distance of a result, or None.
        known: Its images that are in the index.
        excluded: Rows to exclude from the results.
    """

    vector: np.ndarray
    limit: float | None
    known: list[Result]
    excluded: list[int]


def resolve(model: Model, query: Query) -> Resolved:
    """Finds the images and the vector of a query; the caller must hold the index.

    Args:
        model: A model with an index.
        query: The query.

    Returns:
        The query as the index takes it.

    Raises:
        Problem: 404 if a name is unknown or ambiguous, 400 if the query cannot be answered.
    """
    index = model.index
    if not len(query.uploaded) and not query.positives:
        raise Problem(400, "no query was given; send an image, or ids of the index as positives")
    limit: float | str | Cutoff | None = query.max_distance
    if limit == "auto":
        check_cutoff(index, whole=query.whole)
        limit = Cutoff.of(index) or _calibrated(model)
    if isinstance(limit, str):
        raise Problem(400, f"max_distance is {limit!r}; give a number or 'auto'")
    positives = [find_row(index, name) for name in query.positives]
    negatives = [find_row(index, name) for name in query.negatives]
    sent = query.uploaded if query.part is None else [query.part]
    for vector in sent:
        check_model(index, vector.model)
    named = index.vectors[positives if query.part is None else []]
    good = np.concatenate([np.empty((0, index.dim), np.float32), *(vector.values[None] for vector in sent), named])
    try:
        wanted = refined_query(good, np.asarray(index.vectors[negatives], np.float32))
    except InputError as error:
        raise Problem(400, str(error)) from None
    excluded = negatives if query.include_self else positives + negatives
    if isinstance(limit, Cutoff):
        limit = limit.limit_for(index, wanted, excluded)
    return Resolved(wanted, limit, [model.result(row) for row in positives], excluded)


def _calibrated(model: Model) -> float:
    try:
        return model.calibrated_distance()
    except RunError:
        raise Problem(
            400,
            "this gallery is not calibrated, so max_distance must be a number; see "
            f"{command('index')} calibrate and {command('evaluate')} --calibrate",
        ) from None


def check_model(index: Index, model: str) -> None:
    """Checks that a vector and an index are of the same model.

    Raises:
        Problem: 503 if the index has been moved to another one since the vector was computed.
    """
    if model != index.model:
        raise busy("the index has just been moved to another model; send the request again")


def find_row(index: Index, name: str) -> int:
    """Finds the row of an image by its id, path or unique base name; the caller must hold the index.

    Raises:
        Problem: 404 if no image has this name, or several have.
    """
    try:
        return find_indexed(index, name)
    except RunError:
        raise
    except InputError as error:
        raise Problem(404, str(error)) from None


def answer_to(query: Query, resolved: Resolved, found: list[Result]) -> Answer:
    """Makes the answer to a query.

    Args:
        query: The query.
        resolved: The same query, as the index took it.
        found: The results, nearest first.
    """
    names = [UPLOADED] * len(query.uploaded) + list(query.positives)
    known = [None] * len(query.uploaded) + resolved.known
    path = known[0].path if known[0] else Path(UPLOADED)
    return make_answer(
        names, path, known, found, negatives=query.negatives, max_distance=resolved.limit, crop=query.crop
    )
