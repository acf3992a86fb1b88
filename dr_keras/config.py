"""What a training run is told: one frozen dataclass, from whose fields the flags of train.py are made.

Imports neither TensorFlow nor Keras, so that `train.py --help` answers at once.
"""

import argparse
import os
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dr_keras.errors import InputError
from dr_keras.presets import PRESETS

RESNETS = ("resnet10", "resnet18", "resnet34")
BACKBONES = (*RESNETS, "alexnet")
DISTANCES = ("euclidean", "squared")
RESIZES = ("stretch", "crop", "pad")
STORES = ("auto", "memory", "disk", "stream", "device")
RATES = {"muon": 6e-3, "adamw": 2e-3, "sgd": 0.18}  # at 192 images a step; the last one was never tuned
OPTIMIZERS = tuple(RATES)
PRECISIONS = ("auto", "float32", "mixed_bfloat16")
MININGS = ("none", "semi-hard", "hard", "distance-weighted")


def _option(default: Any, text: str, *, choices: tuple[str, ...] | None = None, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices, "metavar": metavar})


@dataclass(frozen=True)
class Config:
    """The settings of a training run; every field is also a flag of train.py (`image_size` is `--image-size`).

    `Config()` holds the defaults, `Config.preset("paper", data="my-folders")` those of a preset. Raises `InputError`
    when a value is out of its range.
    """

    data: str | None = _option(
        None,
        "folder of class folders (or with train/ and val/ of them), a zip or tar file of one, a manifest FILE.csv with "
        "columns path, label and perhaps split, 'tfds:NAME', 'digits', or 'tiny-imagenet', downloaded on first use "
        "(default: tiny-imagenet)",
        metavar="DATA",
    )
    run: str | None = _option(None, "name of the run folder made in runs/; date and time without it", metavar="NAME")
    image_size: int = _option(64, "images are resized to this many pixels a side", metavar="PIXELS")
    resize: str = _option(
        "stretch", "stretch; crop: the middle square; pad: all of it, filled up with grey", choices=RESIZES
    )
    store: str = _option(
        "auto",
        "where decoded images are kept: memory, disk (in the cache, for later runs too), stream: nowhere, they are "
        "decoded each time, or device: in the GPU's memory, where they are augmented too (with JAX)",
        choices=STORES,
    )
    backbone: str = _option(
        "resnet18",
        f"network of the ConvNet path: {', '.join(BACKBONES)}, or any of keras.applications, such as EfficientNetB0",
        metavar="NAME",
    )
    weights: str | None = _option(
        None,
        "what a network of keras.applications starts from: none (random), imagenet (downloaded) or a weights file",
        metavar="none|imagenet|FILE",
    )
    initial_weights: str | None = _option(
        None,
        "a run or released model, such as tiny-imagenet-64, whose weights training starts from; its network and image "
        "size are taken over",
        metavar="NAME",
    )
    width: int = _option(32, "channels of a ResNet's first stage; no effect on alexnet", metavar="CHANNELS")
    stem_stride: int | None = _option(
        None,
        "stride of a ResNet's first convolution: 1 sees all detail of a small image and takes about four times as "
        "long as 2 (default: 1 below 48 px, else 2)",
        metavar="1|2",
    )
    multiscale: bool = _option(True, "the paper's two low-resolution paths beside the ConvNet path")
    embedding_dim: int = _option(256, "length of an embedding; the paper's is 4096", metavar="D")
    dropout: float = _option(0.4, "share of units dropped in alexnet's fully connected layers", metavar="RATE")
    margin: float = _option(1.0, "the gap g of the triplet loss", metavar="G")
    distance: str = _option(
        "squared", "distance inside the triplet loss (the search is always Euclidean)", choices=DISTANCES
    )
    mining: str = _option(
        "semi-hard",
        "negatives of the triplets: as they were drawn, or chosen among all embeddings of the batch; hard chooses "
        "the positives too",
        choices=MININGS,
    )
    images_per_class: int = _option(
        1, "queries of one class that stand together in a batch, for mining among them", metavar="K"
    )
    proxies: int = _option(
        0, "learned vectors a class that are further positives and negatives in the triplet stage", metavar="N"
    )
    epochs: int = _option(
        30,
        "of both stages together; in one, each training image is seen once (softmax) or is the query once (triplets)",
        metavar="N",
    )
    pretrain_epochs: int | None = _option(
        None,
        "how many of the epochs are the softmax stage, which classifies the images before the triplets come "
        "(default: 4 of 5)",
        metavar="N",
    )
    label_smoothing: float = _option(0.1, "label smoothing of the classifier", metavar="SHARE")
    scale: float = _option(10.0, "the classifier's logits are the cosines times this", metavar="S")
    classifier_weight: float = _option(
        1.0, "weight of the classifier's loss beside the triplets' once the softmax stage is over", metavar="W"
    )
    progressive: str = _option(
        "auto",
        "smaller images first: sizes and their shares of the steps, such as 32:0.4,48:0.3; none; or auto: those two "
        "for 64 px and the like for larger images, with our own ResNets",
        metavar="SIZE:SHARE,...",
    )
    steps_per_epoch: int | None = _option(None, "shorter epochs, of this many steps", metavar="N")
    batch_size: int = _option(64, "triplets a step", metavar="B")
    optimizer: str = _option(
        "muon",
        "muon, adamw, or sgd with Nesterov momentum 0.9",
        choices=OPTIMIZERS,
    )
    learning_rate: float = _option(
        None,
        "its peak, after the warm-up; then it falls along a cosine "
        f"(default: {', '.join(f'{rate:g} for {name}' for name, rate in RATES.items())})",
        metavar="RATE",
    )
    warmup: float = _option(0.05, "share of all steps over which the learning rate rises", metavar="SHARE")
    weight_decay: float = _option(0.05, "decoupled weight decay", metavar="RATE")
    flip: bool = _option(True, "mirror each training image with probability 0.5")
    shift: int = _option(4, "shift each training image by up to this many pixels each way", metavar="PIXELS")
    crop: float = _option(
        0.5,
        "softmax stage: show a random part of each image of at least this share of its area, instead of the shift; "
        "1: all of it",
        metavar="SHARE",
    )
    colour: float = _option(
        0.0, "softmax stage: change brightness, contrast and saturation by up to this share each", metavar="SHARE"
    )
    operations: int = _option(
        0,
        "softmax stage: change each image by this many random operations of random strength (RandAugment)",
        metavar="N",
    )
    erase: float = _option(
        0.0, "softmax stage: erase a random rectangle of an image with this probability", metavar="P"
    )
    mixup: float = _option(0.0, "softmax stage: blend an image with another with this probability", metavar="P")
    cutmix: float = _option(
        0.0, "softmax stage: paste a part of another into an image with this probability", metavar="P"
    )
    weight_average: float = _option(
        0.0,
        "decay a step of the running average of the weights, which is what is kept; 0: the last weights",
        metavar="DECAY",
    )
    monitor: float = _option(0.01, "share of each class's training images kept for watching the run", metavar="SHARE")
    validation: float = _option(
        0.1, "share of each class held out for evaluate.py where the data set has no split of its own", metavar="SHARE"
    )
    eval_every: int = _option(1, "epochs between two rankings of the monitor images; 0: only at the end", metavar="N")
    checkpoint_minutes: float = _option(5.0, "minutes between two checkpoints inside an epoch", metavar="N")
    early_stopping: int | None = _option(
        None,
        "stop when this many rankings of the monitor images, in the last stage and at the last image size, brought no "
        "better precision@30; where whole classes are watched, no better map@r",
        metavar="N",
    )
    deterministic: bool = _option(False, "make float32 training on a CPU repeat itself to the last digit; slower")
    precision: str = _option(
        "auto", "auto: mixed_bfloat16 where the GPU or CPU is made for it, else float32", choices=PRECISIONS
    )
    hosts: int = _option(1, "machines that train together, by JAX; each runs train.py with the same flags", metavar="N")
    host_index: int = _option(0, "which of them this is; 0 writes the run folder", metavar="I")
    coordinator: str | None = _option(None, "address of host 0 that the others reach", metavar="ADDRESS:PORT")
    seed: int = _option(0, "seeds the splits, the triplets, the augmentation and the weights", metavar="N")

    def __post_init__(self) -> None:
        if self.data is not None:
            object.__setattr__(self, "data", os.fspath(self.data))  # a Path is welcome, and config.json holds text
        for name, choices in (
            ("resize", RESIZES),
            ("store", STORES),
            ("distance", DISTANCES),
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
            ("mining", MININGS),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{_flag(name)} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name, least in (
            ("image_size", 16),
            ("width", 1),
            ("embedding_dim", 1),
            ("epochs", 1),
            ("batch_size", 1),
            ("shift", 0),
            ("eval_every", 0),
            ("hosts", 1),
            ("host_index", 0),
            ("seed", 0),
            ("images_per_class", 1),
            ("proxies", 0),
            ("classifier_weight", 0),
            ("operations", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{_flag(name)} is {getattr(self, name)}; it must be at least {least}")
        for name in ("steps_per_epoch", "early_stopping"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{_flag(name)} is {getattr(self, name)}; it must be at least 1")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", RATES[self.optimizer])
        for name in ("margin", "learning_rate", "checkpoint_minutes", "scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{_flag(name)} is {getattr(self, name)}; it must be a positive number")
        for name in ("dropout", "monitor", "validation", "warmup", "label_smoothing", "weight_average"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{_flag(name)} is {getattr(self, name)}; it must be a share from 0 up to 1")
        for name in ("colour", "erase", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{_flag(name)} is {getattr(self, name)}; it must be from 0 to 1")
        if len(self.sizes) > 1 and self.backbone == "alexnet":
            raise InputError("--progressive needs a network whose weights fit every image size; alexnet's do not")
        if not 0 < self.crop <= 1:
            raise InputError(f"--crop is {self.crop}; it must be above 0 and at most 1")
        if self.stem_stride not in (None, 1, 2):
            raise InputError(f"--stem-stride is {self.stem_stride}; it must be 1 or 2")
        if self.mixup + self.cutmix > 1:
            raise InputError(f"--mixup and --cutmix are {self.mixup} and {self.cutmix}; together at most 1")
        if self.pretrain_epochs is not None and not 0 <= self.pretrain_epochs <= self.epochs:
            raise InputError(f"--pretrain-epochs is {self.pretrain_epochs}; it must be from 0 to --epochs")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"--weight-decay is {self.weight_decay}; it must be 0 or more")
        if self.shift >= self.image_size:
            raise InputError(f"--shift is {self.shift}; it must be below --image-size ({self.image_size})")
        if self.weights in ("none", ""):
            object.__setattr__(self, "weights", None)
        if self.weights is not None and self.backbone in BACKBONES:
            raise InputError(f"--weights is {self.weights!r}; only networks of keras.applications have weights to load")
        if self.weights is not None and self.initial_weights is not None:
            raise InputError("--weights and --initial-weights both say what training starts from; give one of them")
        if self.host_index >= self.hosts:
            raise InputError(f"--host-index is {self.host_index}; it counts from 0 and must be below --hosts")
        if self.hosts > 1 and self.coordinator is None:
            raise InputError("--hosts needs --coordinator ADDRESS:PORT, the address of host 0")
        if self.run is not None and (not self.run or self.run in (".", "..") or set(self.run) & set("/\\\0")):
            raise InputError(f"--run is {self.run!r}; it must be a folder's name, without a path")

    @property
    def backend(self) -> str | None:
        """The Keras backend that these settings ask for; None for whichever is set."""
        return "jax" if self.store == "device" else None

    @property
    def softmax_epochs(self) -> int:
        """The epochs of the softmax stage: the first ones of all `epochs`."""
        return self.epochs * 4 // 5 if self.pretrain_epochs is None else self.pretrain_epochs

    @property
    def sizes(self) -> tuple[tuple[int, float], ...]:
        """The image sizes of the training, ascending, each with its share of all steps; the last is `image_size`.

        Raises:
            InputError: `progressive` cannot be read.
        """
        if self.progressive == "auto":
            whole = self.backbone not in RESNETS or self.image_size < 64
            shares = () if whole else ((1 / 2, 0.4), (3 / 4, 0.3))
            sizes = [(round(self.image_size * part / 8) * 8, share) for part, share in shares]
            return (*sizes, (self.image_size, 1 - sum(share for _, share in sizes)))
        text = "" if self.progressive == "none" else self.progressive
        parts = [part.partition(":") for part in text.split(",") if part.strip()]
        try:
            sizes = [(int(size), float(share)) for size, _, share in parts]
        except ValueError:
            raise InputError(
                f"--progressive is {self.progressive!r}; write SIZE:SHARE, such as 32:0.4,48:0.3"
            ) from None
        ascending = [*(size for size, _ in sizes), self.image_size]
        rest = 1 - sum(share for _, share in sizes)
        if ascending != sorted(set(ascending)) or ascending[0] < 16:
            raise InputError(f"--progressive is {self.progressive!r}; sizes must rise from 16 or more to --image-size")
        if any(share <= 0 for _, share in sizes) or rest <= 0:
            raise InputError(f"--progressive is {self.progressive!r}; shares must be above 0, their sum below 1")
        return (*sizes, (self.image_size, rest))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for config.json."""
        return asdict(self)

    @classmethod
    def preset(cls, name: str, **settings: Any) -> "Config":
        """The defaults of a preset with `settings` on top. Raises `InputError` for a preset that does not exist."""
        if name not in PRESETS:
            raise InputError(f"--preset is {name!r}; choose one of {', '.join(PRESETS)}")
        return cls(**_with_preset(name, settings))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of `to_dict`. Raises `InputError` at a field that this version does not know."""
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise InputError(f"unknown settings {', '.join(unknown)}; a newer dr_keras wrote them, so use that one")
        return cls(**values)


# The settings that decide which weights fit.
ARCHITECTURE = ("image_size", "backbone", "width", "stem_stride", "multiscale", "embedding_dim")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--preset` and one flag for each field of `Config` to `parser`; `parse` reads them."""
    hints = typing.get_type_hints(Config)
    for item in fields(Config):
        kind = hints[item.name]
        if isinstance(kind, types.UnionType):  # `int | None`
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        text = item.metadata["help"] + ("" if item.default is None else f" (default: {item.default})")
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": kind, "choices": item.metadata["choices"], "metavar": item.metadata["metavar"]}
        parser.add_argument(_flag(item.name), **options)
    parser.add_argument(
        "--preset", choices=PRESETS, default="default", help="a named set of defaults, which other flags override"
    )


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[dict[str, Any], argparse.Namespace]:
    """Parses the command line into the settings that it gives, those of its preset included, and what is left."""
    given = vars(parser.parse_args(arguments))
    names = {item.name for item in fields(Config)}
    said = _with_preset(given.pop("preset"), {name: value for name, value in given.items() if name in names})
    return said, argparse.Namespace(**{name: value for name, value in given.items() if name not in names})


def _with_preset(name: str, said: dict[str, Any]) -> dict[str, Any]:
    """What a preset sets and, on top, what is said; the softmax stage keeps its share where other epochs are said."""
    preset = PRESETS[name]
    if preset.get("pretrain_epochs") and "epochs" in said:
        share = round(preset["pretrain_epochs"] * said["epochs"] / preset["epochs"])
        # Triplets get an epoch wherever there are two.
        preset = preset | {"pretrain_epochs": max(1, min(share, said["epochs"] - 1))}
    return preset | said


def flags(names: Iterable[str]) -> str:
    """Fields as a person knows them: `--image-size, --seed`."""
    return ", ".join(map(_flag, names))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
