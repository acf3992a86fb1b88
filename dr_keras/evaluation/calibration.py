"""How near is near: a distance within which neighbours are of the query's class as often as a person wants."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dr_keras.errors import InputError

LEAST = 30  # neighbours that a precision is counted on; fewer say nothing


@dataclass(frozen=True)
class Calibration:
    """What a distance is worth as a limit, counted on the `k` nearest images of each query.

    Attributes:
        wanted: the precision that was asked for.
        max_distance: the greatest distance whose precision reaches it.
        precision: share of the neighbours within it that are of the query's class.
        recall: those of the query's class within it, as a share of those that could be among `k`: all images of the
            class, or `k` of them.
        coverage: share of the queries with any neighbour within it.
        queries, k: how many were looked at.
    """

    wanted: float
    max_distance: float
    precision: float
    recall: float
    coverage: float
    queries: int
    k: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def calibrate(distances: np.ndarray, same: np.ndarray, positives: np.ndarray, wanted: float) -> Calibration:
    """Finds the greatest distance at which neighbours are right often enough.

    Args:
        distances: (Q, K) Euclidean distances of each query's neighbours, the query itself not among them.
        same: (Q, K) whether the neighbour is of the query's class.
        positives: (Q,) how many images of its class the gallery holds, the query not counted.
        wanted: the precision, above 0 and at most 1.

    Raises:
        InputError: `wanted` is out of its range, or no distance with `LEAST` neighbours within it reaches it.
    """
    if not 0 < wanted <= 1:
        raise InputError(f"a precision of {wanted} was asked for; it lies above 0 and is at most 1")
    order = np.argsort(distances, axis=None, kind="stable")
    near = distances.reshape(-1)[order]
    precision = np.cumsum(same.reshape(-1)[order]) / np.arange(1, len(order) + 1)
    # A limit takes in all neighbours that are equally far.
    last = np.append(near[1:] != near[:-1], True) if len(near) else np.empty(0, bool)
    reached = np.flatnonzero(last & (precision >= wanted) & (np.arange(1, len(order) + 1) >= LEAST))
    if not len(reached):
        usable = precision[last & (np.arange(1, len(order) + 1) >= LEAST)]
        best = f"the best that any reaches is {usable.max():.4f}" if len(usable) else f"fewer than {LEAST} neighbours"
        raise InputError(f"no distance reaches a precision of {wanted}: {best}")
    limit = float(near[reached[-1]])
    return Calibration(wanted, limit, *at(distances, same, positives, limit), len(distances), distances.shape[1])


def at(distances: np.ndarray, same: np.ndarray, positives: np.ndarray, limit: float) -> tuple[float, float, float]:
    """Precision, recall and coverage of a limit, as `Calibration` describes them; arguments as in `calibrate`."""
    within = distances <= limit
    shown, right = int(within.sum()), int((within & same).sum())
    possible = int(np.minimum(positives, distances.shape[1]).sum())
    return right / max(shown, 1), right / max(possible, 1), float(within.any(axis=1).mean())
