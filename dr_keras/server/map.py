"""The map of a changing gallery: images stay where they are, and only new ones are placed.

It depends on the state of the index alone, so that all workers of a server make the same one.
"""

import json
import logging
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras.errors import RunError
from dr_keras.index.index import Index, Vectors
from dr_keras.index.store import LAYOUT_FILE
from dr_keras.index.umap_layout import Layout
from dr_keras.server.peers import Peers

log = logging.getLogger("uvicorn.error")

BLOCK_ROWS = 65536  # projected at a time: 64 MiB at D = 256
FIT_ROWS = 20_000  # to fit the axes to; more would move them by less than the size of a point
GROWTH = 1.1  # by which a gallery grows before its projection is fitted again
MAGIC = b"DKM1"
SCATTER = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 by the golden ratio: multiples of it are spread evenly

Projector = Callable[[np.ndarray], np.ndarray]
"""(N, D) vectors -> (N, 2) float32: what `fit_pca` returns, or a `dr_keras.index.umap_layout.Layout`, which
`index.py map` makes."""


@dataclass(frozen=True)
class Fit:
    """A projection and what it was fitted to.

    Attributes:
        projector: The projection.
        checksum: Of the vectors that it was fitted to.
        rows, marks: Of these vectors, as in `Snapshot`.
    """

    projector: Projector
    checksum: int
    rows: np.ndarray
    marks: np.ndarray


@dataclass(frozen=True)
class Snapshot:
    """What a map shows, in one state of the index.

    Attributes:
        version: The index's version.
        rows: (N,) int64, ascending, the images that a search may find.
        labels: The N labels of these images.
        classes: Label, name and number of images of each class.
        vectors: The vectors by row, of that state.
        marks: (N,) what tells whether the vector in a row is another than before, see `Index.vector_marks`; the
            later an image was added, the larger.
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
        peers: The workers of the server: all use the layout that the first of them has found.
    """

    def __init__(self, index: Index, peers: Peers) -> None:
        self._layout = _load_layout(index, peers)
        self._fit: Fit | None = None
        self._placed: tuple[Projector, np.ndarray, np.ndarray, np.ndarray] | None = None  # rows, marks, places

    def make(self, state: Snapshot) -> Map:
        """Makes the map of a state: by UMAP if `index.py map` has laid out the index, otherwise by PCA."""
        projector, checksum = self._layout or self._pca(state)
        points = self._places(projector, state)
        number = {one["label"]: place for place, one in enumerate(state.classes)}
        labels = np.fromiter((number[label] for label in state.labels), np.int64, len(state.rows))
        # Another index of the same version, or another layout, has another checksum.
        key = f"v{state.version}-{checksum:08x}"
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

    def _pca(self, state: Snapshot) -> tuple[Projector, int]:
        """The projector, and the checksum of what it was fitted to.

        It is fitted again, which moves the map, when the gallery has grown a lot, or an image that it was fitted to is
        gone.
        """
        if not len(state.rows):
            return lambda given: np.zeros((len(given), 2), np.float32), 0
        chosen = oldest(state.marks)
        rows, marks = state.rows[chosen], state.marks[chosen]
        fit = self._fit
        if not (fit and np.array_equal(fit.rows, rows) and np.array_equal(fit.marks, marks)):
            vectors = np.ascontiguousarray(state.vectors[rows], np.float32)
            self._fit = fit = Fit(fit_pca(vectors), zlib.crc32(vectors.tobytes()), rows, marks)
        return fit.projector, fit.checksum


def _load_layout(index: Index, peers: Peers) -> tuple[Layout, int] | None:
    """The layout that `index.py map` has made of the index, if any, and the checksum of its file."""
    model = zlib.crc32(index.model.encode(errors="replace"))
    try:
        data = peers.kept(f"map-{model:08x}.npz", lambda: index.read_file(LAYOUT_FILE))
        layout = Layout.read(data, index)
    except RunError as error:
        log.error("%s", error)
        return None
    return None if data is None or layout is None else (layout, zlib.crc32(data))


def oldest(marks: np.ndarray) -> np.ndarray:
    """Chooses the images that a projection is fitted to: others only when one of them is gone, or at `GROWTH`.

    Args:
        marks: (N,) int64, at least one, as in `Snapshot`.

    Returns:
        (N,) bool. Of the oldest images, up to about `FIT_ROWS` are true.
    """
    count = min(math.ceil(GROWTH ** int(math.log(len(marks), GROWTH))), len(marks))
    step = -(-count // FIT_ROWS)
    drawn = (marks.astype(np.uint64) * SCATTER >> np.uint64(32)) % np.uint64(step) == 0
    return drawn & (marks <= np.partition(marks, count - 1)[count - 1])


def fit_pca(chosen: np.ndarray) -> Projector:
    """Fits a projection to the two directions in which vectors vary most.

    Args:
        chosen: (N, D) float32, at least one.

    Returns:
        A projector that centers them and keeps nearly all of them between -1 and 1, both axes at the same scale.
    """
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
