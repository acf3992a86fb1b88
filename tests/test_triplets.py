import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_keras.data.samplers import ImageSampler, TripletSampler
from dr_keras.errors import InputError


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=3, max_size=60).filter(
        lambda labels: len(set(labels)) > 1 and len(set(labels)) < len(labels)
    ),
    st.integers(1, 17),
    st.integers(0, 1000),
)
def test_every_triplet_is_one(labels, batch_size, step):
    labels = np.array(labels)
    batch = TripletSampler(labels, batch_size, seed=3).batch(step)
    assert (batch.query != batch.positive).all()
    assert (labels[batch.query] == labels[batch.positive]).all()
    assert (labels[batch.query] != labels[batch.negative]).all()
    assert np.array_equal(batch.classes, np.stack([labels[batch.query], labels[batch.negative]], axis=1))
    assert batch.query.shape == batch.positive.shape == batch.negative.shape
    assert 1 <= len(batch.query) <= batch_size


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_each_image_is_the_query_once_an_epoch_in_a_fresh_order(batch_size):
    labels = np.repeat(np.arange(10), 13)
    sampler = TripletSampler(labels, batch_size, seed=0)
    assert sampler.steps_per_epoch == -(-len(labels) // batch_size)
    orders = []
    for epoch in range(3):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        orders.append(np.concatenate([sampler.batch(step).query for step in steps]))
        assert np.array_equal(np.sort(orders[-1]), np.arange(len(labels)))
    assert not np.array_equal(orders[0], orders[1])


def test_a_step_is_a_pure_function_of_seed_and_step():
    labels = np.arange(100) % 7
    one, two = TripletSampler(labels, 16, seed=5), TripletSampler(labels, 16, seed=5)
    expected = [one.batch(step) for step in range(20)]
    for step in (13, 2, 19, 2):
        for name in ("query", "positive", "negative"):
            assert np.array_equal(getattr(two.batch(step), name), getattr(expected[step], name))
    other = TripletSampler(labels, 16, seed=6).batch(0)
    assert not np.array_equal(other.query, expected[0].query)


def test_partners_are_uniform():
    labels = np.array([0] * 4 + [1] * 2 + [2] * 3)
    sampler = TripletSampler(labels, 9, seed=1)
    positives, negatives = np.zeros((9, 9)), np.zeros((9, 9))
    for step in range(5000):
        batch = sampler.batch(step)
        np.add.at(positives, (batch.query, batch.positive), 1)
        np.add.at(negatives, (batch.query, batch.negative), 1)
    for query in range(9):
        same = labels == labels[query]
        for counts, allowed in ((positives[query], same & (np.arange(9) != query)), (negatives[query], ~same)):
            assert counts[~allowed].sum() == 0
            expected = counts.sum() / allowed.sum()
            chi_square = ((counts[allowed] - expected) ** 2 / expected).sum()
            assert chi_square < 30  # 99.99% bound for up to 6 degrees of freedom


def test_a_class_of_one_is_negative_only():
    labels = np.array([0, 0, 0, 1])
    sampler = TripletSampler(labels, 50, seed=0)
    batch = sampler.batch(0)
    assert 3 not in batch.query
    assert 3 not in batch.positive
    assert (batch.negative == 3).all()
    assert sampler.steps_per_epoch == 1


@pytest.mark.parametrize(
    ("labels", "message"), [([1, 1, 1], "1 class;"), ([], "0 class"), ([0, 1, 2], "no class has two")]
)
def test_impossible_data_is_an_error(labels, message):
    with pytest.raises(InputError, match=message):
        TripletSampler(np.array(labels, int), 4, seed=0)


def test_labels_may_be_any_integers():
    labels = np.array([7, 2**31 - 1, 7, 2**31 - 1], np.int64)
    assert set(TripletSampler(labels, 4, seed=0).batch(0).classes.ravel().tolist()) == {7, 2**31 - 1}


@pytest.mark.parametrize("each", [2, 4, 7])
def test_queries_of_a_class_stand_in_groups_and_an_epoch_stays_exact(each):
    labels = np.repeat(np.arange(5), [12, 8, 3, 20, 9])
    sampler = TripletSampler(labels, each, seed=3, images_per_class=each)
    for epoch in range(2):
        batches = [sampler.batch(epoch * sampler.steps_per_epoch + step) for step in range(sampler.steps_per_epoch)]
        queries = np.concatenate([batch.query for batch in batches])
        assert sorted(queries) == list(range(52))
        runs = np.split(labels[queries], np.flatnonzero(np.diff(labels[queries])) + 1)
        assert sum(len(run) % each != 0 for run in runs) <= 5  # one smaller group per class
    orders = [[int(row) for step in range(3) for row in sampler.batch(start + step).query] for start in (0, 11, 0)]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_image_sampler_draws_each_image_once_an_epoch():
    sampler = ImageSampler(23, 5, seed=1)
    assert sampler.steps_per_epoch == 5
    for epoch in range(3):
        rows = [sampler.batch(epoch * 5 + step) for step in range(5)]
        assert sorted(np.concatenate(rows)) == list(range(23))
        assert len(rows[-1]) == 3
    assert np.array_equal(sampler.batch(7), ImageSampler(23, 5, seed=1).batch(7))
    assert not np.array_equal(sampler.batch(0), sampler.batch(5))
