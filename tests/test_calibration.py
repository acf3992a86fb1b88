"""A distance limit against a plain loop over all limits."""

import numpy as np
import pytest

from dr_keras.errors import InputError
from dr_keras.evaluation.calibration import at, calibrate


def example(seed, ties=False):
    random = np.random.default_rng(seed)
    distances = np.sort(random.random((40, 10)), axis=1)
    if ties:
        distances = distances.round(1)
    same = random.random((40, 10)) > distances
    return distances, same, random.integers(1, 30, 40)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("wanted", [0.6, 0.75, 0.85])
def test_the_limit_is_the_greatest_that_reaches_the_precision(seed, ties, wanted):
    distances, same, positives = example(seed, ties)
    limits = []
    for limit in np.unique(distances):
        within = distances <= limit
        if within.sum() >= 30 and same[within].mean() >= wanted:
            limits.append(limit)
    if not limits:
        with pytest.raises(InputError, match="no distance reaches a precision of"):
            calibrate(distances, same, positives, wanted)
        return
    found = calibrate(distances, same, positives, wanted)
    within = distances <= limits[-1]
    assert found.max_distance == limits[-1]
    assert found.precision == pytest.approx(same[within].mean())
    assert found.recall == pytest.approx((same & within).sum() / sum(min(n, 10) for n in positives.tolist()))
    assert found.coverage == np.mean([row.any() for row in within])
    assert (found.queries, found.k, found.wanted) == (40, 10, wanted)
    assert (found.precision, found.recall, found.coverage) == at(distances, same, positives, found.max_distance)


@pytest.mark.parametrize("wanted", [0, -1, 1.1, float("nan")])
def test_a_precision_out_of_range(wanted):
    with pytest.raises(InputError, match="must be above 0 and at most 1"):
        calibrate(*example(0), wanted)


def test_too_few_neighbors_are_an_error():
    with pytest.raises(InputError, match="fewer than 30 neighbors"):
        calibrate(np.zeros((2, 10)), np.ones((2, 10), bool), np.full(2, 10), 0.9)
    with pytest.raises(InputError, match="no distance reaches"):
        calibrate(np.empty((0, 10)), np.empty((0, 10), bool), np.empty(0, int), 0.9)


def test_a_limit_that_keeps_no_neighbor():
    assert at(np.ones((3, 2)), np.ones((3, 2), bool), np.ones(3, int), 0.5) == (0, 0, 0)
