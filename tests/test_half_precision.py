"""Weights in half precision: that a normalization can be folded without rounding, and the network stays the same."""

import keras
import numpy as np
import pytest

from dr_keras.config import NetworkConfig
from dr_keras.embedders import LiteRTEmbedder, embed_with_network
from dr_keras.export.write import TOLERANCE, half_litert
from dr_keras.heads import GENERAL, TRAINED, GeneralHead, fit_general_head
from dr_keras.model.general_head import feature_network, with_general_head
from dr_keras.model.half_precision import round_weights
from dr_keras.model.network import embedding_network, initial_network
from dr_keras.model.normalization import FusedBatchNormalization
from dr_keras.model.released import read_weights, write_weights

CONFIG = NetworkConfig(image_size=32, backbone="resnet10", width=8, embedding_dim=16)


def used_network() -> keras.Model:
    """A network as after training: no statistic and no scale is that of a new one, some are zero or negative."""
    network = initial_network(CONFIG)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, FusedBatchNormalization):
            count = layer.gamma.shape[0]
            gamma = rng.normal(0.3, 0.4, count)
            gamma[:2] = 0, 1e-9  # the second is zero in half precision
            layer.set_weights([gamma, rng.normal(0, 0.3, count), rng.normal(0, 1, count), rng.uniform(1e-7, 4, count)])
    return network


@pytest.fixture
def images() -> np.ndarray:
    """Of large squares: a new network sees hardly any difference between images of noise, and the head enlarges it."""
    squares = np.random.default_rng(1).integers(0, 256, (64, 4, 4, 3), np.uint8)
    return squares.repeat(8, axis=1).repeat(8, axis=2)


def factors(layer: FusedBatchNormalization) -> np.ndarray:
    gamma, _, _, variance = (value.astype(np.float64) for value in layer.get_weights())
    return gamma / np.sqrt(variance + layer.epsilon)


def test_normalization_multiplies_by_powers_of_two_and_adds_halves():
    network = used_network()
    before = {layer.name: layer.get_weights() for layer in network.layers}
    round_weights(network)
    found = [layer for layer in network.layers if isinstance(layer, FusedBatchNormalization)]
    assert len(found) == 12
    for layer in found:
        gamma, beta, mean, variance = layer.get_weights()
        used = gamma != 0
        assert used.sum() == len(gamma) - 2
        exponents = np.log2(np.abs(factors(layer)[used]))
        np.testing.assert_allclose(exponents, np.round(exponents), atol=1e-6)
        bias = (beta - mean * factors(layer))[used]
        np.testing.assert_allclose(bias, bias.astype(np.float16).astype(np.float64), atol=1e-6)
        assert (variance >= 0).all()
        old_gamma = before[layer.name][0]
        np.testing.assert_allclose(gamma, old_gamma, rtol=5e-4, atol=1e-7)
    for name, weights in before.items():
        for old, new in zip(weights, network.get_layer(name).get_weights(), strict=True):
            if old.ndim > 1:  # kernels
                assert np.array_equal(new, new.astype(np.float16))


def test_the_network_computes_the_same_and_still_does_in_training(images):
    exact, network = used_network(), used_network()
    round_weights(network)
    np.testing.assert_allclose(embed_with_network(network, images), embed_with_network(exact, images), atol=5e-3)
    trained = [np.asarray(one(images, training=True)) for one in (network, exact)]
    np.testing.assert_allclose(*trained, atol=5e-3)


def test_rounding_twice_changes_nothing():
    network = used_network()
    round_weights(network)
    once = network.get_weights()
    round_weights(network)
    for one, two in zip(once, network.get_weights(), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.nightly  # test_released.py asserts it of a run
def test_a_litert_file_in_half_precision_is_within_the_tolerance_of_any_export(images, tmp_path):
    network = used_network()
    round_weights(network)
    general = fit_general_head(feature_network(network).predict(images, verbose=0), 8).rounded()
    (tmp_path / "embedding.tflite").write_bytes(half_litert(network, general, "stretch"))
    expected = {TRAINED: network, GENERAL: with_general_head(network, general, alone=True)}
    for head, one in expected.items():
        found = LiteRTEmbedder(tmp_path / "embedding.tflite", head)(images)
        np.testing.assert_allclose(found, embed_with_network(one, images), atol=TOLERANCE)


def test_weights_survive_their_file_bit_by_bit(tmp_path):
    network = used_network()
    round_weights(network)
    write_weights(tmp_path / "weights.npz", network)
    again = read_weights(tmp_path / "weights.npz", CONFIG)
    for one, two in zip(network.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(one, two)
    with np.load(tmp_path / "weights.npz") as archive:
        single = [archive[name].shape for name in archive.files if archive[name].dtype == np.float32]
    assert len(single) == 24  # a moving mean and a moving variance for each of 12
    assert all(len(shape) == 1 for shape in single)


def test_the_bias_of_a_rounded_head_has_half_precision():
    features = np.random.default_rng(0).normal(2, 1, (200, 24)).astype(np.float32)
    head = fit_general_head(features, 12)
    rounded = head.rounded()
    bias = -rounded.mean.astype(np.float64) @ rounded.matrix
    np.testing.assert_allclose(bias, bias.astype(np.float16).astype(np.float64), atol=1e-6)
    plain = GeneralHead(head.mean, rounded.matrix)
    assert np.abs((-plain.mean @ plain.matrix) - bias).max() > 1e-5
    np.testing.assert_allclose(rounded(features), head(features), atol=5e-3)
    assert rounded.rounded().checksum == rounded.checksum


def test_networks_of_keras_applications_are_rounded_too():
    config = NetworkConfig(image_size=32, backbone="MobileNetV2", multiscale=False, embedding_dim=0)
    network = embedding_network(config, weights=False)
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
    before = embed_with_network(network, images)
    round_weights(network)
    np.testing.assert_allclose(embed_with_network(network, images), before, atol=2e-2)
