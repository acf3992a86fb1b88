"""Finds images with identical pixels in several splits: cheap enough for every training run."""

import hashlib
import zlib
from collections import defaultdict

import numpy as np


def leaks_between(pixels: np.ndarray, splits: np.ndarray) -> list[list[int]]:
    """Finds the groups of images with identical pixels that are in more than one split.

    Args:
        pixels: (N, H, W, 3) uint8; may be memory-mapped.
        splits: (N,) the number of each image's split; `TRAIN` and `MONITOR` count as different splits.

    Returns:
        The sorted row numbers of each group; groups are sorted by their first row.
    """
    middle = np.ascontiguousarray(
        pixels[:, pixels.shape[1] // 2]
    )  # the line that a frame or the sky is least likely to fill
    sums = np.fromiter((zlib.crc32(line) for line in middle), np.uint32, len(middle))
    order = np.argsort(sums, kind="stable")
    groups = []
    for rows in np.split(order, np.flatnonzero(np.diff(sums[order])) + 1):
        if len(rows) < 2 or (splits[rows] == splits[rows[0]]).all():
            continue
        same: dict[bytes, list[int]] = defaultdict(list)
        for row in rows.tolist():
            same[hashlib.sha256(pixels[row].tobytes()).digest()].append(row)
        groups += [found for found in same.values() if len({int(split) for split in splits[found]}) > 1]
    return sorted(groups)
