"""The map of a gallery as it changes: what was laid out stays where it is, and only what is new is laid out."""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras.app.projection import Projector, encode_map, fit_pca, project_rows
from dr_keras.errors import RunError
from dr_keras.retrieval.index import Index
from dr_keras.retrieval.layout import Layout

log = logging.getLogger("uvicorn.error")

GROWN = 0.1  # share by which a gallery has to grow or shrink until its projection is made anew


@dataclass(frozen=True)
class Snapshot:
    """What a map shows, at one state of the index.

    Attributes:
        version, generation: of the index.
        rows: (N,) int64, ascending, the images that a search may find.
        labels: (N), of each.
        classes: label, name and number of images of each class.
        vectors: (R, D), by row; what is mapped stays as it is, whatever is written.
    """

    version: int
    generation: int
    rows: np.ndarray
    labels: Sequence[str]
    classes: list[dict[str, Any]]
    vectors: np.ndarray


@dataclass(frozen=True)
class Map:
    """The images that a search may find, in two dimensions.

    Attributes:
        key: another one for another map.
        rows: (N,) int64, ascending.
        projector: brings other vectors into it.
        data: the points as `dr_keras.app.projection.encode_map` makes them.
    """

    key: str
    rows: np.ndarray
    projector: Projector
    data: bytes

    def numbers(self, rows: Sequence[int | None]) -> list[int]:
        """The numbers in the map of those rows of the index that are in it."""
        wanted = np.array([row for row in rows if row is not None], np.int64)
        places = np.searchsorted(self.rows, wanted)
        there = places < len(self.rows)
        there[there] = self.rows[places[there]] == wanted[there]
        return places[there].tolist()


class Mapper:
    """Makes maps of one index, one at a time."""

    def __init__(self, index: Index) -> None:
        self._layout = _load_layout(index)
        self._projector: tuple[int, Projector] | None = None  # and of how many images it was made
        self._placed: tuple[Projector, int, np.ndarray] | None = None

    def make(self, state: Snapshot) -> Map:
        """The map of a state: by UMAP where `index.py map` has laid the index out, else by PCA."""
        projector = self._layout or self._pca(state)
        points = self._places(projector, state)[state.rows]
        number = {one["label"]: place for place, one in enumerate(state.classes)}
        labels = np.fromiter((number[label] for label in state.labels), np.int64, len(state.rows))
        # Another server may have laid out the same version differently.
        key = f"v{state.version}-{zlib.crc32(points.tobytes()):08x}"
        about = {"key": key, "method": "UMAP" if self._layout else "PCA", "classes": state.classes}
        return Map(key, state.rows, projector, encode_map(points, labels, about))

    def _places(self, projector: Projector, state: Snapshot) -> np.ndarray:
        """(R, 2): where each row lies. Rows never change in a generation, so only new ones are projected."""
        places = np.empty((0, 2), np.float32)
        if self._placed and self._placed[0] is projector and self._placed[1] == state.generation:
            places = self._placed[2]
        new = project_rows(projector, state.vectors, np.arange(len(places), len(state.vectors)))
        places = np.concatenate([places, new])
        self._placed = projector, state.generation, places
        return places

    def _pca(self, state: Snapshot) -> Projector:
        """The projector as it was, so that the map stays where it is, until the gallery has become another."""
        count = len(state.rows)
        if not count:
            return lambda given: np.zeros((len(given), 2), np.float32)
        if self._projector is None or abs(count - self._projector[0]) > GROWN * self._projector[0]:
            self._projector = count, fit_pca(state.vectors, state.rows)
        return self._projector[1]


def _load_layout(index: Index) -> Layout | None:
    try:
        return Layout.load(index)
    except RunError as error:
        log.error("%s", error)
        return None
