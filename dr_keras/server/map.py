"""The map of a changing gallery: images stay where they are, and only new ones are placed."""

import json
import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras.errors import RunError
from dr_keras.index.index import Index, Vectors
from dr_keras.index.umap_layout import Layout

log = logging.getLogger("uvicorn.error")

BLOCK_ROWS = 65536  # projected at a time: 64 MiB at D = 256
FIT_ROWS = 20_000  # to fit the axes to; more would move them by less than the size of a point
MAGIC = b"DKM1"
REFIT_SHARE = 0.1  # by which a gallery must grow or shrink before its projection is fitted again

Projector = Callable[[np.ndarray], np.ndarray]
"""(N, D) vectors -> (N, 2) float32: what `fit_pca` returns, or a `dr_keras.index.umap_layout.Layout`, which
`index.py map` makes."""


@dataclass(frozen=True)
class Snapshot:
    """What a map shows, in one state of the index.

    Attributes:
        version: The index's version.
        rows: (N,) int64, ascending, the images that a search may find.
        labels: The N labels of these images.
        classes: Label, name and number of images of each class.
        vectors: The vectors by row, of that state.
        marks: (N,) what tells whether the vector in a row is another than before, see `Index.vector_marks`.
    """

    version: int
    rows: np.ndarray
    labels: Sequence[str]
    classes: list[dict[str, Any]]
    vectors: Vectors
    marks: np.ndarray


@dataclass(frozen=True)
class Map:
    """The images that a search may find, in two dimensions.

    Attributes:
        key: Identifies the map.
        rows: (N,) int64, ascending, the images on the map.
        projector: Places other vectors on it.
        data: The points, as `encode_map` encodes them.
    """

    key: str
    rows: np.ndarray
    projector: Projector
    data: bytes

    def numbers(self, rows: Sequence[int | None]) -> list[int]:
        """Returns the point numbers of those rows that are on the map."""
        wanted = np.array([row for row in rows if row is not None], np.int64)
        places = np.searchsorted(self.rows, wanted)
        there = places < len(self.rows)
        there[there] = self.rows[places[there]] == wanted[there]
        return places[there].tolist()


class Mapper:
    """Makes maps of one index, one at a time.

    Args:
        index: The index.
    """

    def __init__(self, index: Index) -> None:
        self._layout = _load_layout(index)
        self._projector: tuple[int, Projector] | None = None  # with the number of images it was fitted to
        self._placed: tuple[Projector, np.ndarray, np.ndarray, np.ndarray] | None = None  # rows, marks, places

    def make(self, state: Snapshot) -> Map:
        """Makes the map of a state: by UMAP if `index.py map` has laid out the index, otherwise by PCA."""
        projector = self._layout or self._pca(state)
        points = self._places(projector, state)
        number = {one["label"]: place for place, one in enumerate(state.classes)}
        labels = np.fromiter((number[label] for label in state.labels), np.int64, len(state.rows))
        # Another server may have laid out the same version differently.
        key = f"v{state.version}-{zlib.crc32(points.tobytes()):08x}"
        about = {"key": key, "method": "UMAP" if self._layout else "PCA", "classes": state.classes}
        return Map(key, state.rows, projector, encode_map(points, labels, about))

    def _places(self, projector: Projector, state: Snapshot) -> np.ndarray:
        """(N, 2): the place of each image. Only new or changed vectors are projected."""
        places = np.empty((len(state.rows), 2), np.float32)
        new = np.ones(len(state.rows), bool)
        if self._placed and self._placed[0] is projector:
            _, rows, marks, old = self._placed
            _, here, there = np.intersect1d(state.rows, rows, assume_unique=True, return_indices=True)
            same = state.marks[here] == marks[there]
            places[here[same]] = old[there[same]]
            new[here[same]] = False
        places[new] = project_rows(projector, state.vectors, state.rows[new])
        self._placed = projector, state.rows, state.marks, places
        return places

    def _pca(self, state: Snapshot) -> Projector:
        """The projector. It is refitted, which moves the map, only after the gallery has changed a lot."""
        count = len(state.rows)
        if not count:
            return lambda given: np.zeros((len(given), 2), np.float32)
        if self._projector is None or abs(count - self._projector[0]) > REFIT_SHARE * self._projector[0]:
            self._projector = count, fit_pca(state.vectors, state.rows)
        return self._projector[1]


def _load_layout(index: Index) -> Layout | None:
    try:
        return Layout.load(index)
    except RunError as error:
        log.error("%s", error)
        return None


def fit_pca(vectors: Vectors, rows: np.ndarray) -> Projector:
    """Fits a projection to the two directions in which the vectors vary most.

    Args:
        vectors: The vectors by row.
        rows: (N,) int64, the rows to use; at least one.

    Returns:
        A projector that centers the gallery and keeps nearly all of it between -1 and 1, both axes at the same scale.
    """
    rows = rows[:: -(-len(rows) // FIT_ROWS)]
    chosen = np.asarray(vectors[rows], np.float32)
    dim = chosen.shape[1]
    middle = chosen.mean(axis=0)
    centered = chosen - middle
    _, directions = np.linalg.eigh((centered.T @ centered).astype(np.float64))
    axes = directions[:, ::-1][:, :2]  # (D, 2), largest first; with D = 1 there is only one
    if axes.shape[1] < 2:
        axes = np.concatenate([axes, np.zeros((dim, 2 - axes.shape[1]))], axis=1)
    # The sign of an eigenvector is arbitrary: its largest component is made positive, so that no later map is mirrored.
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    axes = (axes * np.where(signs == 0, 1, signs)).astype(np.float32)
    spread = np.abs(centered @ axes)
    scale = float(np.quantile(spread, 0.999)) or 1.0  # so that one distant image does not shrink all others to a dot

    def project(given: np.ndarray) -> np.ndarray:
        return ((np.asarray(given, np.float32) - middle) @ axes / scale).astype(np.float32)

    return project


def project_rows(projector: Projector, vectors: Vectors, rows: np.ndarray) -> np.ndarray:
    """Projects vectors, a block at a time.

    Args:
        projector: The projector.
        vectors: The vectors by row.
        rows: (N,) int64, the rows to project.

    Returns:
        (N, 2) float32.
    """
    points = np.empty((len(rows), 2), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        points[start : start + BLOCK_ROWS] = projector(vectors[rows[start : start + BLOCK_ROWS]])
    return points


def encode_map(points: np.ndarray, labels: np.ndarray, about: Any) -> bytes:
    """Encodes a map, little-endian: 4 bytes 'DKM1', uint32 N, uint32 length of the JSON; N pairs of float32 x and y;
    N uint32, each point's class; UTF-8 JSON.

    Args:
        points: (N, 2).
        labels: (N,) class numbers.
        about: The JSON.

    Returns:
        The encoded map.
    """
    text = json.dumps(about).encode()
    return b"".join(
        [
            MAGIC,
            struct.pack("<II", len(points), len(text)),
            np.ascontiguousarray(points, "<f4").tobytes(),
            np.ascontiguousarray(labels, "<u4").tobytes(),
            text,
        ]
    )


def decode_map(data: bytes) -> tuple[np.ndarray, np.ndarray, Any]:
    """Decodes the output of `encode_map`.

    Args:
        data: The encoded map.

    Returns:
        The points (N, 2), the class numbers (N,) and the JSON.

    Raises:
        ValueError: The bytes are not a map.
    """
    if data[:4] != MAGIC:
        raise ValueError(f"a map begins with {MAGIC!r}; {data[:4]!r} was given")
    count, length = struct.unpack_from("<II", data, 4)
    if len(data) != 12 + 12 * count + length:
        raise ValueError(f"a map of {count} points has {12 + 12 * count + length} bytes; {len(data)} were given")
    points = np.frombuffer(data, "<f4", 2 * count, 12).reshape(count, 2)
    labels = np.frombuffer(data, "<u4", count, 12 + 8 * count)
    return points, labels, json.loads(data[12 + 12 * count :])
