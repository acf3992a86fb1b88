"""The triplet sampling layer of Wang et al. 2014, section 5.1, against its formulas."""

import heapq
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from dr_keras.data import relevance as relevance_module
from dr_keras.data.color_features import color_features
from dr_keras.data.relevance import FeatureRelevance, PairRelevance
from dr_keras.data.relevance_sampler import RelevanceSampler, largest_keys
from dr_keras.errors import InputError

LABELS = np.repeat([3, 5, 9], [7, 6, 2])
CHANCE = 1e-4  # of a test that fails although the draws are right; the seeds are fixed


def features(labels=LABELS, seed=0, length=5):
    """Random ones, in which the images of a class are somewhat alike."""
    vectors = np.random.default_rng(seed).random((len(labels), length)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def matrix(vectors, labels=LABELS):
    """The relevance of all pairs by its definition, 0 between classes."""
    found = np.zeros((len(labels), len(labels)))
    vectors = vectors.astype(np.float16).astype(np.float64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        squared = np.square(vectors[rows, None] - vectors[rows]).sum(axis=-1)
        found[np.ix_(rows, rows)] = np.exp(-2 * squared / squared[~np.eye(len(rows), dtype=bool)].mean())
    np.fill_diagonal(found, 0)
    return found


def relevance(labels=LABELS, seed=0):
    return FeatureRelevance([features(labels, seed)], labels, seed=0)


def agrees(counts, expected):
    """A chi-square test; what is never expected never happens."""
    assert counts[expected == 0].sum() == 0
    seen = expected > 0
    if seen.sum() == 1:
        return True
    return stats.chisquare(counts[seen], expected[seen] / expected.sum() * counts.sum()).pvalue > CHANCE


def draws(sampler, steps):
    batches = [sampler.batch(step) for step in range(steps)]
    return tuple(np.concatenate([getattr(b, name) for b in batches]) for name in ("query", "positive", "negative"))


def test_relevance_by_features_equals_the_definition(monkeypatch):
    monkeypatch.setattr(relevance_module, "BLOCK", 3)
    monkeypatch.setattr(relevance_module, "IN_MEMORY", 16)  # so that the features lie in a file
    vectors = features()
    found = FeatureRelevance([vectors[:4], vectors[4:]], LABELS, seed=0)
    expected = matrix(vectors)
    np.testing.assert_allclose(found.totals, expected.sum(axis=1), atol=1e-4)
    for query in range(len(LABELS)):
        rows = np.flatnonzero(LABELS[query] == LABELS)
        np.testing.assert_allclose(found.row(query, rows), expected[query, rows], atol=1e-4)


def test_totals_of_a_large_class_are_estimated_from_a_sample(monkeypatch):
    labels = np.repeat([0, 1], [600, 5])
    exact = relevance(labels).totals
    monkeypatch.setattr(relevance_module, "PAIRED", 200)
    estimated = relevance(labels).totals
    np.testing.assert_allclose(estimated[:600].sum(), exact[:600].sum(), rtol=0.05)
    np.testing.assert_allclose(estimated[600:], exact[600:])
    assert np.corrcoef(estimated[:600], exact[:600])[0, 1] > 0.95


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        FeatureRelevance([np.full((15, 2), np.nan, np.float32)], LABELS, seed=0)


def test_relevance_of_pairs():
    found = PairRelevance(np.array([0, 2, 7, 0]), np.array([1, 0, 8, 1]), np.array([0.5, 0.2, 3, 0.75]), LABELS)
    np.testing.assert_allclose(found.row(0, np.arange(7)), [0, 0.75, 0.2, 0, 0, 0, 0])
    np.testing.assert_allclose(found.row(1, np.array([2, 0])), [0, 0.75])
    np.testing.assert_allclose(found.row(5, np.arange(7)), 0)
    np.testing.assert_allclose(found.totals[[0, 1, 2, 7, 8]], [0.95, 0.75, 0.2, 3, 3])
    for first, second, value in ((0, 9, 1), (4, 4, 1), (0, 1, 0), (0, 1, np.nan)):
        with pytest.raises(InputError):
            PairRelevance(np.array([first]), np.array([second]), np.array([value]), LABELS)
    with pytest.raises(InputError, match="no pair"):
        PairRelevance(np.empty(0, int), np.empty(0, int), np.empty(0), LABELS)


def test_queries_positives_and_negatives_have_the_probabilities_of_the_paper():
    bound = 0.3
    expected = matrix(features())
    sampler = RelevanceSampler(LABELS, relevance(), 100, seed=1, positive_bound=bound)
    query, positive, negative = draws(sampler, 400)
    assert agrees(np.bincount(query, minlength=15), expected.sum(axis=1))  # eq. 6
    for row in range(len(LABELS)):
        partners = np.bincount(positive[query == row], minlength=15)
        if partners.sum():
            assert agrees(partners, np.minimum(bound, expected[row]))  # eq. 7
    for label in np.unique(LABELS):
        others = np.bincount(negative[LABELS[query] == label], minlength=15)
        assert agrees(others, (label != LABELS).astype(float))


@pytest.mark.parametrize("bound", [0.2, 1.0])
def test_in_class_triplets_have_the_distribution_of_rejection(bound):
    gap = 0.1
    expected = matrix(features())
    sampler = RelevanceSampler(LABELS, relevance(), 100, seed=2, out_of_class=0.0, positive_bound=bound, gap=gap)
    query, positive, negative = draws(sampler, 500)
    inside = LABELS[negative] == LABELS[query]
    assert agrees(np.bincount(query, minlength=15), expected.sum(axis=1))
    for row in np.unique(query):
        weight = np.minimum(bound, expected[row])
        joint = np.outer(weight, weight) * (expected[row][:, None] - expected[row] >= gap)  # eq. 8
        chosen = query == row
        assert inside[chosen].all() == inside[chosen].any() == bool(joint.any())
        if joint.any():
            pairs = np.bincount(positive[chosen] * 15 + negative[chosen], minlength=225)
            assert agrees(pairs, joint.ravel())


def test_the_share_of_negatives_of_other_classes():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    first, second = np.array(list(combinations(range(20), 2))).T
    pairs = np.concatenate([first, first + 20, first + 40]), np.concatenate([second, second + 20, second + 40])
    found = PairRelevance(*pairs, random.random(len(pairs[0])) + 0.1, labels)
    sampler = RelevanceSampler(labels, found, 50, seed=0, out_of_class=0.2, gap=0.05)
    query, _, negative = draws(sampler, 100)
    share = (labels[query] != labels[negative]).mean()
    assert stats.binomtest(round(share * 5000), 5000, 0.2).pvalue > CHANCE


@pytest.mark.parametrize("count", [1, 2])
def test_the_largest_keys_are_a_weighted_sample_without_replacement(count):
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    random = np.random.default_rng(3)
    rows, classes = np.arange(4), np.zeros(4, int)
    drawn = [tuple(largest_keys(rows, classes, np.log(random.random(4)) / weights, count)) for _ in range(4000)]
    if count == 1:
        assert agrees(np.bincount([row for (row,) in drawn], minlength=4), weights)
        return
    total = weights.sum()
    sets = list(combinations(range(4), 2))
    chance = [
        sum(weights[a] / total * weights[b] / (total - weights[a]) for a, b in (pair, pair[::-1])) for pair in sets
    ]
    assert agrees(np.array([drawn.count(pair) for pair in sets]), np.array(chance))


def test_the_largest_keys_are_what_a_reservoir_holds_in_the_end():
    random = np.random.default_rng(4)
    rows, classes, keys = np.arange(500), random.integers(0, 3, 500), random.random(500)
    reservoirs = {label: [] for label in range(3)}
    for row in random.permutation(rows).tolist():
        reservoir = reservoirs[classes[row]]
        if len(reservoir) < 20:
            heapq.heappush(reservoir, (keys[row], row))
        elif keys[row] > reservoir[0][0]:
            heapq.heapreplace(reservoir, (keys[row], row))
    held = sorted(row for reservoir in reservoirs.values() for _, row in reservoir)
    assert largest_keys(rows, classes, keys, 20).tolist() == held


def test_the_online_form_draws_from_its_buffers_as_the_paper_does():
    labels = np.repeat([0, 1], [40, 6])
    found, expected = relevance(labels), matrix(features(labels), labels)
    sampler = RelevanceSampler(labels, found, 8, seed=5, positive_bound=0.3, buffer=12)
    buffers = sampler._round(0)
    held = buffers.rows[buffers.start[0] : buffers.start[1]]
    assert len(held) == 12
    # Many draws from one round, which is otherwise as short as its buffers.
    sampler._steps_per_round = 10**9
    query, positive, _ = draws(sampler, 3000)
    large = labels[query] == 0
    share = expected[:40].sum() / expected.sum()
    assert stats.binomtest(int(large.sum()), len(query), share).pvalue > CHANCE
    assert agrees(np.bincount(query[large], minlength=46), np.isin(np.arange(46), held).astype(float))
    assert agrees(np.bincount(query[~large], minlength=46)[40:], expected.sum(axis=1)[40:])
    for row in held:
        accepted = np.where(np.isin(np.arange(46), held), np.minimum(0.3, expected[row]) / expected.sum(axis=1), 0)
        if accepted.any():
            assert agrees(np.bincount(positive[query == row], minlength=46), accepted)


def test_over_many_rounds_the_online_form_draws_queries_by_their_relevance():
    labels = np.repeat([0, 1], [400, 2])
    found = relevance(labels)
    sampler = RelevanceSampler(labels, found, 40, seed=6, buffer=20)
    query, positive, _ = draws(sampler, 3000)
    assert (labels[query] == labels[positive]).all()
    assert (query != positive).all()
    counts = np.bincount(query, minlength=402)[:400]
    thirds = np.array_split(np.argsort(found.totals[:400]), 4)
    shares = [counts[rows].sum() / counts.sum() for rows in thirds]
    expected = [found.totals[rows].sum() / found.totals[:400].sum() for rows in thirds]
    np.testing.assert_allclose(shares, expected, atol=0.02)  # of a small buffer, without replacement


@pytest.mark.parametrize("buffer", [4, 100])
def test_a_step_does_not_depend_on_the_steps_before(buffer):
    def sampler():
        return RelevanceSampler(LABELS, relevance(), 4, seed=7, out_of_class=0.5, buffer=buffer)

    in_order = [sampler_batch for one in [sampler()] for sampler_batch in map(one.batch, range(12))]
    for step in (11, 3, 8):
        alone = sampler().batch(step)
        for name in ("query", "positive", "negative", "classes"):
            assert np.array_equal(getattr(alone, name), getattr(in_order[step], name))


def test_a_query_whose_partner_is_not_in_the_buffer_still_gets_it():
    labels = np.repeat([0, 1], [30, 2])
    found = PairRelevance(np.arange(0, 30, 2), np.arange(1, 30, 2), np.ones(15), labels)
    query, positive, negative = draws(RelevanceSampler(labels, found, 8, seed=8, out_of_class=0.5, buffer=4), 50)
    assert (positive == query ^ 1).all()
    assert (labels[negative] == 1).all()  # no two relevances differ, so no in-class negative keeps the bound


def test_too_little_to_draw_from():
    with pytest.raises(InputError, match="1 class"):
        RelevanceSampler(np.zeros(5), relevance(np.zeros(5, int)), 2, seed=0)
    alone = np.arange(4)
    with pytest.raises(InputError, match="no two training images"):
        RelevanceSampler(alone, FeatureRelevance([features(alone)], alone, 0), 2, seed=0)


def test_color_features():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (3, 64, 64, 3), np.uint8)
    flat = np.stack([np.full((64, 64, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255))])
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[0, :, ::16] = stripes[0, :, 1::16] = 255
    stripes[1] = stripes[0].transpose(1, 0, 2)
    found = color_features(np.concatenate([noise, flat, stripes]))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found.min() >= 0
    similarity = found @ found.T
    assert similarity[0, 1] > 0.95  # noise is like noise
    assert similarity[3, 4] == pytest.approx(0.5, abs=1e-5)  # other colors, the same lack of gradients
    assert 0.5 < similarity[5, 6] < 0.9  # the same colors, other gradients
    mirrored = color_features(noise[:, :, ::-1])
    assert np.einsum("nd,nd->n", mirrored, found[:3]).min() > 0.9
    assert color_features(noise[:, :5, :7]).shape == (3, found.shape[1])
