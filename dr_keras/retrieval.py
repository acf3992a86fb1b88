"""A search by names: which images they are, their vectors, and the answer. `Model.retrieve` is its public form."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dr_keras.data.crop import Crop, cropped
from dr_keras.data.image_ids import image_path
from dr_keras.errors import ImageError, InputError
from dr_keras.image_names import resolve
from dr_keras.index.index import Index
from dr_keras.index_results import describe, neighbors, row_of, varied_neighbors
from dr_keras.search_results import Answer, make_answer, refined_query
from dr_keras.variety import Variety

if TYPE_CHECKING:  # what a search by name need not import
    from dr_keras.data.images import ImageInput
    from dr_keras.index.cutoff import Cutoff

Embed: TypeAlias = "Callable[[list[ImageInput]], np.ndarray]"


def retrieve(
    index: Index,
    embed: Embed,
    names: Sequence[str],
    k: int,
    *,
    include_self: bool,
    negatives: Sequence[str],
    where: str | None,
    max_distance: "float | Cutoff | None",
    crop: Crop | None,
    variety: Variety,
    whole: bool,
) -> Answer:
    """Finds the nearest images of one image, or of several together; see `dr_keras.search_model.Model.retrieve`.

    Args:
        index: The index.
        embed: Images -> (n, D) float32.
        names: The queries.
        k: How many results.
        include_self, negatives, where: As there.
        max_distance: The greatest distance of a result, or what says it for the query; None for any.
        crop: The part of the query, which must be a single one, or None.
        variety: What is asked for besides nearness.
        whole: Whether to search by whole images alone.

    Raises:
        InputError: As there.
    """
    if not names:
        raise InputError("no query was given")
    asked = (*names, *negatives)
    if crop and len(asked) > 1:
        raise InputError(f"a crop is a part of a single query; {len(asked)} images were given")
    # Files are embedded first, so that meanwhile other threads may search and refresh the index.
    files = {name: file for name in asked if isinstance(file := resolve(index, name), Path)}
    fresh = dict(zip(files, embed(list(files.values())), strict=True)) if files and not crop else {}
    if crop:
        fresh = {names[0]: embed([_part(index, names[0], files.get(names[0]), crop)])[0]}
    with index.held():
        rows = [None if name in files else row_of(index, name) for name in asked]
        vectors = np.stack(
            [
                fresh[name] if name in fresh or row is None else index.vectors[row]
                for name, row in zip(asked, rows, strict=True)
            ]
        )
        vector = refined_query(vectors[: len(names)], vectors[len(names) :])
        excluded = [row for row in (rows[len(names) :] if include_self else rows) if row is not None]
        if max_distance is None or isinstance(max_distance, float | int):
            limit = max_distance
        else:
            limit = max_distance.limit_for(index, vector, excluded)
        known = [describe(index, row) if row is not None else None for row in rows[: len(names)]]
        results = [] if variety else neighbors(index, vector[None], k, excluded, where, whole=whole)[0]
        ids = [entry.id for entry in index.records.entries(excluded)]  # rows may change as soon as it is not held
    if variety:
        results = varied_neighbors(index, vector, k, ids, where, variety, limit, whole=whole)
    path = known[0].path if known[0] else files[names[0]]
    return make_answer(names, path, known, results, negatives=negatives, max_distance=limit, crop=crop)


def check_cutoff(index: Index, *, whole: bool) -> None:
    """Checks that a calibrated distance suits a search: it is one of whole images.

    Raises:
        InputError: The search is also by parts, which are nearer.
    """
    if index.parts and not whole:
        raise InputError(
            "the calibrated distance is one of whole images, and this index is also searched by their parts; give a "
            "number, or search by whole images"
        )


def _part(index: Index, name: str, file: Path | None, crop: Crop) -> "ImageInput":
    """The part of an image of the index, or of any other file."""
    if file is None:
        with index.held():
            file = Path(image_path(index.records.entries([row_of(index, name)])[0].id, index.root))
    try:
        return cropped(file, crop)
    except ImageError as error:
        raise InputError(f"{file} {error}") from error
