"""Named sets of settings: the changes that each makes to the defaults of `dr_keras.config.Config`."""

from collections.abc import Callable
from typing import Any

from dr_keras.errors import InputError


def default() -> dict[str, Any]:
    """The defaults: a resnet18 at 64 px, with 24 epochs of the softmax stage and 6 of the triplet stage.

    For your own image folders. The network and the losses are those of `tiny-imagenet-cpu`.
    """
    return {}


def tiny_imagenet_cpu() -> dict[str, Any]:
    """The recipe of the released model tiny-imagenet-64, sized for two CPU cores and two hours.

    Trained on the 99,000 training images of Tiny ImageNet: 91 minutes on two cores (AMD EPYC, Zen 4). Precision@30 of
    the validation images is 0.4905, MAP@R 0.2890 (docs/quality.md).
    """
    return {
        "epochs": 21,
        "pretrain_epochs": 19,
        "progressive": "32:0.4,48:0.3",
        "eval_every": 5,
    }


def tiny_imagenet_gpu() -> dict[str, Any]:
    """For one H100-class GPU, with JAX.

    110 epochs of Tiny ImageNet take less than nine minutes on an H100, and precision@30 of the validation images is
    0.6549; for classes that it was not trained on, `tiny_imagenet_cpu` is better (docs/gpu.md).
    """
    return {
        "store": "device",
        "precision": "mixed_bfloat16",
        "width": 64,
        "stem_stride": 1,
        "epochs": 150,
        "pretrain_epochs": 144,
        "progressive": "32:0.4,48:0.3",
        "batch_size": 256,
        "learning_rate": 1.2e-2,
        "crop": 0.4,
        "operations": 2,
        "erase": 0.1,
        "mixup": 0.2,
        "cutmix": 0.5,
        "weight_average": 0.999,
        "eval_every": 50,
        "checkpoint_minutes": 1.0,
    }


def assignment() -> dict[str, Any]:
    """The assignment taken literally: the paper's network, uniform triplets, Euclidean distance, and g = 1.0.

    For comparison: after three epochs of Tiny ImageNet, an hour on two cores, precision@30 is 0.0319, hardly more than
    untrained (docs/quality.md).
    """
    return _literal() | {
        "backbone": "alexnet",
        "embedding_dim": 4096,
        "distance": "euclidean",
        "margin": 1.0,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 1e-3,
        "shift": 0,
    }


def paper() -> dict[str, Any]:
    """The network of Wang et al. 2014 at its original size, 225 px, trained as in the paper.

    Squared distances (eq. 1), Nesterov momentum, lambda = 0.001, dropout with keep probability 0.6, random pixel
    shifts. The paper gives neither a learning rate nor g; both values are ours.

    For comparison: after one epoch of Tiny ImageNet, 45 minutes on two cores, precision@30 is 0.0361 (docs/quality.md).
    """
    return _literal() | {
        "image_size": 225,
        "backbone": "alexnet",
        "embedding_dim": 4096,
        "distance": "squared",
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 1e-3,
        "dropout": 0.4,
        "shift": 8,
    }


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "default": default,
    "tiny-imagenet-cpu": tiny_imagenet_cpu,
    "tiny-imagenet-gpu": tiny_imagenet_gpu,
    "assignment": assignment,
    "paper": paper,
}


def with_preset(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a preset, overridden by `settings`.

    If `settings` changes the number of epochs, the softmax stage keeps its share of them.

    Args:
        name: One of `PRESETS`.
        settings: Fields of `Config` and their values.

    Raises:
        InputError: There is no such preset.

    Example:
        >>> with_preset("tiny-imagenet-cpu", {"epochs": 10})["pretrain_epochs"]
        9
    """
    if name not in PRESETS:
        raise InputError(f"--preset is {name!r}; choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]()
    if preset.get("pretrain_epochs") and "epochs" in settings:
        share = round(preset["pretrain_epochs"] * settings["epochs"] / preset["epochs"])
        # The triplet stage gets at least one epoch, if there are two or more.
        preset = preset | {"pretrain_epochs": max(1, min(share, settings["epochs"] - 1))}
    return preset | settings


def _literal() -> dict[str, Any]:
    """Turns off everything that this project adds to the assignment and the paper, including the softmax stage."""
    return {
        "pretrain_epochs": 0,
        "classifier_weight": 0.0,
        "mining": "none",
        "images_per_class": 1,
        "proxies": 0,
        "progressive": "none",
        "flip": False,
        "crop": 1.0,
        "color": 0.0,
        "operations": 0,
        "erase": 0.0,
        "weight_average": 0.0,
    }
