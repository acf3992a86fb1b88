"""What a search answers: plain values, for people, JSON and a picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.errors import InputError

NEGATIVE = 0.5  # what an image that results should be unlike weighs against one they should be like (Rocchio 1971)


@dataclass(frozen=True)
class Result:
    """One neighbour.

    Attributes:
        rank: from 1.
        id: its id in the index.
        path: its file.
        label, class_name: its class folder, and the class's name for people.
        distance: Euclidean distance to the query.
        attributes: what else the index knows of it.
    """

    rank: int
    id: str
    path: Path
    label: str
    class_name: str
    distance: float
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The base name of the file."""
        return self.id.rpartition("/")[2]


@dataclass(frozen=True)
class Answer:
    """What `Model.retrieve` found.

    Attributes:
        query: the query as it was asked; of several the first.
        path: its file.
        label, class_name: its class where the index knows it, else None; of several queries the one that all share.
        results: the neighbours, nearest first; none where none was near enough.
        queries: all queries as they were asked.
        negatives: the images that the results should be unlike.
        max_distance: how far a neighbour may be, or None.
    """

    query: str
    path: Path
    label: str | None
    class_name: str | None
    results: list[Result]
    queries: Sequence[str] = ()
    negatives: Sequence[str] = ()
    max_distance: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "query": self.query,
            "label": self.label,
            "results": [
                {
                    "rank": result.rank,
                    "name": result.name,
                    "id": result.id,
                    "path": str(result.path),
                    "label": result.label,
                    "class_name": result.class_name,
                    "distance": result.distance,
                    "attributes": dict(result.attributes),
                }
                for result in self.results
            ],
            "queries": list(self.queries),
            "negatives": list(self.negatives),
            "max_distance": self.max_distance,
        }

    def save(self, file: Path) -> None:
        """Saves a picture of the query and its neighbours, framed green where they have its class.

        Raises:
            InputError: the picture cannot be written there or has an ending that is not in `PICTURE_ENDINGS`.
        """
        from dr_keras import image_grid as pictures

        check_picture_name(file)
        neighbours = [
            pictures.Neighbour(
                pictures.open_or_missing(result.path),
                result.class_name,
                result.distance,
                None if self.label is None else result.label == self.label,
            )
            for result in self.results
        ]
        tiles = pictures.neighbour_tiles(pictures.open_or_missing(self.path), self.class_name, neighbours)
        width = min(8, len(tiles))
        picture = pictures.grid([tiles[start : start + width] for start in range(0, len(tiles), width)])
        try:
            with new_file(file) as temporary:
                picture.save(temporary)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error  # the system's own text names the temporary file
            raise InputError(f"the picture {file} cannot be saved: {reason}") from error


PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff", ".pdf")


def check_picture_name(file: str | os.PathLike[str]) -> None:
    """Raises InputError where a picture cannot be saved under a name, by its ending."""
    ending = os.path.splitext(file)[1]
    if ending.lower() not in PICTURE_ENDINGS:
        received = f"the ending {ending}" if ending else "no ending"
        raise InputError(f"the picture {file} has {received}; choose one of {', '.join(PICTURE_ENDINGS)}")


def answered(
    names: Sequence[str],
    path: Path,
    known: Sequence[Result | None],
    found: Sequence[Result],
    *,
    negatives: Sequence[str] = (),
    max_distance: float | None = None,
) -> Answer:
    """The answer of a search: what was found near enough, and the class that all queries share.

    Args:
        names: of the queries, as they were asked for.
        path: the first one's file.
        known: what the index knows of each, None where it knows nothing.
        found: nearest first.
        negatives: as in `Answer`.
        max_distance: what is farther is left out.
    """
    if max_distance is not None:
        found = [result for result in found if result.distance <= max_distance]
    labels = {(result.label, result.class_name) if result else None for result in known}
    label, class_name = (labels.pop() or (None, None)) if len(labels) == 1 else (None, None)
    return Answer(names[0], path, label, class_name, list(found), list(names), list(negatives), max_distance)


def refined_query(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """One query for images like these and unlike those: their means' weighted difference (Rocchio 1971).

    Args:
        positives: (P, D) of unit length, at least one.
        negatives: (M, D) of unit length, or none.

    Returns:
        (D,) float32 of unit length; a single positive without negatives is returned as it is.

    Raises:
        InputError: they cancel each other out.
    """
    if len(positives) == 1 and not len(negatives):
        return np.array(positives[0], np.float32)
    total = positives.mean(axis=0)
    if len(negatives):
        total = total - NEGATIVE * negatives.mean(axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-3:
        raise InputError("these images cancel each other out: nothing is like some of them and unlike the others")
    return (total / length).astype(np.float32)
