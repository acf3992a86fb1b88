"""Fingerprints for finding copies of images: a hash that proposes pairs, and edges that confirm them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

HASHED_SIDE = 32  # side in pixels of the image that is hashed, and
FREQUENCIES = 8  # its lowest frequencies in each direction: both as in Zauner 2010
# The number of bits, of 64, by which the hashes of a pair may differ. For 2,000 training images of Tiny ImageNet, this
# finds all copies re-encoded as JPEG at quality 60 or brightened by a tenth, 97% of those brightened by 0.3 and 94% of
# those cropped by one of 64 pixels on each side; besides exact copies it proposes 20 candidates among 5 billion pairs.
# Going to 8 bits adds no pair that shows the same image, and the largest group in scikit-learn's digits, tiny images
# that all look alike, grows from 41 to 106.
MAX_HASH_BITS = 6
THUMBNAIL_SIDE = 16  # cells per side whose edges are compared: finer ones miss one-pixel crops, coarser ones look alike
# Between the edges of two copies. Among the 1,965 pairs of different files in Tiny ImageNet's training images with the
# nearest hashes, different images reach 0.77 at most. Copies at JPEG quality 60 reach at least 0.95; of those cropped
# by a pixel on each side, or scaled down by half and saved at quality 75, 99% reach 0.9.
MIN_CORRELATION = 0.9
FLAT_LEVELS = 2.0  # an image whose gray levels have a smaller standard deviation is flat: half Tiny ImageNet's minimum
GRAY_LEVELS = 8.0  # an image whose channels differ by less is gray; JPEG itself causes small differences
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow converts RGB to gray
HASHED_IMAGES = 4096  # hashed at a time: 16 MB of gray
SEARCHED_QUERIES = 1024  # queries per search, which returns at most 1024 N pairs
INDEXED_QUERIES = 16384  # queries that share an index; the next index excludes them, so each pair is found once

Pairs = tuple[np.ndarray, np.ndarray]  # two (n,) int64 of row numbers


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of N images, by which they are compared.

    Attributes:
        hashes: (N, 8) uint8, see `dct_hashes`.
        thumbnails: (N, 16, 16, 3) uint16, see `thumbnails`.
        flat: (N,) bool, images without contrast.
    """

    hashes: np.ndarray
    thumbnails: np.ndarray
    flat: np.ndarray

    @classmethod
    def empty(cls, count: int) -> Self:
        """Unspecified fingerprints of `count` images, to be filled in by `set`."""
        return cls(
            np.empty((count, FREQUENCIES**2 // 8), np.uint8),
            np.empty((count, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint16),
            np.empty(count, bool),
        )

    def set(self, first: int, pixels: np.ndarray) -> None:
        """Fills in the fingerprints of images (n, 32, 32, 3) uint8, starting at row `first`."""
        for start in range(0, len(pixels), HASHED_IMAGES):
            images = pixels[start : start + HASHED_IMAGES]
            rows = slice(first + start, first + start + len(images))
            self.hashes[rows] = dct_hashes(images)
            self.thumbnails[rows] = thumbnails(images)
            self.flat[rows] = (images.astype(np.float32) @ LUMA).std(axis=(1, 2)) < FLAT_LEVELS


def dct_hashes(pixels: np.ndarray) -> np.ndarray:
    """Hashes each image's lowest frequencies: a bit is set if the frequency is above their median.

    Args:
        pixels: (N, 32, 32, 3) uint8.

    Returns:
        (N, 8) uint8, 63 bits and a 0: the 8 x 8 lowest frequencies of the gray image by rows, without the constant.
    """
    basis = _dct_basis()
    hashes = np.empty((len(pixels), FREQUENCIES**2 // 8), np.uint8)
    for start in range(0, len(pixels), HASHED_IMAGES):
        gray = pixels[start : start + HASHED_IMAGES].astype(np.float32) @ LUMA
        values = (basis @ gray @ basis.T).reshape(len(gray), -1)[:, 1:]
        hashes[start : start + HASHED_IMAGES] = np.packbits(values > np.median(values, axis=1, keepdims=True), axis=1)
    return hashes


def close_hashes(hashes: np.ndarray, radius: int) -> Iterator[Pairs]:
    """Finds the pairs of rows whose hashes differ by at most `radius` bits, each pair once.

    Args:
        hashes: (N, 8) uint8.
        radius: In bits.

    Yields:
        For each `SEARCHED_QUERIES` rows, the pairs as two arrays of rows and others, (n,) int64 each; others > rows.
    """
    import faiss

    # FAISS finds what is nearer than the radius, excluding the radius itself.
    yield from _close(hashes, radius + 1, lambda: faiss.IndexBinaryFlat(8 * hashes.shape[1]))


def close_vectors(vectors: np.ndarray, radius: float) -> Iterator[Pairs]:
    """As `close_hashes`, for vectors (N, D) float32 whose Euclidean distance is below `radius`."""
    import faiss

    yield from _close(vectors, radius**2, lambda: faiss.IndexFlatL2(vectors.shape[1]))


def edge_correlation(thumbnails: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes the correlation of the edges of pairs of images, which does not depend on brightness or contrast.

    Edges are the differences between neighboring cells in all three channels, or in gray if one image has no color.

    Args:
        thumbnails: (N, 16, 16, 3) uint16.
        rows, others: (n,) int64, the pairs.

    Returns:
        (n,) float32 from -1 to 1.
    """
    left, right = (thumbnails[which].astype(np.float32) / 4 for which in (rows, others))
    gray = np.minimum(*(np.ptp(which, axis=3).max(axis=(1, 2)) for which in (left, right))) < GRAY_LEVELS
    for which in (left, right):
        which[gray] = (which[gray] @ LUMA)[..., None]
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
    """Sums of 2 x 2 pixels: (N, 32, 32, 3) uint8 -> (N, 16, 16, 3) uint16."""
    wide = pixels.astype(np.uint16)
    lines = wide[:, 0::2] + wide[:, 1::2]
    return lines[:, :, 0::2] + lines[:, :, 1::2]


def _close(values: np.ndarray, radius: float, make: Callable[[], Any]) -> Iterator[Pairs]:
    for first in range(0, len(values), INDEXED_QUERIES):
        index = make()
        index.add(np.ascontiguousarray(values[first:]))
        for start in range(first, min(first + INDEXED_QUERIES, len(values)), SEARCHED_QUERIES):
            queries = np.ascontiguousarray(values[start : min(start + SEARCHED_QUERIES, first + INDEXED_QUERIES)])
            limits, _, found = index.range_search(queries, radius)
            rows = start + np.repeat(np.arange(len(queries)), np.diff(limits.astype(np.int64)))
            others = first + found
            later = others > rows
            yield rows[later], others[later]
