import keras
import numpy as np
import pytest
import tensorflow as tf

from dr_keras.model.normalization import FusedBatchNormalization, L2Normalization

IMAGES = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 6, 7)).astype(np.float32)


def twins(shape=IMAGES.shape, **options):
    """The fused layer and the Keras layer, with the same weights."""
    fused, plain = FusedBatchNormalization(momentum=0.9, **options), keras.layers.BatchNormalization(momentum=0.9)
    for layer in (fused, plain):
        layer.build(shape)
    random = np.random.default_rng(1)
    weights = [random.uniform(0.5, 1.5, value.shape).astype(np.float32) for value in fused.get_weights()]
    fused.set_weights(weights)
    plain.set_weights(weights)
    return fused, plain


@pytest.mark.parametrize("images", [IMAGES, IMAGES[:1], IMAGES[:1, :1, :1]], ids=["batch", "one image", "one pixel"])
def test_training_equals_keras_in_outputs_statistics_and_gradients(images):
    results = []
    for layer in twins(images.shape):
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * tf.cast(tf.reshape(tf.range(tf.size(y)), tf.shape(y)), tf.float32) / 100)
        gradients = tape.gradient(loss, [x, *(variable.value for variable in layer.trainable_variables)])
        results.append([y.numpy(), *layer.get_weights(), *(gradient.numpy() for gradient in gradients)])
    for found, expected in zip(*results, strict=True):
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-3 * max(1.0, np.abs(expected).max()))


def test_inference_and_a_frozen_layer_are_those_of_keras():
    fused, plain = twins()
    assert np.array_equal(fused(IMAGES, training=False), plain(IMAGES, training=False))
    fused.trainable = False
    before = fused.get_weights()
    assert np.array_equal(fused(IMAGES, training=True), plain(IMAGES, training=False))
    assert all(np.array_equal(a, b) for a, b in zip(before, fused.get_weights(), strict=True))


def test_half_precision_is_normalized_in_float32():
    layer = FusedBatchNormalization(dtype="mixed_bfloat16")
    y = layer(keras.ops.cast(IMAGES, "bfloat16"), training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert layer.moving_mean.dtype == "float32"
    assert np.abs(np.asarray(keras.ops.cast(y, "float32")).mean((0, 1, 2))).max() < 0.02


@pytest.mark.parametrize("layer", [FusedBatchNormalization(momentum=0.8), L2Normalization()])
def test_round_trip(layer, tmp_path):
    image = keras.Input(IMAGES.shape[1:])
    model = keras.Model(image, layer(image))
    model(IMAGES, training=True)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    assert type(again.layers[-1]) is type(layer)
    assert again.layers[-1].get_config() == layer.get_config()
    assert np.array_equal(again.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0))
