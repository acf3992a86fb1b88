"""The settings of a training run: one frozen dataclass per concern, and `Config`, which combines them.

Each module takes only the parts that it needs; only `dr_keras.training.run`, the commands, and `dr_keras.runs` see a
whole `Config`. The flags of train.py are generated from its fields. This package imports neither TensorFlow nor Keras,
so that `train.py --help` is fast.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from dr_keras.config.data import PROTOCOLS, RESIZES, STORES, AugmentationConfig, DataConfig
from dr_keras.config.network import (
    ARCHITECTURE,
    BACKBONES,
    DISTANCES,
    HUB,
    MININGS,
    POOLINGS,
    RESNETS,
    NetworkConfig,
    RankingConfig,
)
from dr_keras.config.sampling import COLOR, NETWORK, SAMPLINGS, SamplingConfig
from dr_keras.config.training import (
    OPTIMIZERS,
    PRECISIONS,
    RATES,
    TUNING,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dr_keras.errors import InputError
from dr_keras.options import flags
from dr_keras.presets import with_preset

__all__ = [
    "ARCHITECTURE",
    "BACKBONES",
    "COLOR",
    "DISTANCES",
    "HUB",
    "MININGS",
    "NETWORK",
    "OPTIMIZERS",
    "PARTS",
    "POOLINGS",
    "PRECISIONS",
    "PROTOCOLS",
    "RATES",
    "RESIZES",
    "RESNETS",
    "SAMPLINGS",
    "STORES",
    "TUNING",
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "RankingConfig",
    "RunConfig",
    "SamplingConfig",
    "ScheduleConfig",
]

Part = TypeVar("Part")


@dataclass(frozen=True)
class Config(
    RunConfig,
    ScheduleConfig,
    OptimizerConfig,
    AugmentationConfig,
    SamplingConfig,
    RankingConfig,
    NetworkConfig,
    DataConfig,
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
        if self.backbone_rate is None and self.pretrained:
            object.__setattr__(self, "backbone_rate", TUNING)
        if self.triplets:
            self._train_on_judgments()
        for part in PARTS:
            part.__post_init__(self)
        if len(self.sizes) > 1 and self.backbone == "alexnet":
            raise InputError("--progressive needs a network whose weights fit every image size; alexnet's do not")
        if len(self.sizes) > 1 and self.lora:
            raise InputError("--lora needs one image size: --progressive none")
        if self.sampling == "relevance" and self.images_per_class > 1:
            raise InputError("--images-per-class is for --sampling uniform")
        if self.shift >= self.image_size:
            raise InputError(f"--shift is {self.shift}; it must be below --image-size ({self.image_size})")

    def _train_on_judgments(self) -> None:
        """Turns off what needs classes; images that are held out would take their judgments with them."""
        off = {"mining": "none", "classifier_weight": 0.0, "pretrain_epochs": 0, "monitor": 0.0, "validation": 0.0}
        for name, value in off.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        wrong = [
            name for name in ("mining", "classifier_weight", "pretrain_epochs") if getattr(self, name) != off[name]
        ]
        wrong += ["proxies"] if self.proxies else []
        if wrong:
            raise InputError(f"--triplets trains on judgments alone, without classes; leave out {flags(wrong)}")

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
        small_first = self.backbone in RESNETS and self.image_size >= 64 and not self.triplets
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


PARTS = (
    DataConfig,
    NetworkConfig,
    RankingConfig,
    SamplingConfig,
    AugmentationConfig,
    OptimizerConfig,
    ScheduleConfig,
    RunConfig,
)


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
