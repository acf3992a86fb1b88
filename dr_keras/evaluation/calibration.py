"""Calibration of distances: the limit within which a given share of the neighbors is of the query's class."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dr_keras.errors import InputError

MIN_NEIGHBORS = 30  # a precision over fewer neighbors is not reliable


@dataclass(frozen=True)
class Calibration:
    """A distance limit and its figures, over the `k` nearest images of each query.

    Attributes:
        wanted: The requested precision.
        max_distance: The largest distance that reaches it.
        precision: The share of the neighbors within the limit that are of the query's class.
        recall: The number of neighbors within the limit that are of the query's class, as a share of those that could
            be among `k`: all images of the class, or `k` of them.
        coverage: The share of queries with at least one neighbor within the limit.
        queries: The number of queries.
        k: The number of neighbors per query.
    """

    wanted: float
    max_distance: float
    precision: float
    recall: float
    coverage: float
    queries: int
    k: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values, for JSON."""
        return asdict(self)


def calibrate(distances: np.ndarray, same: np.ndarray, positives: np.ndarray, wanted: float) -> Calibration:
    """Finds the largest distance within which the neighbors reach a precision.

    Args:
        distances: (Q, K) Euclidean distances of each query's neighbors, without the query itself.
        same: (Q, K) whether the neighbor is of the query's class.
        positives: (Q,) the number of gallery images of the query's class, without the query itself.
        wanted: The precision, above 0 and at most 1.

    Raises:
        InputError: `wanted` is out of range, or no distance with at least `MIN_NEIGHBORS` neighbors reaches it.
    """
    if not 0 < wanted <= 1:
        raise InputError(f"the precision is {wanted}; it must be above 0 and at most 1")
    order = np.argsort(distances, axis=None, kind="stable")
    near = distances.reshape(-1)[order]
    precision = np.cumsum(same.reshape(-1)[order]) / np.arange(1, len(order) + 1)
    # A limit includes all neighbors at the same distance.
    last = np.append(near[1:] != near[:-1], True) if len(near) else np.empty(0, bool)
    reached = np.flatnonzero(last & (precision >= wanted) & (np.arange(1, len(order) + 1) >= MIN_NEIGHBORS))
    if not len(reached):
        usable = precision[last & (np.arange(1, len(order) + 1) >= MIN_NEIGHBORS)]
        best = f"the best is {usable.max():.4f}" if len(usable) else f"there are fewer than {MIN_NEIGHBORS} neighbors"
        raise InputError(f"no distance reaches a precision of {wanted}: {best}")
    limit = float(near[reached[-1]])
    return Calibration(wanted, limit, *at(distances, same, positives, limit), len(distances), distances.shape[1])


def at(distances: np.ndarray, same: np.ndarray, positives: np.ndarray, limit: float) -> tuple[float, float, float]:
    """Returns the precision, the recall and the coverage of a distance limit.

    Args:
        distances, same, positives: As for `calibrate`.
        limit: The distance.

    Returns:
        The three figures, as `Calibration` describes them.
    """
    within = distances <= limit
    shown, right = int(within.sum()), int((within & same).sum())
    possible = int(np.minimum(positives, distances.shape[1]).sum())
    return right / max(shown, 1), right / max(possible, 1), float(within.any(axis=1).mean())
