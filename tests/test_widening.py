import keras
import numpy as np
import pytest

from dr_keras.config import NetworkConfig
from dr_keras.model.network import initial_network
from dr_keras.model.widening import widened_weights

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def network(width, **settings):
    """A network whose normalization has seen something, so that each of its weights matters."""
    built = initial_network(NetworkConfig(image_size=32, backbone="resnet10", width=width, seed=width, **settings))
    random = np.random.default_rng(width)
    for weight in built.weights:
        change = random.normal(scale=0.2, size=weight.shape)
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(weight * np.exp(change))
        elif weight.path.endswith(("beta", "moving_mean")):
            weight.assign(weight + change)
    return built


@pytest.mark.parametrize("width", [8, 9, 12, 16, 20])
def test_features_stay_and_embeddings_nearly(width):
    narrow, wide = network(8), network(width)
    assert width == 8 or np.abs(narrow(IMAGES) - wide(IMAGES)).max() > 0.01
    wide.set_weights(widened_weights(narrow, wide, seed=0))
    features = [keras.Model(one.input, one.get_layer("pool").output)(IMAGES).numpy() for one in (narrow, wide)]
    assert np.allclose(features[1][:, :64], features[0], rtol=1e-3, atol=1e-4 * features[0].max())
    cosines = np.sum(np.asarray(narrow(IMAGES)) * np.asarray(wide(IMAGES)), axis=1)
    assert cosines.min() > (0.9999 if width in (8, 16) else 0.99)


def test_copies_are_read_with_different_weights():
    narrow, wide = network(8), network(16)
    weights = widened_weights(narrow, wide, seed=0)
    kernel = next(
        value
        for value, weight in zip(weights, wide.weights, strict=True)
        if weight.path == "stage1_block1_a_conv/kernel"
    )
    original = narrow.get_layer("stage1_block1_a_conv").get_weights()[0]
    share = kernel[:, :, :8, :8] / original  # the first copies of inputs and outputs
    assert np.ptp(share, axis=(0, 1, 3)).max() < 1e-3  # one share for each input
    assert 0.2 < share.min() < 0.4 < 0.6 < share.max() < 0.8


def test_the_same_seed_gives_the_same_weights():
    narrow, wide = network(8), network(12)
    same = [widened_weights(narrow, wide, seed) for seed in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(same[0], same[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(same[0], same[2], strict=True))


def test_narrower_or_other_networks():
    with pytest.raises(ValueError, match="fewer"):
        widened_weights(network(8), network(4), seed=0)
    with pytest.raises(ValueError, match="different layers"):
        widened_weights(network(8), network(8, multiscale=False), seed=0)
