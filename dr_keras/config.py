"""The settings of a training run: one frozen dataclass per concern, and `Config`, which combines them.

Each module takes only the parts that it needs; only `dr_keras.training.run`, the commands, and `dr_keras.runs` see a
whole `Config`. The flags of train.py are generated from its fields. This module imports neither TensorFlow nor Keras,
so that `train.py --help` is fast.
"""

import os
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from dr_keras.errors import InputError
from dr_keras.heads import GENERAL_DIM
from dr_keras.options import check_at_least, check_choice, check_positive, check_share, flag, option
from dr_keras.presets import with_preset

RESNETS = ("resnet10", "resnet18", "resnet34")
BACKBONES = (*RESNETS, "alexnet")
HUB = "hub:"  # before a preset of KerasHub
POOLINGS = ("auto", "cls", "mean", "projection")
DISTANCES = ("euclidean", "squared")
RESIZES = ("stretch", "crop", "pad")
PROTOCOLS = ("standard", "class-disjoint")
STORES = ("auto", "memory", "disk", "stream", "device")
RATES = {"muon": 6e-3, "adamw": 2e-3, "sgd": 0.18}  # at 192 images per step; the rate of sgd has not been tuned
OPTIMIZERS = tuple(RATES)
TUNING = 0.1  # the default rate of a pretrained network, as a share of RATES
PRECISIONS = ("auto", "float32", "mixed_bfloat16")
MININGS = ("none", "semi-hard", "hard", "distance-weighted")

# Settings that must match for the weights of another network to fit.
ARCHITECTURE = ("image_size", "backbone", "pooling", "width", "stem_stride", "multiscale", "embedding_dim")

Part = TypeVar("Part")


def _seed() -> Any:
    return option(0, "seeds the splits, the triplets, the augmentation and the weights", metavar="N")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from, and how they are read, stored, and split."""

    data: str | None = option(
        None,
        "folder of class folders (or with train/ and val/ of them), a zip or tar file of one, a manifest FILE.csv with "
        "columns path, label and perhaps split, 'tfds:NAME', 'digits', or 'tiny-imagenet', downloaded on first use "
        "(default: tiny-imagenet)",
        metavar="DATA",
    )
    resize: str = option(
        "stretch", "how images are made square: stretch, crop to the center square, or pad with gray", choices=RESIZES
    )
    store: str = option(
        "auto",
        "where decoded images are kept: memory; disk (the cache, for later runs too); stream (nowhere: they are "
        "decoded each time); or device (GPU memory, where they are also augmented; needs JAX)",
        choices=STORES,
    )
    monitor: float = option(0.01, "share of each class's training images held out to monitor the run", metavar="SHARE")
    validation: float = option(
        0.1, "share of each class held out for evaluation if the data set has no validation split", metavar="SHARE"
    )
    protocol: str = option(
        "standard",
        "class-disjoint: train on the first half of the classes (or on those of the data set's own splits, if these "
        "have none in common) and hold the others out, as is usual in metric learning",
        choices=PROTOCOLS,
    )
    seed: int = _seed()

    def __post_init__(self) -> None:
        if self.data is not None:
            object.__setattr__(self, "data", os.fspath(self.data))  # a Path is accepted, but config.json needs a string
        check_choice(self, resize=RESIZES, store=STORES, protocol=PROTOCOLS)
        check_at_least(self, seed=0)
        check_share(self, "monitor", "validation")

    @property
    def backend(self) -> str | None:
        """The Keras backend that these settings require; None for the configured one."""
        return "jax" if self.store == "device" else None


@dataclass(frozen=True)
class NetworkConfig:
    """The embedding network and its initial weights."""

    image_size: int = option(
        None,
        "images are resized to this many pixels per side (default: 224 for pretrained networks, else 64)",
        metavar="PIXELS",
    )
    backbone: str = option(
        "resnet18",
        f"network of the ConvNet path: {', '.join(BACKBONES)}; any in keras.applications, such as EfficientNetB0; or "
        "hub:PRESET of KerasHub: a built-in preset such as hub:dinov2_small, hf://..., kaggle://... or a folder",
        metavar="NAME",
    )
    weights: str | None = option(
        None,
        "initial weights of a keras.applications network: none (random), imagenet (downloaded), or a weights file",
        metavar="none|imagenet|FILE",
    )
    pooling: str = option(
        "auto",
        "features of a KerasHub network: its class token, the mean over positions, the projection into the space that "
        "images share with texts, or what it was made for",
        choices=POOLINGS,
    )
    initial_weights: str | None = option(
        None,
        "run or released model, such as tiny-imagenet-64, to start training from; also sets the network and image size",
        metavar="NAME",
    )
    width: int = option(32, "channels of a ResNet's first stage; no effect on alexnet", metavar="CHANNELS")
    stem_stride: int | None = option(
        None,
        "stride of a ResNet's first convolution; 1 keeps all the detail of a small image but takes about four times "
        "as long as 2 (default: 1 below 48 px, else 2)",
        metavar="1|2",
    )
    multiscale: bool = option(
        None,
        "add the paper's two low-resolution paths to the ConvNet path (default: only without pretrained weights)",
    )
    embedding_dim: int = option(
        None,
        "length of an embedding (4096 in the paper); 0 keeps the network's own features, without the linear layer "
        "(default: 0 for pretrained networks, else 256)",
        metavar="D",
    )
    general_dim: int = option(
        GENERAL_DIM, "length of a vector of the general head, for classes that are not trained on", metavar="D"
    )
    dropout: float = option(0.4, "dropout rate in alexnet's fully connected layers", metavar="RATE")
    seed: int = _seed()

    def __post_init__(self) -> None:
        if self.weights in ("none", ""):
            object.__setattr__(self, "weights", None)
        pretrained = self.pretrained
        by_default = {"image_size": 224 if pretrained else 64, "embedding_dim": 0 if pretrained else 256}
        for name, value in (by_default | {"multiscale": not pretrained}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_choice(self, pooling=POOLINGS)
        check_at_least(self, image_size=16, width=1, embedding_dim=0, general_dim=1, seed=0)
        check_share(self, "dropout")
        if self.stem_stride not in (None, 1, 2):
            raise InputError(f"--stem-stride is {self.stem_stride}; it must be 1 or 2")
        if self.pooling != "auto" and not self.backbone.startswith(HUB):
            raise InputError(f"--pooling {self.pooling} is for networks of KerasHub, --backbone {HUB}PRESET")
        if self.weights is not None and self.backbone in BACKBONES:
            raise InputError(f"--weights is {self.weights!r}; only networks of keras.applications have weights to load")
        if self.weights is not None and self.backbone.startswith(HUB):
            raise InputError(f"--weights is {self.weights!r}; networks of KerasHub have their own")
        if self.weights is not None and self.initial_weights is not None:
            raise InputError("--weights and --initial-weights both set the initial weights; give one of them")

    @property
    def pretrained(self) -> bool:
        """Whether the ConvNet path starts from weights that others trained."""
        return self.weights not in (None, "none", "") or self.backbone.startswith(HUB)


@dataclass(frozen=True)
class RankingConfig:
    """The losses: the triplets with their mining and proxies, and the classifier."""

    margin: float = option(1.0, "margin g of the triplet loss", metavar="G")
    distance: str = option(
        "squared", "distance inside the triplet loss (the search is always Euclidean)", choices=DISTANCES
    )
    mining: str = option(
        "semi-hard",
        "how negatives are chosen: none keeps the ones that were drawn, the others choose among all embeddings of the "
        "batch; hard also chooses the positives",
        choices=MININGS,
    )
    images_per_class: int = option(1, "queries per class that are placed in the same batch, for mining", metavar="K")
    proxies: int = option(
        0, "learned vectors per class, used as additional positives and negatives in the triplet stage", metavar="N"
    )
    label_smoothing: float = option(0.1, "label smoothing of the classifier", metavar="SHARE")
    scale: float = option(10.0, "the classifier's logits are the cosines times this", metavar="S")
    classifier_weight: float = option(1.0, "weight of the classifier's loss in the triplet stage", metavar="W")
    seed: int = _seed()

    def __post_init__(self) -> None:
        check_choice(self, distance=DISTANCES, mining=MININGS)
        check_at_least(self, images_per_class=1, proxies=0, classifier_weight=0, seed=0)
        check_positive(self, "margin", "scale")
        check_share(self, "label_smoothing")


@dataclass(frozen=True)
class AugmentationConfig:
    """The augmentation of the training images."""

    flip: bool = option(True, "mirror each training image with probability 0.5")
    shift: int = option(4, "shift each training image by up to this many pixels in each direction", metavar="PIXELS")
    crop: float = option(
        0.5,
        "softmax stage: crop each image at random to at least this share of its area, instead of shifting it; "
        "1: no cropping",
        metavar="SHARE",
    )
    color: float = option(
        0.0, "softmax stage: change brightness, contrast, and saturation by up to this share each", metavar="SHARE"
    )
    operations: int = option(
        0,
        "softmax stage: apply this many random operations of random strength to each image (RandAugment)",
        metavar="N",
    )
    erase: float = option(0.0, "softmax stage: probability of erasing a random rectangle of an image", metavar="P")
    mixup: float = option(0.0, "softmax stage: probability of blending an image with another", metavar="P")
    cutmix: float = option(
        0.0, "softmax stage: probability of pasting part of another image into an image", metavar="P"
    )

    def __post_init__(self) -> None:
        check_at_least(self, shift=0, operations=0)
        for name in ("color", "erase", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{flag(name)} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0 < self.crop <= 1:
            raise InputError(f"--crop is {self.crop}; it must be above 0 and at most 1")
        if self.mixup + self.cutmix > 1:
            raise InputError(f"--mixup and --cutmix are {self.mixup} and {self.cutmix}; their sum must be at most 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, and the precision of the computation."""

    optimizer: str = option(
        "muon",
        "muon, adamw, or sgd with Nesterov momentum 0.9",
        choices=OPTIMIZERS,
    )
    learning_rate: float = option(
        None,
        "peak learning rate, reached after the warm-up and followed by a cosine decay "
        f"(default: {', '.join(f'{rate:g} for {name}' for name, rate in RATES.items())}; {TUNING:g} times that for "
        "pretrained networks)",
        metavar="RATE",
    )
    freeze: str = option(
        "none",
        "blocks of the ConvNet path that keep their initial weights: none, all, or the first N, which are blocks of a "
        "transformer or stages of a ConvNet, between which the resolution falls",
        metavar="none|all|N",
    )
    layer_decay: float = option(
        1.0, "learning rate of each block of the ConvNet path, as a share of that of the next block", metavar="SHARE"
    )
    lora: int = option(
        0,
        "rank of the matrices that are trained in place of the ConvNet path's own kernels (LoRA); 0: off",
        metavar="RANK",
    )
    warmup: float = option(0.05, "share of all steps in which the learning rate warms up", metavar="SHARE")
    weight_decay: float = option(0.05, "decoupled weight decay", metavar="RATE")
    weight_average: float = option(
        0.0,
        "per-step decay of the running average of the weights, which replaces the last weights; 0: off",
        metavar="DECAY",
    )
    precision: str = option(
        "auto", "auto: mixed_bfloat16 where the GPU or CPU supports it in hardware, else float32", choices=PRECISIONS
    )
    deterministic: bool = option(False, "make float32 training on a CPU reproducible to the last digit; slower")

    def __post_init__(self) -> None:
        check_choice(self, optimizer=OPTIMIZERS, precision=PRECISIONS)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", RATES[self.optimizer])
        check_positive(self, "learning_rate")
        check_share(self, "warmup", "weight_average")
        check_at_least(self, lora=0)
        object.__setattr__(self, "freeze", str(self.freeze))
        if self.freeze not in ("none", "all") and not (self.freeze.isascii() and self.freeze.isdecimal()):
            raise InputError(f"--freeze is {self.freeze!r}; it must be none, all, or a number of blocks")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"--layer-decay is {self.layer_decay}; it must be above 0 and at most 1")
        if self.lora and self.weight_average:
            raise InputError("--lora cannot be combined with --weight-average")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"--weight-decay is {self.weight_decay}; it must be 0 or more")


@dataclass(frozen=True)
class ScheduleConfig:
    """The length, stages, and image sizes of training, and what happens in between."""

    epochs: int = option(
        30,
        "total epochs of both stages; in each, every training image is seen once (softmax) or is the query once "
        "(triplets); 0 takes the network as it is, and needs no --data",
        metavar="N",
    )
    pretrain_epochs: int | None = option(
        None,
        "how many of the epochs belong to the softmax stage, which trains a classifier before the triplet stage "
        "(default: 4 of 5)",
        metavar="N",
    )
    batch_size: int = option(64, "triplets per step", metavar="B")
    steps_per_epoch: int | None = option(None, "steps per epoch, to shorten epochs", metavar="N")
    progressive: str = option(
        "auto",
        "smaller image sizes to train at first, with their shares of the steps, such as 32:0.4,48:0.3; none; or auto: "
        "for the built-in ResNets, these two at 64 px, and proportional ones above",
        metavar="SIZE:SHARE,...",
    )
    eval_every: int = option(1, "epochs between rankings of the monitor images; 0: rank only at the end", metavar="N")
    early_stopping: int | None = option(
        None,
        "stop after this many rankings of the monitor images without a better precision@30 (map@r if whole classes "
        "are monitored), counted in the last stage and at the last image size",
        metavar="N",
    )
    checkpoint_minutes: float = option(5.0, "minutes between checkpoints within an epoch", metavar="N")

    def __post_init__(self) -> None:
        check_at_least(self, epochs=0, batch_size=1, eval_every=0, steps_per_epoch=1, early_stopping=1)
        check_positive(self, "checkpoint_minutes")
        if self.pretrain_epochs is not None and not 0 <= self.pretrain_epochs <= self.epochs:
            raise InputError(f"--pretrain-epochs is {self.pretrain_epochs}; it must be from 0 to --epochs")

    @property
    def softmax_epochs(self) -> int:
        """The number of epochs in the softmax stage, which comes first."""
        return self.epochs * 4 // 5 if self.pretrain_epochs is None else self.pretrain_epochs


@dataclass(frozen=True)
class RunConfig:
    """The name of the run, and the machines it trains on."""

    run: str | None = option(None, "name of the run folder in runs/ (default: date and time)", metavar="NAME")
    hosts: int = option(
        1, "machines that train together (with JAX); each runs this command with the same flags", metavar="N"
    )
    host_index: int = option(0, "index of this machine; 0 writes the run folder", metavar="I")
    coordinator: str | None = option(None, "address at which the other hosts reach host 0", metavar="ADDRESS:PORT")

    def __post_init__(self) -> None:
        check_at_least(self, hosts=1, host_index=0)
        if self.host_index >= self.hosts:
            raise InputError(f"--host-index is {self.host_index}; it counts from 0 and must be below --hosts")
        if self.hosts > 1 and self.coordinator is None:
            raise InputError("--hosts needs --coordinator ADDRESS:PORT, the address of host 0")
        if self.run is not None and (not self.run or self.run in (".", "..") or set(self.run) & set("/\\\0")):
            raise InputError(f"--run is {self.run!r}; it must be a folder's name, without a path")


@dataclass(frozen=True)
class Config(
    RunConfig, ScheduleConfig, OptimizerConfig, AugmentationConfig, RankingConfig, NetworkConfig, DataConfig
):  # fields are collected from the last base to the first
    """The settings of a training run; every field is also a flag of train.py (`image_size` is `--image-size`).

    `Config()` holds the defaults, `Config.preset("paper", data="my-folders")` those of a preset. A `Config` is an
    instance of each of its parts, and can be passed where one is expected.

    Raises:
        InputError: A value is out of range, or two values contradict each other.

    Example:
        >>> config = Config(data="my-folders", epochs=5, backbone="resnet10")
        >>> config.learning_rate, config.softmax_epochs
        (0.006, 4)
        >>> config.part(OptimizerConfig).optimizer
        'muon'
    """

    def __post_init__(self) -> None:
        if self.learning_rate is None and self.pretrained and self.optimizer in RATES:
            object.__setattr__(self, "learning_rate", RATES[self.optimizer] * TUNING)
        for part in PARTS:
            part.__post_init__(self)
        if len(self.sizes) > 1 and self.backbone == "alexnet":
            raise InputError("--progressive needs a network whose weights fit every image size; alexnet's do not")
        if len(self.sizes) > 1 and self.lora:
            raise InputError("--lora needs one image size: --progressive none")
        if self.shift >= self.image_size:
            raise InputError(f"--shift is {self.shift}; it must be below --image-size ({self.image_size})")

    def part(self, kind: type[Part]) -> Part:
        """Returns the settings of one part, such as `config.part(NetworkConfig)`.

        Args:
            kind: The class of the part.
        """
        return kind(**{item.name: getattr(self, item.name) for item in fields(kind)})  # type: ignore[arg-type]

    @property
    def sizes(self) -> tuple[tuple[int, float], ...]:
        """The image sizes to train at, ascending, each with its share of all steps; the last is `image_size`.

        Raises:
            InputError: `progressive` cannot be parsed.
        """
        if self.progressive != "auto":
            return _read_sizes(self.progressive, self.image_size)
        small_first = self.backbone in RESNETS and self.image_size >= 64
        shares = ((1 / 2, 0.4), (3 / 4, 0.3)) if small_first else ()
        sizes = [(round(self.image_size * part / 8) * 8, share) for part, share in shares]
        return (*sizes, (self.image_size, 1 - sum(share for _, share in sizes)))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values, for config.json."""
        return asdict(self)

    @classmethod
    def preset(cls, name: str, **settings: Any) -> "Config":
        """Returns the defaults of a preset of `dr_keras.presets` with `settings` on top.

        Raises:
            InputError: There is no such preset, or a setting is out of range.

        Example:
            >>> Config.preset("paper", margin=0.5).backbone
            'alexnet'
        """
        return cls(**with_preset(name, settings))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Returns the settings from the output of `to_dict`.

        Raises:
            InputError: A field is unknown to this version.
        """
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise InputError(f"unknown settings {', '.join(unknown)}; a newer dr_keras wrote them, so use that version")
        return cls(**values)


PARTS = (DataConfig, NetworkConfig, RankingConfig, AugmentationConfig, OptimizerConfig, ScheduleConfig, RunConfig)


def _read_sizes(progressive: str, image_size: int) -> tuple[tuple[int, float], ...]:
    """Parses `--progressive` into `Config.sizes`."""
    text = "" if progressive == "none" else progressive
    parts = [part.partition(":") for part in text.split(",") if part.strip()]
    try:
        sizes = [(int(size), float(share)) for size, _, share in parts]
    except ValueError:
        raise InputError(f"--progressive is {progressive!r}; write SIZE:SHARE, such as 32:0.4,48:0.3") from None
    ascending = [*(size for size, _ in sizes), image_size]
    rest = 1 - sum(share for _, share in sizes)
    if ascending != sorted(set(ascending)) or ascending[0] < 16:
        raise InputError(f"--progressive is {progressive!r}; sizes must rise from 16 or more to --image-size")
    if any(share <= 0 for _, share in sizes) or rest <= 0:
        raise InputError(f"--progressive is {progressive!r}; shares must be above 0, their sum below 1")
    return (*sizes, (image_size, rest))
