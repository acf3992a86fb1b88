"""Mining and class proxies in the ranking layer against plain loops."""

import keras
import numpy as np
import pytest
from keras import ops

from dr_keras.config import MININGS
from dr_keras.errors import InputError
from dr_keras.model.mining import FARTHEST_DRAWN, NEAREST_DRAWN
from dr_keras.model.ranking import TripletRanking

D = 6


def unit(random, *shape):
    values = random.standard_normal(shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def batch(seed, count=9, classes=4):
    """Embeddings (B, 3D) and classes (B, 2); the negative is of another class."""
    random = np.random.default_rng(seed)
    own = random.integers(0, classes, count)
    other = (own + random.integers(1, classes, count)) % classes
    return unit(random, count, 3, D).reshape(count, 3 * D), np.stack([own, other], axis=1).astype(np.int32)


def everything(embeddings, classes):
    branches = np.split(embeddings.astype(np.float64), 3, axis=1)
    return np.concatenate(branches), np.concatenate([classes[:, 0], classes[:, 0], classes[:, 1]])


def choose(mining, squared, same, near):
    """Which candidate is the negative, written out."""
    others = [place for place in range(len(squared)) if not same[place]]
    if mining == "hard":
        return min(others, key=lambda place: squared[place])
    farther = [place for place in others if squared[place] > near]
    if farther:
        return min(farther, key=lambda place: squared[place])
    return max(others, key=lambda place: squared[place])


def slow(embeddings, classes, mining):
    """Positive and negative distances of each triplet after mining."""
    vectors, labels = everything(embeddings, classes)
    nears, fars = [], []
    for row in range(len(embeddings)):
        query = vectors[row]
        squared = ((vectors - query) ** 2).sum(axis=1)
        same = labels == labels[row]
        near = squared[len(embeddings) + row]
        if mining == "hard":
            near = max(squared[place] for place in range(len(vectors)) if same[place] and place != row)
        nears.append(near)
        fars.append(squared[choose(mining, squared, same, near)])
    return np.array(nears), np.array(fars)


@pytest.mark.parametrize("mining", ["semi-hard", "hard"])
@pytest.mark.parametrize("seed", range(4))
def test_mined_triplets_equal_the_plain_loop(mining, seed):
    embeddings, classes = batch(seed)
    found = TripletRanking(0.3, mining=mining)(embeddings, classes=classes)
    near, far = slow(embeddings, classes, mining)
    np.testing.assert_allclose(found["positive_distance"], near, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["negative_distance"], far, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["loss"], np.maximum(0, 0.3 + near - far), rtol=1e-3, atol=1e-4)


def test_semi_hard_takes_the_farthest_where_none_is_farther_than_the_positive():
    near = np.array([[1, 0, -1, 0, 0.9, 0.1]], np.float32)  # positive opposite the query, the only negative next to it
    found = TripletRanking(mining="semi-hard")(near, classes=np.array([[0, 1]], np.int32))
    np.testing.assert_allclose(found["negative_distance"], [0.02], rtol=1e-4)


def test_distance_weighted_draws_as_its_weights_say():
    import tensorflow as tf

    embeddings, classes = batch(3, count=6)
    vectors, labels = everything(embeddings, classes)
    layer = TripletRanking(mining="distance-weighted", seed=1)
    layer(embeddings, classes=classes)
    draw = tf.function(lambda: layer(embeddings, classes=classes)["negative_distance"])
    draws = np.array([draw().numpy() for _ in range(600)])
    for row in range(6):
        squared = ((vectors - vectors[row]) ** 2).sum(axis=1)
        allowed = (labels != labels[row]) & (squared < FARTHEST_DRAWN**2)
        d = np.clip(np.sqrt(squared), NEAREST_DRAWN, FARTHEST_DRAWN)
        weight = np.where(allowed, 1 / (d ** (D - 2) * (1 - d**2 / 4) ** ((D - 3) / 2)), 0)
        weight /= weight.sum()
        shares = [np.isclose(draws[:, row], value, atol=1e-4).mean() for value in squared]
        assert np.abs(np.array(shares) - weight).max() < 0.09  # four standard errors for 600 draws
        assert not np.isclose(draws[:, row][:, None], squared[labels == labels[row]], atol=1e-6).any()


def test_distance_weighted_draws_are_seeded_and_continue():
    embeddings, classes = batch(0)
    one, other = (TripletRanking(mining="distance-weighted", seed=5) for _ in range(2))
    for _ in range(3):
        first, second = (layer(embeddings, classes=classes)["negative_distance"] for layer in (one, other))
        np.testing.assert_array_equal(first, second)


def test_distance_weighted_with_all_negatives_far_away():
    embeddings = np.array([[1, 0, 1, 0, -1, 0]], np.float32)  # the only negative is at distance 2
    found = TripletRanking(mining="distance-weighted")(embeddings, classes=np.array([[0, 1]], np.int32))
    np.testing.assert_allclose(found["negative_distance"], [4.0], rtol=1e-6)


def slow_proxies(embeddings, classes, proxies, mining, margin):
    vectors, labels = everything(embeddings, classes)
    count, each, _ = proxies.shape
    flat, owners = proxies.reshape(count * each, D).astype(np.float64), np.repeat(np.arange(count), each)
    losses = []
    for vector, label in zip(vectors, labels, strict=True):
        squared = ((flat - vector) ** 2).sum(axis=1)
        same = owners == label
        near = squared[same].min()
        if mining == "none":
            losses.append(np.mean([max(0, margin + near - far) for far in squared[~same]]))
        else:
            losses.append(max(0, margin + near - squared[choose(mining, squared, same, near)]))
    return np.array(losses).reshape(3, -1).mean(axis=0)


@pytest.mark.parametrize("mining", ["none", "semi-hard", "hard"])
@pytest.mark.parametrize("each", [1, 3])
def test_proxies_equal_the_plain_loop(mining, each):
    embeddings, classes = batch(8)
    proxies = unit(np.random.default_rng(2), 4, each, D)
    layer = TripletRanking(0.4, mining=mining)
    found = layer(embeddings, classes=classes, proxies=proxies)
    expected = slow_proxies(embeddings, classes, proxies, mining, 0.4)
    np.testing.assert_allclose(found["proxy_loss"], expected, rtol=1e-3, atol=1e-5)
    total = sum(float(loss) for loss in layer.losses)
    assert total == pytest.approx(expected.mean() + float(ops.mean(found["loss"])), rel=1e-4)


@pytest.mark.parametrize("mining", MININGS)
def test_gradients_reach_embeddings_and_proxies_and_are_finite(mining):
    import tensorflow as tf

    embeddings, classes = batch(1)
    embeddings[0] = np.tile(embeddings[0, :D], 3)  # three equal vectors
    variable, proxies = tf.Variable(embeddings), tf.Variable(unit(np.random.default_rng(2), 4, 2, D))
    layer = TripletRanking(2.0, "euclidean", mining)
    with tf.GradientTape() as tape:
        layer(variable, classes=classes, proxies=proxies)
        loss = sum(layer.losses)
    for gradient in tape.gradient(loss, [variable, proxies]):
        assert np.isfinite(gradient.numpy()).all()
        assert np.abs(gradient.numpy()).max() > 0


def test_mining_needs_classes_and_a_known_name():
    with pytest.raises(InputError, match="classes"):
        TripletRanking(mining="hard")(np.ones((2, 6), np.float32))
    with pytest.raises(InputError, match="semi-hard"):
        TripletRanking(mining="soft")


@pytest.mark.parametrize("mining", MININGS)
def test_round_trip(mining):
    layer = TripletRanking(0.3, "squared", mining, 7)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert (copy.mining, copy.seed, copy.margin) == (mining, 7, 0.3)
