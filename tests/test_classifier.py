import keras
import numpy as np
import pytest
from keras import ops

from dr_keras.config import Config
from dr_keras.model.classifier import ClassProxies, CosineClassifier
from dr_keras.model.network import classification_network, initial_network, load_network, training_network

SMALL = Config(backbone="resnet10", width=4, embedding_dim=8, image_size=32)


def unit(random, *shape):
    values = random.standard_normal(shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def slow(embedding, proxies, label, other, share, scale, smooth):
    """The loss and the predicted class of one image."""
    logits = [np.log(np.mean([np.exp(scale * float(embedding @ vector)) for vector in group])) for group in proxies]
    odds = np.exp(logits) / np.exp(logits).sum()
    target = np.full(len(proxies), smooth / len(proxies))
    target[label] += (1 - smooth) * share
    target[other] += (1 - smooth) * (1 - share)
    return -(target * np.log(odds)).sum(), int(np.argmax(logits))


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("smooth", [0.0, 0.2])
def test_equals_the_plain_formula(each, smooth):
    random = np.random.default_rng(each)
    embeddings, proxies = unit(random, 12, 5), unit(random, 4, each, 5)
    label, other = random.integers(0, 4, (2, 12))
    share = random.random(12).astype(np.float32)
    layer = CosineClassifier(7.0, smooth, weight=0.5)
    found = {k: ops.convert_to_numpy(v) for k, v in layer(embeddings, proxies, label, other, share).items()}
    expected = [slow(*one, 7.0, smooth) for one in zip(embeddings, [proxies] * 12, label, other, share, strict=True)]
    np.testing.assert_allclose(found["classifier_loss"], [0.5 * loss for loss, _ in expected], rtol=1e-4)
    np.testing.assert_array_equal(
        found["accuracy"], [taken == own for (_, taken), own in zip(expected, label, strict=True)]
    )
    assert float(layer.losses[0]) == pytest.approx(found["classifier_loss"].mean(), rel=1e-5)


def test_without_mixing_it_is_the_loss_of_the_own_class():
    random = np.random.default_rng(0)
    embeddings, proxies, label = unit(random, 6, 5), unit(random, 4, 1, 5), random.integers(0, 4, 6)
    layer = CosineClassifier()
    plain = layer(embeddings, proxies, label)["classifier_loss"]
    whole = layer(embeddings, proxies, label, (label + 1) % 4, np.ones(6, np.float32))["classifier_loss"]
    np.testing.assert_allclose(plain, whole, rtol=1e-5)


def test_proxies_are_of_unit_length_and_learned():
    layer = ClassProxies(3, 2)
    vectors = layer(np.ones((5, 7), np.float32))
    assert tuple(vectors.shape) == (3, 2, 7)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    assert [weight.path.rpartition("/")[2] for weight in layer.trainable_weights] == ["proxies"]


@pytest.mark.parametrize("layer", [ClassProxies(3, 2), CosineClassifier(9.0, 0.3, 0.7)])
def test_round_trip(layer):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()


def test_both_training_networks_round_trip(tmp_path):
    config = Config(**SMALL.to_dict() | {"mining": "semi-hard", "proxies": 2})
    for model in (
        classification_network(initial_network(config), config, 3),
        training_network(initial_network(config), config, 3),
    ):
        model.save(tmp_path / "m.keras")
        copy = load_network(tmp_path / "m.keras")
        assert [tuple(w.shape) for w in copy.weights] == [tuple(w.shape) for w in model.weights]
        assert copy.get_layer("classifier").get_config() == model.get_layer("classifier").get_config()


def test_a_few_steps_of_the_softmax_stage_learn_a_few_images():
    model = classification_network(initial_network(SMALL), SMALL, 4)
    model.compile(keras.optimizers.Adam(3e-3), jit_compile=False)  # as when training on a CPU
    random = np.random.default_rng(0)
    label = np.arange(16) % 4
    images = random.integers(0, 64, (16, 32, 32, 3)) + 48 * label[:, None, None, None]
    inputs = {"image": images.astype(np.uint8), "label": label, "other": label, "share": np.ones(16, np.float32)}
    seen = [model.train_on_batch(inputs, return_dict=True) for _ in range(25)]
    assert seen[-1]["loss"] < 0.7 * seen[0]["loss"]
    assert seen[-1]["accuracy"] > 0.9
    assert set(seen[0]) == {"loss", "classifier_loss", "accuracy", "pairwise_distance"}


def test_the_triplet_stage_without_a_classifier_has_neither_classifier_nor_proxies():
    config = Config(**SMALL.to_dict() | {"classifier_weight": 0.0})
    names = {layer.name for layer in training_network(initial_network(config), config, 5).layers}
    assert not names & {"classifier", "proxies"}
