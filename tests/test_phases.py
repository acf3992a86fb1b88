"""What carries over from one phase of a run to the next, and what each stage sets."""

import keras
import numpy as np
import pytest

from dr_keras.config import OPTIMIZERS, Config
from dr_keras.data.batches import BRANCHES, TripletSource
from dr_keras.data.samplers import TripletSampler
from dr_keras.model.backbones import CALLS_PER_STEP, STEP_MOMENTUM
from dr_keras.model.classifier import ClassProxies
from dr_keras.model.network import initial_network
from dr_keras.model.normalization import FusedBatchNormalization
from dr_keras.training.compile import learning_rate_at, learning_rates
from dr_keras.training.phase_models import PhaseModels
from dr_keras.training.phases import SOFTMAX, TRIPLETS, Phase

CLASSES, BATCH = 5, 6
SMALL = {"image_size": 32, "backbone": "resnet10", "width": 4, "embedding_dim": 8, "precision": "float32"}


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_the_rate_that_is_reported_is_the_rate_that_is_used(warmup, steps):
    config = Config(warmup=warmup)
    rates = learning_rates(config, steps)
    used = [float(rates(step)) for step in range(steps)]
    np.testing.assert_allclose([learning_rate_at(config, steps, n) for n in range(steps)], used, rtol=1e-4, atol=1e-9)
    assert max(used) <= config.learning_rate * (1 + 1e-6)


def batch_of(stage, size):
    random = np.random.default_rng(0)
    labels = np.arange(BATCH, dtype=np.int32) % CLASSES
    images = {name: random.integers(0, 256, (BATCH, size, size, 3), np.uint8) for name in (*BRANCHES, "image")}
    if stage == TRIPLETS:
        return {name: images[name] for name in BRANCHES} | {"classes": np.stack([labels, (labels + 1) % CLASSES], 1)}
    return {"image": images["image"], "label": labels, "other": labels, "share": np.ones(BATCH, np.float32)}


def values(variables):
    return {variable.path: keras.ops.convert_to_numpy(variable) for variable in variables}


@pytest.mark.parametrize(
    "optimizer", [pytest.param(name, marks=[pytest.mark.nightly] if name != "muon" else []) for name in OPTIMIZERS]
)
@pytest.mark.parametrize(("before", "after"), [((SOFTMAX, 16), (SOFTMAX, 32)), ((SOFTMAX, 32), (TRIPLETS, 32))])
def test_weights_proxies_and_moments_pass_on(optimizer, before, after):
    config = Config(optimizer=optimizer, progressive="16:0.3", shift=2, **SMALL)
    models = PhaseModels(config, config, config, CLASSES, 10)
    network = initial_network(config)
    model = models.first(Phase(*before, 0, 1, 0, 2), network)
    for _ in range(2):
        model.train_on_batch(batch_of(*before))
    embedding = model.get_layer("embedding_network").get_weights()
    proxies = model.get_layer("proxies").get_weights()
    moments = values(model.optimizer.variables)
    following = models.following(Phase(*after, 1, 2, 2, 2), model, network, 2)
    assert following is not model
    for old, new in zip(embedding, following.get_layer("embedding_network").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(proxies[0], following.get_layer("proxies").get_weights()[0])
    found = values(following.optimizer.variables)
    assert found.keys() == moments.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, moments[path], err_msg=path)
    assert sum(np.any(value != 0) for value in found.values()) > 10
    assert int(following.optimizer.iterations) == 2


@pytest.mark.parametrize(("stage", "calls"), [(SOFTMAX, 1), (TRIPLETS, CALLS_PER_STEP)])
def test_a_step_moves_the_statistics_as_far_in_either_stage(stage, calls):
    config = Config(progressive="none", shift=2, **SMALL)
    network = initial_network(config)
    model = PhaseModels(config, config, config, CLASSES, 10).first(Phase(stage, 32, 0, 1, 0, 2), network)
    layers = [layer for layer in network.layers if isinstance(layer, FusedBatchNormalization)]
    assert layers
    for layer in layers:
        layer.moving_variance.assign(keras.ops.full_like(layer.moving_variance, 1e6))  # far from the batch statistics
    model.train_on_batch(batch_of(stage, 32))
    left = np.mean([keras.ops.convert_to_numpy(layer.moving_variance).mean() for layer in layers]) / 1e6
    assert left == pytest.approx(STEP_MOMENTUM, rel=1e-3)
    assert layers[0].momentum == pytest.approx(STEP_MOMENTUM ** (1 / calls))


def test_an_epoch_of_triplets_begins_with_its_stage():
    labels = np.repeat(np.arange(CLASSES), 8)
    pixels = np.zeros((len(labels), 16, 16, 3), np.uint8)
    sampler = TripletSampler(labels, 4, 0)
    source = TripletSource(pixels, np.arange(len(labels)), sampler, begin=7)
    classes = np.concatenate([source.batch(step)["classes"][:, 0] for step in range(7, 7 + source.steps_per_epoch)])
    assert np.bincount(classes).tolist() == [8] * CLASSES  # each image was a query once
    np.testing.assert_array_equal(source.batch(7)["classes"], sampler.batch(0).classes)


@pytest.mark.parametrize("dimensions", [16, 256])
def test_proxies_start_uniform_in_direction_and_seeded(dimensions):
    def proxies(seed):
        return keras.ops.convert_to_numpy(ClassProxies(40, 2, seed)(np.zeros((1, dimensions)))).reshape(80, -1)

    cosines = (proxies(0) @ proxies(0).T)[~np.eye(80, dtype=bool)]
    assert abs(cosines.mean()) < 0.02
    assert cosines.std() == pytest.approx(dimensions**-0.5, rel=0.2)
    assert np.abs(proxies(0) - proxies(1)).max() > 0.1
