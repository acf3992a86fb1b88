"""Which images watch a run or are held out: a share of each class or, where classes are too small, whole classes.

Splits are a function of the seed, the name of a class and its files, so that a class keeps its own when others come.
What a split of whole classes holds is ranked among itself, as training leaves nothing of its classes.
"""

import os
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from dr_keras.data.splits import MONITOR, SPLIT_NAMES, TRAIN, VALIDATION

FEWEST = 10  # classes with a pair; of fewer none can be spared
LEAST = 2  # classes of a split that is made of whole ones: among the images of a single class every answer is right
NAMED = 5  # classes that a note names

_CLASSES = 3  # the random stream that chooses whole classes; images of a class are chosen by their split's own


def split(
    train: Mapping[str, Sequence[str]], monitored: frozenset[str], shares: Mapping[int, float], seed: int
) -> dict[str, np.ndarray]:
    """Splits the training images of a data set.

    Of each class a share goes to each split, and two images are always left for a pair. If a split gets no image at all
    in this way, shares of the classes with a pair are taken instead, as a whole; half of them are always left. Of fewer
    than `FEWEST` such classes none is taken.

    Args:
        train: the sorted images of each class.
        monitored: those that the data set itself gives to the monitor split.
        shares: of MONITOR and VALIDATION; without those that the data set makes itself.
        seed: seeds the choices.

    Returns:
        For each class (n,) uint8 of TRAIN, MONITOR and VALIDATION.
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
    """(n,): the split of each image of a class, a seeded share in each, at least one, always leaving two for a pair."""
    own = np.full(len(images), TRAIN, np.uint8)
    for number, share in shares.items():
        rows = np.flatnonzero(own == TRAIN)
        count = max(0, min(max(1, round(share * len(rows))), len(rows) - 2))
        own[np.random.default_rng((seed, number, _checksum(name))).permutation(rows)[:count]] = number
    return own


def _whole_classes(names: Sequence[str], shares: Mapping[int, float], seed: int) -> dict[str, int]:
    """The classes that are taken as a whole, each with its split; none of too few."""
    if len(names) < FEWEST:
        return {}
    counts = {number: max(LEAST, round(share * len(names))) for number, share in shares.items()}
    while sum(counts.values()) > len(names) // 2:
        counts[max(counts, key=lambda number: counts[number])] -= 1
    order = sorted(names, key=lambda name: np.random.default_rng((seed, _CLASSES, _checksum(name))).random())
    ends = {VALIDATION: order, MONITOR: order[::-1]}  # from both ends, so that the one's share moves none of the other
    return {name: number for number, count in counts.items() for name in ends[number][:count]}


def _checksum(name: str) -> int:
    return zlib.crc32(os.fsencode(name))


def among_themselves(labels: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> bool:
    """Whether queries are ranked among each other, as the gallery has no image of any of their classes.

    Args:
        labels: (M,) the class of each image.
        queries, gallery: which images they are: (M,) bool, or row numbers.
    """
    return not np.isin(labels[queries], labels[gallery]).any()


def notes(classes: Sequence[str], counts: np.ndarray) -> list[str]:
    """What a person should know of a data set's splits.

    Args:
        classes: C names.
        counts: (C, 3), the images of each class in each split.
    """
    train = counts[:, TRAIN] > 0
    whole = {
        number: of for number in (MONITOR, VALIDATION) if (of := counts[:, number] > 0).any() and not (of & train).any()
    }
    said = []
    if whole:
        parts = [f"{of.sum():,} for {SPLIT_NAMES[number]}" for number, of in whole.items()]
        said.append(
            f"the classes are too small to hold out single images, so whole classes are: {' and '.join(parts)}; none "
            "of their images is trained on, and those of a split are ranked among themselves"
        )
    if not counts[:, MONITOR].any():
        said.append("no image is watched, so --early-stopping has nothing to go by" + _why(counts))
    if not counts[:, VALIDATION].any():
        said.append("no image is held out, so evaluate.py has no query" + _why(counts))
    single = np.flatnonzero(counts[:, TRAIN] == 1)
    empty = np.flatnonzero(~np.any([train, *whole.values()], axis=0))
    if len(single):
        said.append(f"classes with one training image serve as negatives only: {_named(classes, single)}")
    if len(empty):
        said.append(f"classes without a training image take no part in training: {_named(classes, empty)}")
    return said


def _why(counts: np.ndarray) -> str:
    pairs = int((counts.sum(axis=1) > 1).sum())
    small = counts.sum(axis=1).max(initial=0) < 4 and pairs < FEWEST
    return f": single images need larger classes, and whole classes {FEWEST} with two images" if small else ""


def _named(classes: Sequence[str], labels: np.ndarray) -> str:
    more = len(labels) - NAMED
    return ", ".join(classes[label] for label in labels[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
