"""What is trained of a network with pretrained weights, and how fast: freezing, rates by depth, and LoRA."""

import keras
import numpy as np
import pytest
from conftest import script

from dr_keras.config import TUNING, Config, NetworkConfig, OptimizerConfig, RankingConfig
from dr_keras.errors import InputError
from dr_keras.model.blocks import backbone_blocks
from dr_keras.model.network import embedding_network
from dr_keras.training.compile import compiled_model
from dr_keras.training.tuning import plain_weights, prepare, rate_factors

SIDE = 32
RANKING = RankingConfig()


def mobile(**settings):
    keras.utils.set_random_seed(0)
    return embedding_network(NetworkConfig(backbone="MobileNet", image_size=SIDE, multiscale=False, **settings))


def small(**settings):
    return embedding_network(NetworkConfig(backbone="resnet10", width=4, image_size=SIDE, embedding_dim=8, **settings))


class Block(keras.layers.Layer):
    """Stands for a block of a transformer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.dense = keras.layers.LayerNormalization(), keras.layers.Dense(8)

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)

    def call(self, x):
        return x + self.dense(self.norm(x))


class Encoder(keras.layers.Layer):
    """Holds its blocks, as the encoders of KerasHub do."""

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        self.blocks, self.norm = [Block() for _ in range(count)], keras.layers.LayerNormalization()

    def build(self, shape):
        for part in (*self.blocks, self.norm):
            part.build(shape)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def transformer(count=3):
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    pixels = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Reshape((16, 8))(keras.layers.Conv2D(8, 8, 8, name="patches")(pixels))
    nested = keras.Model(pixels, keras.layers.GlobalAveragePooling1D()(Encoder(count)(x)))
    features = nested(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.Dense(4, name="linear_embedding")(features)
    return keras.Model(image, keras.layers.UnitNormalization(name="embedding")(x), name="embedding_network")


def test_blocks_of_a_transformer_and_stages_of_a_convnet():
    found = backbone_blocks(transformer(3))
    assert [layer.name for layer in found.stem] == ["patches"]
    assert [[type(layer) for layer in block] for block in found.blocks] == [[Block]] * 3
    assert [type(layer) for layer in found.tail] == [keras.layers.LayerNormalization]
    stages = backbone_blocks(mobile()).blocks
    assert [block[-1].output.shape[1] for block in stages] == [16, 8, 4, 2, 1]
    own = backbone_blocks(small())
    assert len(own.blocks) == 4
    names = [layer.name for layer in own.all]
    assert names[0] == "stem_conv"
    assert not any(name.startswith(("a_", "b_", "linear")) for name in names)


def test_every_weight_of_the_backbone_is_in_one_block():
    for network in (transformer(), mobile()):
        backbone = next(layer for layer in network.layers if isinstance(layer, keras.Model))
        counted = [id(weight) for layer in backbone_blocks(network).all for weight in layer.weights]
        assert sorted(counted) == sorted(id(weight) for weight in backbone.weights)


@pytest.mark.parametrize("make", [transformer, mobile])
def test_the_first_blocks_are_frozen(make):
    network = make()
    blocks = backbone_blocks(network)
    prepare(network, OptimizerConfig(freeze=2))
    assert not any(layer.trainable for layer in (*blocks.stem, *blocks.blocks[0], *blocks.blocks[1]))
    assert all(layer.trainable for block in blocks.blocks[2:] for layer in block)


def test_frozen_weights_stay_and_others_move():
    network = mobile(embedding_dim=8)
    prepare(network, OptimizerConfig(freeze="all"))
    assert [variable.path.split("/")[0] for variable in network.trainable_variables] == ["linear_embedding"] * 2
    before = network.get_weights()
    train_a_step(network, OptimizerConfig(freeze="all", optimizer="sgd"))
    backbone = len(before) - 2
    for old, new in zip(before[:backbone], network.get_weights()[:backbone], strict=True):
        assert np.array_equal(old, new)  # statistics of batch normalization, too
    assert not np.array_equal(before[-2], network.get_weights()[-2])


def train_a_step(network, config, steps=1):
    model = compiled_model(network, ranking=RANKING, optimizer=config, steps=10)
    random = np.random.default_rng(0)
    batch = {
        name: random.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8) for name in ("query", "positive", "negative")
    } | {"classes": np.array([[0, 1], [1, 2], [2, 3], [3, 0]], np.int32)}
    for _ in range(steps):
        model.train_on_batch(batch)
    return model


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": 9}, "the network has 5 blocks"),
        ({"freeze": "all"}, "leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen(settings, words):
    with pytest.raises(InputError, match=words):
        prepare(mobile(embedding_dim=0), OptimizerConfig(**settings))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_rates_fall_with_the_depth_of_a_block(optimizer):
    network = transformer(2)
    config = OptimizerConfig(layer_decay=0.5, optimizer=optimizer, warmup=0, weight_decay=0.0)
    factors = rate_factors(network, 1.0, 0.5)
    by_name = {variable.path: factors.get(id(variable)) for variable in network.weights}
    assert by_name[next(path for path in by_name if path.startswith("patches/kernel"))] == 0.125
    assert {value for path, value in by_name.items() if path.startswith("linear_embedding")} == {None}
    plain, decayed = transformer(2), network
    plain.set_weights(decayed.get_weights())
    start = decayed.get_weights()
    train_a_step(decayed, config)
    train_a_step(plain, OptimizerConfig(optimizer=optimizer, warmup=0, weight_decay=0.0))
    for variable, old, slow, full in zip(
        network.weights, start, decayed.get_weights(), plain.get_weights(), strict=True
    ):
        factor = factors.get(id(variable), 1.0)
        np.testing.assert_allclose(slow - old, factor * (full - old), rtol=2e-2, atol=1e-6)


def test_weight_decay_falls_with_the_rate():
    network = transformer(1)
    config = OptimizerConfig(layer_decay=0.5, optimizer="sgd", learning_rate=0.1, warmup=0, weight_decay=0.5)
    model = compiled_model(network, ranking=RANKING, optimizer=config, steps=10)
    optimizer = model.optimizer
    variables = model.trainable_variables
    before = [keras.ops.convert_to_numpy(variable) for variable in variables]
    optimizer.apply([keras.ops.zeros_like(variable) for variable in variables], variables)
    factors = rate_factors(network, 1.0, 0.5)
    for variable, old in zip(variables, before, strict=True):
        decays = variable.name not in ("bias", "gamma", "beta")
        share = 0.1 * 0.5 * factors.get(id(variable), 1.0) * decays
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), old * (1 - share), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make", [transformer, mobile])
def test_lora_trains_few_weights_and_merges_into_the_kernels(make):
    network = make() if make is transformer else mobile(embedding_dim=8)
    plain = make() if make is transformer else mobile(embedding_dim=8)
    images = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    config = OptimizerConfig(lora=2, optimizer="adamw", learning_rate=0.01, warmup=0)
    prepare(network, config)
    prepare(network, config)  # as in a later phase
    names = {variable.name for variable in network.trainable_variables}
    assert names == {"lora_kernel_a", "lora_kernel_b", "kernel", "bias"}  # the last two of the linear embedding
    plain.set_weights(plain_weights(network))
    np.testing.assert_allclose(network.predict_on_batch(images), plain.predict_on_batch(images), atol=1e-6)
    before = network.predict_on_batch(images)
    train_a_step(network, config, steps=3)
    after = network.predict_on_batch(images)
    assert np.abs(after - before).max() > 1e-3
    plain.set_weights(plain_weights(network))
    np.testing.assert_allclose(after, plain.predict_on_batch(images), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": "some"}, "none, all, or a number"),
        ({"freeze": -1}, "none, all, or a number"),
        ({"layer_decay": 0}, "layer-decay is 0; it must be above 0 and at most 1"),
        ({"backbone_rate": 1.5}, "backbone-rate is 1.5; it must be above 0 and at most 1"),
        ({"lora": -1}, "at least 0"),
        ({"lora": 2, "weight_average": 0.9}, "cannot be combined"),
        ({"lora": 2}, "needs one image size"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(InputError, match=words):
        Config(**settings)


def test_pretrained_networks_are_trained_at_a_lower_rate():
    for settings in ({"backbone": "hub:x"}, {"backbone": "MobileNet", "weights": "imagenet"}):
        assert Config(**settings).backbone_rate == TUNING
        assert Config(**settings).learning_rate == Config().learning_rate
    assert Config(backbone="MobileNet").backbone_rate == 1
    assert Config(backbone="hub:x", backbone_rate=0.5).backbone_rate == 0.5
    assert Config.from_dict(Config(backbone="hub:x").to_dict()).backbone_rate == TUNING


def test_only_the_backbone_has_the_lower_rate():
    network = transformer(2)
    before = network.get_weights()
    train_a_step(network, OptimizerConfig(backbone_rate=1e-6, learning_rate=0.01, warmup=0, weight_decay=0.0))
    moved = {
        variable.path: float(np.abs(new - old).max())
        for variable, new, old in zip(network.weights, network.get_weights(), before, strict=True)
    }
    new = [path for path in moved if path.startswith("linear_embedding")]
    assert new
    assert all(moved[path] > 1e-4 for path in new)
    assert all(change < 1e-6 for path, change in moved.items() if path not in new)


@pytest.mark.nightly
@pytest.mark.usefixtures("export_here")
def test_a_network_as_it_is_with_data_and_with_lora(folders, tmp_path):
    common = ("--data", folders, "--backbone", "MobileNet", "--weights", "none", "--image-size", SIDE, "--shift", 1)
    result = script(tmp_path, "train.py", *common, "--embedding-dim", 0, "--epochs", 0, "--run", "as-it-is")
    assert result.returncode == 0, result.stderr
    assert "monitor: precision@1" in result.stderr
    steps = ("--epochs", 2, "--pretrain-epochs", 1, "--steps-per-epoch", 2, "--batch-size", 4)
    result = script(tmp_path, "train.py", *common, *steps, "--lora", 2, "--no-multiscale", "--run", "lora")
    assert result.returncode == 0, result.stderr
    result = script(tmp_path, "evaluate.py", "--run", "lora", "--no-baselines")
    assert result.returncode == 0, result.stderr
