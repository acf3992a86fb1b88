"""What a search returns: plain values, for people, for JSON and for an image grid."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.data.crop import Crop
from dr_keras.data.image_ids import url_of
from dr_keras.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

NEGATIVE_WEIGHT = 0.5  # of negatives, relative to positives (Rocchio 1971)


class _PathField:
    """A field that takes a path or its text, and gives a path.

    The path is made when it is first asked for: 30 of them take as long as reading the request that they answer.
    """

    def __get__(self, result: Any, owner: type) -> Path:
        if result is None:
            raise AttributeError("path")  # tells dataclasses that the field has no default
        path = result.__dict__["_path"]
        if not isinstance(path, Path):
            path = result.__dict__["_path"] = Path(path)
        return path

    def __set__(self, result: Any, value: str | os.PathLike[str]) -> None:
        result.__dict__["_path"] = value


@dataclass(frozen=True)
class Result:
    """One image that a search found.

    Attributes:
        rank: 1 for the nearest.
        id: Its id in the index.
        path: Its file.
        label: Its class folder.
        class_name: The name of its class.
        distance: Euclidean distance to the query, from 0 to 2.
        attributes: What else the index knows about the image.
        copies: The ids of copies of the image that were folded into it.
        part: The part of the image that was found, in shares of it; None for the whole.

    Example:
        >>> Result(1, "cats/tom.jpg", Path("photos/cats/tom.jpg"), "cats", "cats", 0.25).name
        'tom.jpg'
    """

    rank: int
    id: str
    if TYPE_CHECKING:
        path: Path
    else:
        path: Path = _PathField()
    label: str
    class_name: str
    distance: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    copies: Sequence[str] = ()
    part: Crop | None = None

    @property
    def name(self) -> str:
        """The base name of the file."""
        return self.id.rpartition("/")[2]


@dataclass(frozen=True)
class Answer:
    """What `Model.retrieve` found.

    Attributes:
        query: The first query, as it was given.
        path: Its file.
        label: The class that all queries share, or None if they do not or the index does not know it.
        class_name: The name of that class, or None.
        results: The results, nearest first; empty if no image is near enough.
        queries: All queries, as they were given.
        negatives: The images that the results should be unlike, as they were given.
        max_distance: The greatest distance of a result, or None.
        crop: The part of the query's picture that was searched for, or None for the whole.

    Example:
        >>> found = Result(1, "cats/tom.jpg", Path("photos/cats/tom.jpg"), "cats", "cats", 0.25)
        >>> answer = Answer("query.jpg", Path("query.jpg"), None, None, [found])
        >>> answer.to_dict()["results"][0]["id"]
        'cats/tom.jpg'
    """

    query: str
    path: Path
    label: str | None
    class_name: str | None
    results: list[Result]
    queries: Sequence[str] = ()
    negatives: Sequence[str] = ()
    max_distance: float | None = None
    crop: Crop | None = None

    def to_dict(self, *, paths: bool = True) -> dict[str, Any]:
        """Returns the answer as plain values, for JSON.

        Args:
            paths: Whether results have a `path`.
        """
        return {
            "query": self.query,
            "label": self.label,
            "results": [
                {
                    "rank": result.rank,
                    "name": result.name,
                    "id": result.id,
                    **({"path": url_of(result.path) or str(result.path)} if paths else {}),
                    "label": result.label,
                    "class_name": result.class_name,
                    "distance": result.distance,
                    "attributes": dict(result.attributes),
                    "copies": list(result.copies),
                    "part": None if result.part is None else list(result.part.numbers),
                }
                for result in self.results
            ],
            "queries": list(self.queries),
            "negatives": list(self.negatives),
            "max_distance": self.max_distance,
            "crop": None if self.crop is None else list(self.crop.numbers),
        }

    def save(self, file: Path) -> None:
        """Saves an image of the query and the results; those of its class are framed in green, and parts in white.

        Args:
            file: The image file to write.

        Raises:
            InputError: The file cannot be written, or its ending is not in `PICTURE_ENDINGS`.
        """
        from dr_keras import image_grid

        check_picture_name(file)
        neighbors = [
            image_grid.Neighbor(
                image_grid.framed(image_grid.open_or_missing(result.path), result.part),
                result.class_name,
                result.distance,
                None if self.label is None else result.label == self.label,
                len(result.copies),
            )
            for result in self.results
        ]
        tiles = image_grid.neighbor_tiles(
            image_grid.open_or_missing(self.path, crop=self.crop), self.class_name, neighbors
        )
        width = min(8, len(tiles))
        picture = image_grid.grid([tiles[start : start + width] for start in range(0, len(tiles), width)])
        save_picture(picture, file)


def save_picture(picture: "Image.Image", file: Path) -> None:
    """Saves an image.

    Args:
        picture: The image.
        file: The file to write; its ending says the format.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with new_file(file) as temporary:
            picture.save(temporary)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # the system's own text names the temporary file
        raise InputError(f"the picture {file} cannot be saved: {reason}") from error


PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff", ".pdf")


def check_picture_name(file: str | os.PathLike[str]) -> None:
    """Checks that an image can be saved under a name.

    Args:
        file: The name.

    Raises:
        InputError: Its ending is not in `PICTURE_ENDINGS`.
    """
    ending = os.path.splitext(file)[1]
    if ending.lower() not in PICTURE_ENDINGS:
        received = f"the ending {ending}" if ending else "no ending"
        raise InputError(f"the picture {file} has {received}; choose one of {', '.join(PICTURE_ENDINGS)}")


def make_answer(
    names: Sequence[str],
    path: Path,
    known: Sequence[Result | None],
    found: Sequence[Result],
    *,
    negatives: Sequence[str] = (),
    max_distance: float | None = None,
    crop: Crop | None = None,
) -> Answer:
    """Makes the answer to a search.

    Args:
        names: The queries, as they were given.
        path: The first query's file.
        known: What the index knows about each query, or None.
        found: The results, nearest first.
        negatives, crop: As in `Answer`.
        max_distance: Results farther than this are left out.

    Returns:
        The answer, with the class that all queries share.
    """
    if max_distance is not None:
        found = [result for result in found if result.distance <= max_distance]
    labels = {(result.label, result.class_name) if result else None for result in known}
    label, class_name = (labels.pop() or (None, None)) if len(labels) == 1 else (None, None)
    return Answer(names[0], path, label, class_name, list(found), list(names), list(negatives), max_distance, crop)


def refined_query(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Combines images to be like and images to be unlike into one query (Rocchio 1971).

    Args:
        positives: (P, D) of unit length, at least one.
        negatives: (M, D) of unit length, or none.

    Returns:
        (D,) float32 of unit length: the weighted difference of their means. A single positive without negatives is
        returned unchanged.

    Raises:
        InputError: They cancel each other out.

    Example:
        >>> refined_query(np.array([[1.0, 0.0], [0.0, 1.0]]), np.empty((0, 2))).round(3)
        array([0.707, 0.707], dtype=float32)
    """
    if len(positives) == 1 and not len(negatives):
        return np.array(positives[0], np.float32)
    total = positives.mean(axis=0)
    if len(negatives):
        total = total - NEGATIVE_WEIGHT * negatives.mean(axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-3:
        raise InputError("these images cancel each other out: nothing is like some of them and unlike the others")
    return (total / length).astype(np.float32)
