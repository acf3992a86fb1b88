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
from dr_keras.duplicates.grouping import CONFIRMED_PAIRS, join_groups
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

    def groups(self, files: Sequence[tuple[str, bytes | None]], vectors: np.ndarray) -> np.ndarray:
        """Groups images that are copies of each other: re-encoded, resized, brightened a little, cropped by a pixel.

        Args:
            files: The paths of N images, and the SHA-256 of each if it is known.
            vectors: (N, D) their embeddings, of unit length.

        Returns:
            (N,) int64, for each image the number of the first image of its group: its own number if it is no copy, or
            if its file cannot be read.
        """
        vectors = np.asarray(vectors, np.float32)
        one, other = np.nonzero(np.triu(vectors @ vectors.T >= 1 - MAX_COPY_DISTANCE**2 / 2, 1))
        group = np.arange(len(files))
        hashes = [hash for _, hash in files]
        equal = np.fromiter(
            (hashes[a] is not None and hashes[a] == hashes[b] for a, b in zip(one, other, strict=True)), bool, len(one)
        )
        join_groups(group, one[equal], other[equal])
        apart = group[one] != group[other]
        one, other = one[apart], other[apart]
        known = {number: self._fingerprint(files[number][0]) for number in np.union1d(one, other).tolist()}
        clear = np.zeros(len(files), bool)
        for number, made in known.items():
            clear[number] = made is not None and not made.flat[0]
        usable = clear[one] & clear[other]
        one, other = one[usable], other[usable]
        if not len(one):
            return group
        prints = Fingerprints.empty(len(files))
        for number, found in known.items():
            if found is not None:
                prints.hashes[number], prints.thumbnails[number] = found.hashes[0], found.thumbnails[0]
        bits = np.bitwise_count(prints.hashes[one] ^ prints.hashes[other]).sum(axis=1)
        one, other = one[bits <= MAX_HASH_BITS], other[bits <= MAX_HASH_BITS]
        for start in range(0, len(one), CONFIRMED_PAIRS):
            left, right = one[start : start + CONFIRMED_PAIRS], other[start : start + CONFIRMED_PAIRS]
            same = edge_correlation(prints.thumbnails, left, right) >= MIN_CORRELATION
            join_groups(group, left[same], right[same])
        return group

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
