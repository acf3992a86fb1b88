"""Chooses the monitor and held-out images: a share of each class or, if the classes are too small, whole classes.

The choice depends only on the seed, the name of a class, and its files, so a class keeps its splits when others are
added. The images of a split of whole classes are ranked among themselves, because its classes have no training images.
"""

import os
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from dr_keras.data.splits import MONITOR, SPLIT_NAMES, TRAIN, VALIDATION
from dr_keras.invocation import command

MIN_CLASSES = 10  # classes with a pair of images; with fewer, none can be spared
MIN_SPLIT_CLASSES = 2  # in a split of whole classes: within a single class, every result would be right
MAX_LISTED = 5  # classes listed in a note

_CLASSES = 3  # the random stream that chooses whole classes; for single images, the stream is the split's number


def split(
    train: Mapping[str, Sequence[str]], monitored: frozenset[str], shares: Mapping[int, float], seed: int
) -> dict[str, np.ndarray]:
    """Splits the training images of a data set.

    A share of each class goes to each split, and at least two images of each class remain for a pair. If a split would
    get no image at all this way, each split gets a share of the classes with a pair instead, as whole classes, and at
    least half of those remain for training. If there are fewer than `MIN_CLASSES` such classes, none is taken.

    Args:
        train: The sorted images of each class.
        monitored: The images that the data set itself assigns to the monitor split.
        shares: The shares of MONITOR and VALIDATION, without splits that the data set already has.
        seed: Seeds the choices.

    Returns:
        For each class of n images, (n,) uint8 of TRAIN, MONITOR and VALIDATION.
    """
    shares = {number: shares[number] for number in (VALIDATION, MONITOR) if shares.get(number)}
    if monitored:
        shares.pop(MONITOR, None)
    splits = {name: _parts_of(name, images, shares, seed) for name, images in train.items()}
    if not all(any((own == number).any() for own in splits.values()) for number in shares):
        free = [name for name, images in train.items() if len(images) > 1 and monitored.isdisjoint(images)]
        if chosen := _whole_classes(free, shares, seed):
            splits = {name: np.full(len(own), chosen.get(name, TRAIN), np.uint8) for name, own in splits.items()}
    for name, images in train.items() if monitored else ():
        splits[name][[row for row, image in enumerate(images) if image in monitored]] = MONITOR
    return splits


def _parts_of(name: str, images: Sequence[str], shares: Mapping[int, float], seed: int) -> np.ndarray:
    """The split of each image of a class, (n,): at least one image in each split, but two remain for a pair."""
    own = np.full(len(images), TRAIN, np.uint8)
    for number, share in shares.items():
        rows = np.flatnonzero(own == TRAIN)
        count = max(0, min(max(1, round(share * len(rows))), len(rows) - 2))
        own[np.random.default_rng((seed, number, _checksum(name))).permutation(rows)[:count]] = number
    return own


def _whole_classes(names: Sequence[str], shares: Mapping[int, float], seed: int) -> dict[str, int]:
    """The classes that are taken as a whole, with their splits; empty if there are too few classes."""
    if len(names) < MIN_CLASSES:
        return {}
    counts = {number: max(MIN_SPLIT_CLASSES, round(share * len(names))) for number, share in shares.items()}
    while sum(counts.values()) > len(names) // 2:
        counts[max(counts, key=lambda number: counts[number])] -= 1
    order = sorted(names, key=lambda name: np.random.default_rng((seed, _CLASSES, _checksum(name))).random())
    ends = {VALIDATION: order, MONITOR: order[::-1]}  # from both ends, so that neither share affects the other split
    return {name: number for number, count in counts.items() for name in ends[number][:count]}


def _checksum(name: str) -> int:
    return zlib.crc32(os.fsencode(name))


def among_themselves(labels: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> bool:
    """Returns whether queries must be ranked among themselves, because the gallery has none of their classes.

    Args:
        labels: (M,) the class of each image.
        queries, gallery: Masks (M,) or row numbers of these images.
    """
    return not np.isin(labels[queries], labels[gallery]).any()


def notes(classes: Sequence[str], counts: np.ndarray) -> list[str]:
    """Returns what the user should know about the splits of a data set.

    Args:
        classes: C names.
        counts: (C, 3 or more), the number of images of each class in each split.
    """
    train = counts[:, TRAIN] > 0
    whole = {
        number: of for number in (MONITOR, VALIDATION) if (of := counts[:, number] > 0).any() and not (of & train).any()
    }
    said = []
    if whole:
        parts = [f"{of.sum():,} for {SPLIT_NAMES[number]}" for number, of in whole.items()]
        said.append(
            f"whole classes are set aside: {' and '.join(parts)}; none of their images is trained on, and those of "
            "each split are ranked among themselves"
        )
    if not counts[:, MONITOR].any():
        said.append("there are no monitor images, so --early-stopping has no effect" + _why(counts))
    if not counts[:, VALIDATION].any():
        said.append(f"no image is held out, so {command('evaluate')} has no queries" + _why(counts))
    single = np.flatnonzero(counts[:, TRAIN] == 1)
    empty = np.flatnonzero(~np.any([train, *whole.values()], axis=0))
    if len(single):
        said.append(f"classes with a single training image serve only as negatives: {_named(classes, single)}")
    if len(empty):
        said.append(f"classes without training images are not used in training: {_named(classes, empty)}")
    return said


def _why(counts: np.ndarray) -> str:
    pairs = int((counts.sum(axis=1) > 1).sum())
    small = counts.sum(axis=1).max(initial=0) < 4 and pairs < MIN_CLASSES
    return f": the classes must be larger, or there must be {MIN_CLASSES} with two images" if small else ""


def _named(classes: Sequence[str], labels: np.ndarray) -> str:
    more = len(labels) - MAX_LISTED
    return ", ".join(classes[label] for label in labels[:MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")
