import argparse
import dataclasses
import json
from pathlib import Path

import pytest
from conftest import script

from dr_keras.cli.flags import add_flags, parse
from dr_keras.config import PARTS, RATES, AugmentationConfig, Config, NetworkConfig, OptimizerConfig
from dr_keras.errors import InputError
from dr_keras.presets import PRESETS


def parsed(*arguments: str) -> Config:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return Config(**parse(parser, arguments)[0])


def test_every_field_is_a_flag():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = parser.format_help()
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in flags


def test_flags_become_fields():
    config = parsed("--data", "x", "--epochs", "3", "--margin", "0.5", "--no-multiscale", "--steps-per-epoch", "7")
    assert (config.data, config.epochs, config.margin, config.multiscale, config.steps_per_epoch) == (
        "x",
        3,
        0.5,
        False,
        7,
    )
    assert parsed() == Config()


def test_flags_override_the_preset():
    config = parsed("--preset", "paper", "--image-size", "128")
    assert config == Config.preset("paper", image_size=128)
    assert (config.backbone, config.embedding_dim, config.distance, config.image_size) == (
        "alexnet",
        4096,
        "squared",
        128,
    )


def test_each_optimizer_has_a_learning_rate_of_its_own():
    assert Config().learning_rate == 6e-3
    assert Config(optimizer="adamw").learning_rate == 2e-3
    assert Config(optimizer="sgd", learning_rate=0.01).learning_rate == 0.01
    assert Config.from_dict(Config(optimizer="sgd").to_dict()).learning_rate == RATES["sgd"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name):
    config = Config.preset(name)
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("epochs", "softmax"), [(1, 1), (2, 1), (5, 4), (10, 9), (42, 38)])
def test_a_preset_keeps_its_share_of_softmax_epochs(epochs, softmax):
    assert Config.preset("tiny-imagenet-cpu").softmax_epochs == 19
    assert Config.preset("tiny-imagenet-cpu", epochs=epochs).softmax_epochs == softmax
    assert Config.preset("tiny-imagenet-cpu", epochs=epochs, pretrain_epochs=0).softmax_epochs == 0


def test_assignment_preset_is_the_assignment():
    config = Config.preset("assignment")
    assert (config.margin, config.distance, config.multiscale, config.backbone) == (1.0, "euclidean", True, "alexnet")


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": 0},
        {"margin": -1.0},
        {"margin": float("nan")},
        {"classifier_weight": float("nan")},
        {"image_size": 8},
        {"epochs": -1},
        {"steps_per_epoch": 0},
        {"weights": "imagenet"},
        {"host_index": 1},
        {"hosts": 2},
        {"resize": "squash"},
        {"store": "cloud"},
        {"distance": "cosine"},
        {"monitor": 1.0},
        {"learning_rate": 0},
        {"run": "../up"},
        {"shift": 64},
        {"stem_stride": 4},
    ],
)
def test_values_out_of_range_are_refused_by_their_flag(wrong):
    with pytest.raises(InputError, match="--" + next(iter(wrong)).replace("_", "-")):
        Config(**wrong)


def test_unknown_settings_are_refused():
    with pytest.raises(InputError, match="newer"):
        Config.from_dict({"sharpness": 1})


@pytest.mark.parametrize("name", ["train.py", "retrieve.py", "evaluate.py"])
def test_help_imports_no_framework(tmp_path, refuse, name):
    result = script(tmp_path, name, "--help", env=refuse("tensorflow", "keras", "jax", "torch"))
    assert result.returncode == 0, result.stderr
    assert "--run" in result.stdout


def test_a_bad_flag_is_one_line_on_stderr(tmp_path):
    result = script(tmp_path, "train.py", "--margin", "0")
    assert result.returncode == 2
    assert result.stderr.startswith("train.py: --margin is 0.0")
    assert len(result.stderr.splitlines()) == 1


def test_a_preset_that_does_not_exist():
    with pytest.raises(InputError, match="--preset is 'none'; choose one of default, tiny-imagenet-cpu,"):
        Config.preset("none")


def test_data_may_be_a_path():
    config = Config(data=Path("my") / "folders")
    assert config.data == str(Path("my") / "folders")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_each_field_except_the_seed_belongs_to_one_part():
    names = [field.name for part in PARTS for field in dataclasses.fields(part)]
    assert set(names) == {field.name for field in dataclasses.fields(Config)}
    assert {name for name in names if names.count(name) > 1} == {"seed"}


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_has_the_values_of_the_whole(kind):
    config = Config.preset("paper", data="x", seed=3)
    part = config.part(kind)
    assert type(part) is kind
    assert dataclasses.asdict(part).items() <= config.to_dict().items()
    assert isinstance(config, kind)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (NetworkConfig, {"stem_stride": 4}),
        (AugmentationConfig, {"color": 1.5}),
        (OptimizerConfig, {"warmup": 1.0}),
    ],
)
def test_a_part_on_its_own_refuses_values_out_of_range(kind, wrong):
    with pytest.raises(InputError, match="--" + next(iter(wrong)).replace("_", "-")):
        kind(**wrong)
    assert OptimizerConfig(optimizer="sgd").learning_rate == RATES["sgd"]
