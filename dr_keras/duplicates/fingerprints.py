"""What pictures are compared by when copies are looked for: a hash that finds candidates, edges that confirm them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

HASHED_SIDE = 32  # pixels a side that the hash is made of, and
FREQUENCIES = 8  # its lowest frequencies in each direction: both as in Zauner 2010
# Bits of 64 by which two hashes may differ. Of 2,000 training images of Tiny ImageNet, this finds all that are saved
# again as JPEG at quality 60 or brightened by a tenth, 97 % brightened by 0.3 and 94 % cropped by a pixel of 64 all
# round; besides exact copies it leaves 20 candidates among 5 billion pairs. With 8 bits no more of these show one
# picture, and the largest group of tiny pictures that are all alike, scikit-learn's digits, grows from 41 to 106.
HASH_RADIUS = 6
THUMBNAIL_SIDE = 16  # cells a side whose edges are compared: finer ones miss a crop by a pixel, coarser ones are alike
# The least correlation of the edges of one picture. Among 1,965 pairs of different files of Tiny ImageNet's training
# images, those with the nearest hashes, that of different pictures is 0.77 at most. Copies at JPEG quality 60 have 0.95
# and more; of those cropped by a pixel all round, or made half as large and saved at quality 75, 99 of 100 have 0.9.
LEAST_CORRELATION = 0.9
FLAT = 2.0  # grey levels of standard deviation below which a picture is flat: half the least in Tiny ImageNet
GREY = 8.0  # levels between the channels below which a picture has no colour; JPEG itself makes a few
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow makes grey of RGB
HASHED = 4096  # pictures hashed at a time: 16 MB of grey
SEARCHED = 1024  # queries of a search at a time: at most 1024 N pairs come back
INDEXED = 16384  # queries that share an index; the next one leaves these out, since each pair is wanted once

Pairs = tuple[np.ndarray, np.ndarray]  # two (n,) int64 of row numbers


@dataclass(frozen=True)
class Looks:
    """What pictures are compared by.

    Attributes:
        hashes: (N, 8) uint8, see `dct_hashes`.
        thumbnails: (N, 16, 16, 3) uint16, sums of four pixels.
        flat: (N,) bool, pictures without contrast.
    """

    hashes: np.ndarray
    thumbnails: np.ndarray
    flat: np.ndarray


def dct_hashes(pixels: np.ndarray) -> np.ndarray:
    """A hash of each picture's lowest frequencies: which of them are above their median.

    Args:
        pixels: (N, 32, 32, 3) uint8.

    Returns:
        (N, 8) uint8, 63 bits and a 0: the 8 x 8 lowest frequencies of the grey picture by rows, without the constant.
    """
    basis = _dct_basis()
    hashes = np.empty((len(pixels), FREQUENCIES**2 // 8), np.uint8)
    for start in range(0, len(pixels), HASHED):
        grey = pixels[start : start + HASHED].astype(np.float32) @ LUMA
        values = (basis @ grey @ basis.T).reshape(len(grey), -1)[:, 1:]
        hashes[start : start + HASHED] = np.packbits(values > np.median(values, axis=1, keepdims=True), axis=1)
    return hashes


def close_hashes(hashes: np.ndarray, radius: int) -> Iterator[Pairs]:
    """The pairs of rows whose hashes differ by at most `radius` bits, a part at a time, each pair once.

    Args:
        hashes: (N, 8) uint8.
        radius: bits.

    Yields:
        Rows and others, (n,) int64 each, others > rows; one for each `SEARCHED` rows.
    """
    import faiss

    # The search is for what is nearer than, not as near as.
    yield from _close(hashes, radius + 1, lambda: faiss.IndexBinaryFlat(8 * hashes.shape[1]))


def close_vectors(vectors: np.ndarray, radius: float) -> Iterator[Pairs]:
    """As `close_hashes`, for (N, D) float32 vectors nearer to each other than the Euclidean distance `radius`."""
    import faiss

    yield from _close(vectors, radius**2, lambda: faiss.IndexFlatL2(vectors.shape[1]))


def edge_correlation(thumbnails: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How alike the edges of two pictures are, (n,) float32 in -1..1: 1 at any brightness and contrast.

    Edges are the differences between neighbouring cells in all three channels; of two pictures one of which has no
    colour, in grey.
    """
    left, right = (thumbnails[which].astype(np.float32) / 4 for which in (rows, others))
    grey = np.minimum(*(np.ptp(which, axis=3).max(axis=(1, 2)) for which in (left, right))) < GREY
    for which in (left, right):
        which[grey] = (which[grey] @ LUMA)[..., None]
    left, right = _edges(left), _edges(right)
    length = np.sqrt(np.einsum("nd,nd->n", left, left) * np.einsum("nd,nd->n", right, right))
    return np.einsum("nd,nd->n", left, right) / np.maximum(length, np.finfo(np.float32).tiny)


def _edges(images: np.ndarray) -> np.ndarray:
    """(N, 16, 16, 3) -> (N, 1440)."""
    parts = (np.diff(images, axis=1), np.diff(images, axis=2))
    return np.concatenate([part.reshape(len(images), -1) for part in parts], axis=1)


def _dct_basis() -> np.ndarray:
    """The lowest frequencies of the orthonormal DCT-II: (8, 32) float32."""
    place, frequency = np.arange(HASHED_SIDE), np.arange(FREQUENCIES)[:, None]
    basis = np.cos(np.pi * (2 * place + 1) * frequency / (2 * HASHED_SIDE)) * np.sqrt(2 / HASHED_SIDE)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """(N, 32, 32, 3) uint8 -> (N, 16, 16, 3) uint16, the sums of 2 x 2 pixels."""
    wide = pixels.astype(np.uint16)
    lines = wide[:, 0::2] + wide[:, 1::2]
    return lines[:, :, 0::2] + lines[:, :, 1::2]


def _close(values: np.ndarray, radius: float, make: Callable[[], Any]) -> Iterator[Pairs]:
    for first in range(0, len(values), INDEXED):
        index = make()
        index.add(np.ascontiguousarray(values[first:]))
        for start in range(first, min(first + INDEXED, len(values)), SEARCHED):
            queries = np.ascontiguousarray(values[start : min(start + SEARCHED, first + INDEXED)])
            limits, _, found = index.range_search(queries, radius)
            rows = start + np.repeat(np.arange(len(queries)), np.diff(limits.astype(np.int64)))
            others = first + found
            later = others > rows
            yield rows[later], others[later]
