import keras
import numpy as np
import pytest
from keras import ops

from dr_keras.errors import InputError
from dr_keras.model.distances import mean_distance_to_others, safe_sqrt
from dr_keras.model.network import StatisticsModel
from dr_keras.model.ranking import TripletRanking

RANDOM = np.random.default_rng(0)


def embeddings(batch=7, length=5, scale=1.0):
    return (RANDOM.standard_normal((batch, 3 * length)) * scale).astype(np.float32)


def slow_ranking(values, margin, distance):
    """Eq. 3 of the paper, one triplet at a time."""
    losses, nears, fars = [], [], []
    for row in values.astype(np.float64):
        q, p, n = np.split(row, 3)
        near, far = ((q - p) ** 2).sum(), ((q - n) ** 2).sum()
        if distance == "euclidean":
            near, far = near**0.5, far**0.5
        losses.append(max(0.0, margin + near - far))
        nears.append(near)
        fars.append(far)
    return np.array(losses), np.array(nears), np.array(fars)


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
@pytest.mark.parametrize("margin", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_equals_the_plain_loop(distance, margin, batch):
    values = embeddings(batch)
    layer = TripletRanking(margin, distance)
    statistics = {name: ops.convert_to_numpy(value) for name, value in layer(values).items()}
    losses, near, far = slow_ranking(values, margin, distance)
    np.testing.assert_allclose(statistics["loss"], losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics["positive_distance"], near, rtol=1e-5)
    np.testing.assert_allclose(statistics["negative_distance"], far, rtol=1e-5)
    np.testing.assert_allclose(float(layer.losses[0]), losses.mean(), rtol=1e-5)


def test_the_hinge_is_on_each_triplet_and_not_on_the_mean():
    easy, hard = [0.0, 0.0, 9.0], [0.0, 3.0, 0.0]  # hinge 0 and 4; the hinge of the mean would be 0
    layer = TripletRanking(1.0, "euclidean")
    layer(np.array([easy, hard, easy], np.float32))
    assert float(layer.losses[0]) == pytest.approx(4 / 3)


def gradient(distance, values):
    import tensorflow as tf

    layer, tensor = TripletRanking(1.0, distance), tf.Variable(values)
    with tf.GradientTape() as tape:
        layer(tensor)
        loss = layer.losses[0]
    return tape.gradient(loss, tensor).numpy()


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_gradient_equals_finite_differences(distance):
    values = embeddings(4, 3)
    analytic, numeric = gradient(distance, values), np.zeros(values.shape)
    for place in np.ndindex(values.shape):
        for sign in (1, -1):
            moved = values.astype(np.float64)
            moved[place] += sign * 1e-5
            numeric[place] += sign * slow_ranking(moved, 1.0, distance)[0].mean() / 2e-5
    np.testing.assert_allclose(analytic, numeric, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_gradient_is_finite_where_embeddings_are_equal(distance):
    values = np.ones((3, 12), np.float32)
    assert np.isfinite(gradient(distance, values)).all()
    values[0, 8:] = 2  # the query equals only the positive
    assert np.isfinite(gradient(distance, values)).all()


def test_pairwise_distance_equals_the_plain_loop_and_shows_collapse():
    values = RANDOM.standard_normal((6, 4)).astype(np.float32)
    expected = [np.mean([np.linalg.norm(a - b) for j, b in enumerate(values) if j != i]) for i, a in enumerate(values)]
    np.testing.assert_allclose(ops.convert_to_numpy(mean_distance_to_others(values)), expected, rtol=1e-4)
    collapsed = np.repeat(values[:1], 6, axis=0)
    assert float(ops.max(mean_distance_to_others(collapsed))) < 2e-3  # square root of a rounding error
    assert float(ops.max(mean_distance_to_others(values[:1]))) == 0


def test_safe_sqrt():
    np.testing.assert_allclose(ops.convert_to_numpy(safe_sqrt(np.array([0.0, 4.0], np.float32))), [0, 2])


@pytest.mark.parametrize("margin", [0, -1.0, float("nan")])
def test_margin_must_be_above_zero(margin):
    with pytest.raises(InputError, match="above 0"):
        TripletRanking(margin)


def test_wrong_distance_and_wrong_shape_are_errors():
    with pytest.raises(InputError, match="euclidean, squared"):
        TripletRanking(1.0, "cosine")
    with pytest.raises(InputError, match="3D"):
        TripletRanking()(np.ones((2, 7), np.float32))


def test_round_trip():
    layer = TripletRanking(0.3, "squared", name="ranking")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert (copy.margin, copy.distance, copy.name) == (0.3, "squared", "ranking")


def test_metrics_are_those_of_the_batch():
    values = embeddings(9, 4, scale=0.4)
    inputs = keras.Input((12,))
    statistics = TripletRanking(1.0, "euclidean")(inputs)
    model = StatisticsModel(inputs, {"triplet_loss": statistics.pop("loss")} | statistics)
    statistics = model(values)
    metrics = {name: float(value) for name, value in model.compute_metrics(None, None, statistics).items()}
    losses, near, far = slow_ranking(values, 1.0, "euclidean")
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics["triplet_accuracy"] == pytest.approx((near < far).mean())
    assert metrics["zero_loss"] == pytest.approx((losses == 0).mean())
    assert metrics["positive_distance"] == pytest.approx(near.mean(), rel=1e-5)
    assert set(metrics) == {
        *("loss", "triplet_loss", "triplet_accuracy", "zero_loss"),
        *("positive_distance", "negative_distance", "pairwise_distance"),
    }
