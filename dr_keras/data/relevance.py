"""Relevance: how alike two images of one class are, r_ij of Wang et al. 2014, section 5.1."""

import tempfile
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from dr_keras.errors import InputError

BLOCK = 1024  # rows of a class that are compared with it at a time
SHARPNESS = 2.0
TINY = 1e-6  # squared distance; a mean below it is that of equal images
PAIRED = 8192  # images of a class that are summed over; of larger classes, a seeded sample
IN_MEMORY = 1 << 28  # bytes of features; more of them are kept in a temporary file


class Relevance(Protocol):
    """The relevance of N training images to each other.

    Attributes:
        totals: (N,) float64, r_i, the sum of r_ij over the other images of the class of i (eq. 6).
    """

    totals: np.ndarray

    def row(self, query: int, others: np.ndarray) -> np.ndarray:
        """Returns the relevance of images to a query of the same class.

        Args:
            query: The row of the query.
            others: (n,) rows of its class.

        Returns:
            (n,) float64, not below 0; 0 for the query itself.
        """


class FeatureRelevance:
    """Relevance by features: r_ij = exp(-2 d_ij / m), with d the squared distance, m its mean over the class's pairs.

    So it is 1 for equal features and 0.14 at the mean distance, however alike the images of a class are in general.

    Args:
        features: Blocks of the features in order, (n, D) each, of unit length; N rows in all.
        labels: (N,) the class of each image.
        seed: Seeds the samples of large classes.

    Raises:
        InputError: A feature is not finite.
    """

    def __init__(self, features: Iterable[np.ndarray], labels: np.ndarray, seed: int) -> None:
        self._features = _stored(features, len(labels))
        classes, self._class = np.unique(labels, return_inverse=True)
        self._scale = np.empty(len(classes))
        self.totals = np.empty(len(labels))
        order = np.argsort(self._class, kind="stable")
        for number, rows in enumerate(np.split(order, np.cumsum(np.bincount(self._class))[:-1])):
            random = np.random.default_rng((seed, number))
            seen = rows if len(rows) <= PAIRED else np.sort(random.permutation(rows)[:PAIRED])
            self._scale[number] = SHARPNESS / max(self._mean(seen), TINY)
            self.totals[rows] = self._sums(rows, seen) * ((len(rows) - 1) / max(1, len(seen) - 1))

    def row(self, query: int, others: np.ndarray) -> np.ndarray:
        """Returns the relevance of images to a query of the same class, (n,) float64; see `Relevance.row`."""
        found = self._relevance(np.array([query]), others)[0]
        return np.where(others == query, 0.0, found)

    def _mean(self, rows: np.ndarray) -> float:
        """The mean squared distance of all pairs of different images."""
        total = np.zeros(self._features.shape[1])
        own = 0.0
        for block in _blocks(rows):
            vectors = self._features[block].astype(np.float64)
            total += vectors.sum(axis=0)
            own += np.square(vectors).sum()
        pairs = len(rows) * (len(rows) - 1)
        return float(2 * (len(rows) * own - total @ total) / pairs) if pairs else 0.0

    def _sums(self, rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
        found = [
            np.where(block[:, None] == seen, 0.0, self._relevance(block, seen)).sum(axis=1) for block in _blocks(rows)
        ]
        return np.concatenate(found)

    def _relevance(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n,), (m,) of one class -> (n, m)."""
        scale = self._scale[self._class[rows[0]]]
        one, other = (self._features[these].astype(np.float32) for these in (rows, others))
        squared = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1) - 2 * one @ other.T
        return np.exp(-scale * np.maximum(squared, 0.0)).astype(np.float64)


class PairRelevance:
    """Relevance that is listed for some pairs; it is 0 for all others.

    Args:
        first, second: (P,) rows of the two images of each pair.
        relevance: (P,) its relevance, above 0; that of a pair listed twice is the last one.
        labels: (N,) the class of each image.

    Raises:
        InputError: A pair is of two classes or of one image, a relevance is not a positive number, or there is no pair.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, relevance: np.ndarray, labels: np.ndarray) -> None:
        if not len(first):
            raise InputError("no pair of two training images has a relevance")
        if (labels[first] != labels[second]).any() or (first == second).any():
            raise InputError("relevance is only for pairs of two images of one class")
        if not (np.isfinite(relevance) & (relevance > 0)).all():
            raise InputError("a relevance is not a positive number")
        one, other = np.concatenate([first, second]), np.concatenate([second, first])
        values = np.concatenate([relevance, relevance]).astype(np.float64)
        place = np.tile(np.arange(len(first)), 2)
        order = np.lexsort((place, other, one))
        one, other, values = one[order], other[order], values[order]
        last = np.append((np.diff(one) != 0) | (np.diff(other) != 0), True)
        one, self._other, self._values = one[last], other[last], values[last]
        self._start = np.searchsorted(one, np.arange(len(labels) + 1))
        self.totals = np.bincount(one, self._values, minlength=len(labels))

    def row(self, query: int, others: np.ndarray) -> np.ndarray:
        """Returns the relevance of images to a query of the same class, (n,) float64; see `Relevance.row`."""
        part = slice(self._start[query], self._start[query + 1])
        partners, values = self._other[part], self._values[part]
        if not len(partners):
            return np.zeros(len(others))
        place = np.minimum(np.searchsorted(partners, others), len(partners) - 1)
        return np.where(partners[place] == others, values[place], 0.0)


def _stored(blocks: Iterable[np.ndarray], count: int) -> np.ndarray:
    """The features in half precision, in memory or, if they are large, in a temporary file."""
    stored: np.ndarray | None = None
    start = 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise InputError("the features of an image are not finite, so its relevance is unknown")
        if stored is None:
            shape = (count, block.shape[1])
            if count * block.shape[1] * 2 > IN_MEMORY:
                with tempfile.TemporaryFile() as file:
                    stored = np.memmap(file, np.float16, "w+", shape=shape)
            else:
                stored = np.empty(shape, np.float16)
        stored[start : start + len(block)] = block
        start += len(block)
    assert stored is not None
    assert start == count
    return stored


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
