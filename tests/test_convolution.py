import keras
import numpy as np
import pytest
import tensorflow as tf

from dr_keras.model.convolution import Convolution


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: [])


def layer_and_images(side=4, kernel=3, stride=1, **options):
    """The layer and Keras's own, with the same weights, and images."""
    random = np.random.default_rng(0)
    images = random.normal(size=(5, side, side + 1, 6)).astype(np.float32)
    settings = {"padding": "same", "data_format": "channels_last", "use_bias": False} | options
    ours, plain = (kind(7, kernel, stride, **settings) for kind in (Convolution, keras.layers.Conv2D))
    for layer in (ours, plain):
        layer.build(images.shape)
    plain.set_weights(ours.get_weights())
    return ours, plain, tf.constant(images)


def gradients(layer, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(tf.sin(tf.cast(layer(images, training=True), tf.float32)))
    return tape.gradient(loss, [images, *(variable.value for variable in layer.trainable_variables)])


def operations(layer, images):
    """The types of the operations in a training step of the layer."""
    traced = tf.function(lambda x: gradients(layer, x)).get_concrete_function(tf.TensorSpec((None, *images.shape[1:])))
    return {operation.type for operation in traced.graph.get_operations()}


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (7, 1), (2, 2), (5, 2), (7, 2), (7, 3)])
def test_outputs_and_gradients_equal_those_of_keras(side, kernel, stride):
    ours, plain, images = layer_and_images(side, kernel, stride)
    assert "Conv2DBackpropFilter" not in operations(ours, images)
    assert np.array_equal(ours(images, training=True), plain(images))
    for found, expected in zip(gradients(ours, images), gradients(plain, images), strict=True):
        assert np.allclose(found, expected, atol=1e-4)


def test_half_precision():
    ours, plain, images = layer_and_images(dtype="mixed_bfloat16")
    assert "Conv2DBackpropFilter" not in operations(ours, images)
    found, expected = gradients(ours, images)[1], gradients(plain, images)[1]
    assert found.dtype == "float32"
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(
    "options",
    [
        {"side": 8},
        {"side": 9, "stride": 2},
        {"padding": "valid"},
        {"use_bias": True},
        {"dilation_rate": 2},
        {"activation": "relu"},
    ],
)
def test_other_convolutions_are_those_of_keras(options):
    ours, plain, images = layer_and_images(**options)  # 8 x 9 and 9 x 10 pixels
    assert "Conv2DBackpropFilter" in operations(ours, images)
    assert np.array_equal(ours(images, training=True), plain(images))


def test_inference_is_that_of_keras(tmp_path):
    ours, plain, images = layer_and_images()
    assert np.array_equal(ours(images), plain(images))
    pixels = keras.Input(images.shape[1:])
    model = keras.Model(pixels, ours(pixels))
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    assert type(again.layers[-1]) is Convolution
    assert np.array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))


def test_trained_by_fit_as_keras_does():
    weights, initial = [], []
    for kind in (Convolution, keras.layers.Conv2D):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([kind(8, 3, padding="same", use_bias=False), keras.layers.GlobalAveragePooling2D()])
        model.compile("sgd", "mse")
        model.build((None, 4, 4, 3))
        initial.append(model.get_weights()[0])
        random = np.random.default_rng(1)
        model.fit(random.normal(size=(12, 4, 4, 3)), random.normal(size=(12, 8)), batch_size=5, epochs=3, verbose=0)
        weights.append(model.get_weights()[0])
    assert np.array_equal(*initial)
    assert np.allclose(*weights, atol=1e-5)
    assert np.abs(weights[0] - initial[0]).max() > 1e-3
