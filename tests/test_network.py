from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops

from dr_keras.config import Config
from dr_keras.errors import RunError
from dr_keras.model.backbones import CALLS_PER_STEP, STEP_MOMENTUM
from dr_keras.model.network import L2Normalization, embedding_network, initial_network, load_network, training_network
from dr_keras.model.operations import multiply_adds
from dr_keras.training.compile import training_precision

SMALL = Config(backbone="resnet10", width=8, embedding_dim=16, image_size=32)


def images(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def shape(network, layer):
    return network.get_layer(layer).output.shape[1:]


def test_every_shape_is_the_papers_at_225_pixels():
    network = embedding_network(Config.preset("paper"))
    expected = {
        # Wang et al. 2014, figure 3
        "image": (225, 225, 3),
        "a_subsample": (57, 57, 3),
        "a_conv": (15, 15, 96),
        "a_pool": (4, 4, 96),
        "b_subsample": (29, 29, 3),
        "b_conv": (8, 8, 96),
        "b_pool": (4, 4, 96),
        "low_resolution_normalised": (3072,),
        "convnet_normalised": (4096,),
        "linear_embedding": (4096,),
        "embedding": (4096,),
        # Krizhevsky et al. 2012
        "conv1": (55, 55, 96),
        "conv2": (27, 27, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "fc6": (4096,),
        "fc7": (4096,),
    }
    assert {layer: shape(network, layer) for layer in expected} == expected
    assert network.get_layer("a_conv").kernel_size == (8, 8)
    assert network.get_layer("fc7_dropout").rate == 0.4


@pytest.mark.parametrize("backbone", ["alexnet", "resnet10", "resnet18", "resnet34"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_low_resolution_paths_fit_every_size(backbone, size):
    network = embedding_network(Config(backbone=backbone, width=4, embedding_dim=8, image_size=size))
    assert network.output_shape == (None, 8)
    assert shape(network, "a_pool") == shape(network, "b_pool")


def test_single_scale_has_only_the_convnet_path():
    names = [layer.name for layer in embedding_network(Config(width=4, multiscale=False)).layers]
    assert not any(name.startswith(("a_", "b_", "low_resolution")) for name in names)


@pytest.mark.parametrize(("stride", "size", "side"), [(None, 64, 32), (1, 64, 64), (1, 32, 32), (2, 64, 32)])
def test_the_stride_of_the_stem_is_that_of_every_image_size(stride, size, side):
    config = replace(SMALL, image_size=64, stem_stride=stride)
    network = embedding_network(config, size=size)
    assert shape(network, "stem_relu")[:2] == (side, side)
    assert shape(network, "stage4_block1_relu")[:2] == (side // 8, side // 8)


def test_operations_are_those_of_the_layers():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(inputs)  # 16 x 16 positions
    x = keras.layers.DepthwiseConv2D(5, padding="valid")(x)  # 12 x 12
    x = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    inner = keras.Model(inputs, x)
    network = keras.Model(inputs, keras.layers.BatchNormalization()(inner(inputs)))
    assert multiply_adds(network) == 16 * 16 * 9 * 3 * 8 + 12 * 12 * 25 * 8 + 8 * 10
    # He et al. 2015 give 1.8e9 for a ResNet-18 at 224 px, whose stem is a 7 x 7 convolution.
    assert 0.5e9 < multiply_adds(embedding_network(Config(width=64, multiscale=False))) < 0.6e9


@pytest.mark.parametrize("multiscale", [True, False])
def test_embeddings_have_unit_length_and_differ(multiscale):
    network = initial_network(Config(**{**SMALL.to_dict(), "multiscale": multiscale}))
    vectors = network.predict(images(5), verbose=0)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_three_calls_equal_one_call_on_the_joined_batch():
    network = initial_network(SMALL)
    model = training_network(network, SMALL)
    joined = images(12)
    branches = dict(zip(("query", "positive", "negative"), np.split(joined, 3), strict=True))
    inner = keras.Model(model.inputs, model.get_layer("embeddings").output)
    by_branch = inner.predict(branches | {"classes": np.zeros((4, 2), np.int32)}, verbose=0)
    at_once = np.concatenate(np.split(network.predict(joined, verbose=0), 3), axis=1)
    np.testing.assert_allclose(by_branch, at_once, atol=1e-6)


def test_the_branches_share_one_network():
    network = initial_network(SMALL)
    model = training_network(network, SMALL)
    assert [layer for layer in model.layers if isinstance(layer, keras.Model)] == [network]
    assert {tensor.name for tensor in model.inputs} == {"query", "positive", "negative", "classes"}
    assert shape(model, "embeddings") == (48,)


def test_batch_normalization_moves_as_far_in_a_step_of_three_calls_as_one_call_should():
    network = initial_network(SMALL)
    layer = next(layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization))
    assert layer.momentum**CALLS_PER_STEP == pytest.approx(STEP_MOMENTUM)
    model = training_network(network, SMALL)
    model.compile("sgd", jit_compile=False)  # as when training on a CPU
    before = ops.convert_to_numpy(layer.moving_variance).copy()
    same = images(4)
    batch = dict.fromkeys(("query", "positive", "negative"), same) | {"classes": np.zeros((4, 2), np.int32)}
    stem = keras.Model(network.input, network.get_layer("stem_conv").output)
    variance = stem.predict(same, verbose=0).var(axis=(0, 1, 2))
    model.train_on_batch(batch)
    expected = before * STEP_MOMENTUM + variance * (1 - STEP_MOMENTUM)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_variance), expected, rtol=1e-3)


def test_the_seed_decides_the_first_weights():
    one, same, other = (
        initial_network(Config(**{**SMALL.to_dict(), "seed": seed})).get_weights() for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_round_trip(tmp_path):
    network = initial_network(SMALL)
    network.save(tmp_path / "network.keras")
    copy = load_network(tmp_path / "network.keras")
    for one, other in zip(copy.layers, network.layers, strict=True):
        assert (type(one), one.name, one.output.shape) == (type(other), other.name, other.output.shape)
    assert all(np.array_equal(a, b) for a, b in zip(copy.get_weights(), network.get_weights(), strict=True))
    assert np.array_equal(copy.predict(images(3), verbose=0), network.predict(images(3), verbose=0))


def test_training_network_round_trip(tmp_path):
    model = training_network(initial_network(SMALL), replace(SMALL, margin=0.5))
    model.save(tmp_path / "training.keras")
    copy = load_network(tmp_path / "training.keras")
    assert type(copy) is type(model)
    assert copy.get_layer("ranking").get_config() == model.get_layer("ranking").get_config()


def test_a_damaged_archive_is_a_clear_error(tmp_path):
    (tmp_path / "network.keras").write_bytes(b"PK\x03\x04 but no archive")
    for name in ("network.keras", "absent.keras"):
        with pytest.raises(RunError, match=name):
            load_network(tmp_path / name)


def test_normalizing_a_zero_vector_gives_zero_and_a_finite_gradient():
    import tensorflow as tf

    values = tf.Variable(np.array([[0, 0, 0], [3, 0, 4]], np.float32))
    with tf.GradientTape() as tape:
        unit = L2Normalization()(values)
        total = tf.reduce_sum(unit)
    np.testing.assert_allclose(unit.numpy(), [[0, 0, 0], [0.6, 0, 0.8]], rtol=1e-6)
    assert np.isfinite(tape.gradient(total, values).numpy()).all()


def test_distances_are_float32_under_a_mixed_policy():
    with training_precision(replace(SMALL, precision="mixed_bfloat16")):
        model = training_network(initial_network(SMALL), SMALL)
    assert model.get_layer("embedding_network").get_layer("stem_conv").compute_dtype == "bfloat16"
    assert model.get_layer("embeddings").output.dtype == "float32"
    batch = dict.fromkeys(("query", "positive", "negative"), images(4)) | {"classes": np.zeros((4, 2), np.int32)}
    inner = keras.Model(model.inputs, model.get_layer("embeddings").output)
    lengths = np.linalg.norm(inner.predict(batch, verbose=0)[:, :16], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
