"""The map of a gallery: its vectors in two dimensions, and the bytes in which the page gets them."""

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK = 65536  # vectors looked at together: 64 MiB at D = 256
FIT_ROWS = 20_000  # vectors that the axes are found by: more change them by less than a point's width
MAGIC = b"DKM1"

Projector = Callable[[np.ndarray], np.ndarray]
"""(N, D) vectors -> (N, 2) float32: what `fit_pca` makes, or a `dr_keras.retrieval.layout.Layout`, which
`index.py map` made."""


def fit_pca(vectors: np.ndarray, rows: np.ndarray) -> Projector:
    """The two directions in which the vectors differ most.

    Args:
        vectors: (R, D) float32, may be memory-mapped.
        rows: (N,) int64, which of them; at least one.

    Returns:
        A projector that centres the gallery and keeps nearly all of it within -1 and 1, both axes at one scale.
    """
    dim = vectors.shape[1]
    rows = rows[:: -(-len(rows) // FIT_ROWS)]
    chosen = np.asarray(vectors[rows], np.float32)
    middle = chosen.mean(axis=0)
    centred = chosen - middle
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    axes = directions[:, ::-1][:, :2]  # (D, 2), largest first; with D = 1 there is one
    if axes.shape[1] < 2:
        axes = np.concatenate([axes, np.zeros((dim, 2 - axes.shape[1]))], axis=1)
    # An eigenvector's sign is anybody's choice: the largest part is positive, so that a map is not mirrored tomorrow.
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    axes = (axes * np.where(signs == 0, 1, signs)).astype(np.float32)
    spread = np.abs(centred @ axes)
    scale = float(np.quantile(spread, 0.999)) or 1.0  # one far image shall not make all others a dot

    def project(given: np.ndarray) -> np.ndarray:
        return ((np.asarray(given, np.float32) - middle) @ axes / scale).astype(np.float32)

    return project


def project_rows(projector: Projector, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(N, 2) float32: where the vectors in `rows` (N,) lie, a block at a time."""
    points = np.empty((len(rows), 2), np.float32)
    for start in range(0, len(rows), BLOCK):
        points[start : start + BLOCK] = projector(vectors[rows[start : start + BLOCK]])
    return points


def encode_map(points: np.ndarray, labels: np.ndarray, about: Any) -> bytes:
    """The map as one response, little-endian: 4 bytes 'DKM1', uint32 N, uint32 length of the JSON; N pairs of float32
    x and y; N uint32, each point's class; UTF-8 JSON.

    Args:
        points: (N, 2).
        labels: (N,) numbers of classes.
        about: the JSON.
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
    """What `encode_map` was given.

    Raises:
        ValueError: these are other bytes.
    """
    if data[:4] != MAGIC:
        raise ValueError(f"a map begins with {MAGIC!r}; {data[:4]!r} was given")
    count, length = struct.unpack_from("<II", data, 4)
    if len(data) != 12 + 12 * count + length:
        raise ValueError(f"a map of {count} points has {12 + 12 * count + length} bytes; {len(data)} were given")
    points = np.frombuffer(data, "<f4", 2 * count, 12).reshape(count, 2)
    labels = np.frombuffer(data, "<u4", count, 12 + 8 * count)
    return points, labels, json.loads(data[12 + 12 * count :])
