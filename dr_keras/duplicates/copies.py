"""Tells whether a few images are copies of each other, as `duplicates` does, to fold them into one result."""

import os
from collections.abc import Sequence

import numpy as np

from dr_keras.data.images import decode
from dr_keras.duplicates.fingerprints import (
    HASHED_SIDE,
    MAX_HASH_BITS,
    MIN_CORRELATION,
    Fingerprints,
    edge_correlation,
)
from dr_keras.errors import ImageError
from dr_keras.lru import LRUCache

# Only images whose embeddings are this near (Euclidean, of unit vectors) are compared by what they look like. With the
# released network, 99% of 1,000 training images of Tiny ImageNet are within 0.72 of their copy at JPEG quality 60, and
# within 0.38 of one brightened by a tenth; half of them have another image within 0.84.
MAX_COPY_DISTANCE = 0.75
REMEMBERED = 20_000  # fingerprints, of 1.6 kB each


class CopyFinder:
    """Finds the copies among a few images; remembers their fingerprints. Threads may share it."""

    def __init__(self) -> None:
        self._known: LRUCache[tuple[str, int, int], Fingerprints] = LRUCache(REMEMBERED)

    def groups(self, files: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """Groups images that are copies of each other: re-encoded, resized, brightened a little, cropped by a pixel.

        Args:
            files: The paths of N images.
            vectors: (N, D) their embeddings, of unit length.

        Returns:
            (N,) int64, for each image the number of the first image of its group: its own number if it is no copy, or
            if its file cannot be read.
        """
        near = vectors @ vectors.T >= 1 - MAX_COPY_DISTANCE**2 / 2
        group = np.arange(len(files))
        for number in range(1, len(files)):
            for other in np.flatnonzero(near[number, :number]).tolist():
                if group[other] != group[number] and self._alike(files[number], files[other]):
                    group[group == max(group[number], group[other])] = min(group[number], group[other])
        return group

    def _alike(self, file: str, other: str) -> bool:
        one, two = self._fingerprint(file), self._fingerprint(other)
        if one is None or two is None or one.flat[0] or two.flat[0]:
            return False
        if int(np.bitwise_count(one.hashes ^ two.hashes).sum()) > MAX_HASH_BITS:
            return False
        both = np.concatenate([one.thumbnails, two.thumbnails])
        return bool(edge_correlation(both, np.array([0]), np.array([1]))[0] >= MIN_CORRELATION)

    def _fingerprint(self, file: str) -> Fingerprints | None:
        """The fingerprint of an image; None if it cannot be read."""
        try:
            status = os.stat(file)
            key = (file, status.st_size, status.st_mtime_ns)
            if (known := self._known.get(key)) is None:
                known = Fingerprints.empty(1)
                known.set(0, decode(file, HASHED_SIDE)[None])
                self._known.put(key, known)
        except (OSError, ImageError):
            return None
        return known
