"""The settings of the images: where they come from, and how they are augmented."""

import os
from dataclasses import dataclass

from dr_keras.config.seed import seed_option
from dr_keras.errors import InputError
from dr_keras.options import check_at_least, check_choice, check_share, flag, option

RESIZES = ("stretch", "crop", "pad")
PROTOCOLS = ("standard", "class-disjoint")
STORES = ("auto", "memory", "disk", "stream", "device")
MONITOR, VALIDATION = 0.01, 0.1  # shares of each class


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
    monitor: float = option(
        None,
        f"share of each class's training images held out to monitor the run (default: {MONITOR}; 0 with --triplets)",
        metavar="SHARE",
    )
    validation: float = option(
        None,
        "share of each class held out for evaluation if the data set has no validation split "
        f"(default: {VALIDATION}; 0 with --triplets)",
        metavar="SHARE",
    )
    protocol: str = option(
        "standard",
        "class-disjoint: train on the first half of the classes (or on those of the data set's own splits, if these "
        "have none in common) and hold the others out, as is usual in metric learning",
        choices=PROTOCOLS,
    )
    seed: int = seed_option()

    def __post_init__(self) -> None:
        if self.data is not None:
            object.__setattr__(self, "data", os.fspath(self.data))  # a Path is accepted, but config.json needs a string
        for name, value in (("monitor", MONITOR), ("validation", VALIDATION)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_choice(self, resize=RESIZES, store=STORES, protocol=PROTOCOLS)
        check_at_least(self, seed=0)
        check_share(self, "monitor", "validation")

    @property
    def backend(self) -> str | None:
        """The Keras backend that these settings require; None for the configured one."""
        return "jax" if self.store == "device" else None


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
    strong_after: float = option(
        0.0,
        "share of all steps, as in --progressive, that are trained without --operations, --erase, --mixup and "
        "--cutmix; these begin after them",
        metavar="SHARE",
    )

    def __post_init__(self) -> None:
        check_at_least(self, shift=0, operations=0)
        for name in ("color", "erase", "mixup", "cutmix", "strong_after"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{flag(name)} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0 < self.crop <= 1:
            raise InputError(f"--crop is {self.crop}; it must be above 0 and at most 1")
        if self.mixup + self.cutmix > 1:
            raise InputError(f"--mixup and --cutmix are {self.mixup} and {self.cutmix}; their sum must be at most 1")
