"""The splits of a data set: their numbers, their names, and the names that people give them.

This is the only table of split names, used for folders, manifests, TFDS data sets, and indexes.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from dr_keras.errors import InputError

TRAIN, MONITOR, VALIDATION, GALLERY = 0, 1, 2, 3  # as stored in a catalog
SPLIT_NAMES = ("train", "monitor", "validation", "gallery")  # by number, as written to data reports and indexes

# What a name means, ignoring case. Of several held-out splits, the first in this order is used for evaluation.
NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "holdout"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsupervised", "pred", "predict", "prediction"), "unlabeled"),
}
# The split for each name in the `split` column of a manifest: test images are held out like validation images.
NUMBER_OF_NAME = {
    "monitor": MONITOR,
    "query": VALIDATION,
    "gallery": GALLERY,  # images that are searched in evaluation, but not trained on
    **{name: TRAIN if kind == "train" else VALIDATION for name, kind in NAMES.items() if kind != "unlabeled"},
}
_HELD_OUT_KINDS = ("validation", "test")
_FILLERS = frozenset(("set", "data", "dataset", "images", "image", "imgs", "img", "split", "folder", "files"))
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+")


@dataclass(frozen=True)
class Splits:
    """The folders of a data set that are its splits.

    Attributes:
        train: The folder with the training images.
        held_out: The folders with validation and test images; the first is the one used for evaluation.
        unlabeled: The folders whose images have no classes; they are not used.
    """

    train: str
    held_out: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = ()

    def kind(self, name: str) -> str | None:
        """Returns 'train', 'validation', 'test' or 'unlabeled'; None for a folder that is not a split."""
        if name in (self.train, *self.held_out, *self.unlabeled):
            found = meaning(name)
            return found[0] if found else None
        return None


def meaning(name: str) -> tuple[str, str] | None:
    """Interprets the name of a folder as the name of a split.

    Words such as 'set' and numbers are ignored.

    Args:
        name: The name, in upper or lower case.

    Returns:
        The kind of split, and the rest of the name; None if it is not the name of a split.

    Example:
        >>> meaning("seg_train")
        ('train', 'seg')
        >>> meaning("val2017")
        ('validation', '')
        >>> meaning("cats")
    """
    words = [word.casefold() for word in _WORDS.findall(name)]
    words = [_without_filler(word) for word in words if word not in _FILLERS and not word.isdigit()]
    splits = [word for word in words if word in NAMES]
    if len(splits) != 1:
        return None
    return NAMES[splits[0]], " ".join(word for word in words if word not in NAMES)


def find_splits(folders: Mapping[str, Callable[[], Sequence[str]]], place: str) -> Splits | None:
    """Finds the folders of a data set that are splits.

    Args:
        folders: The folders with images in the data set's folder, by name, each with a function that returns the names
            of the folders with images in it.
        place: The data set's folder, for messages.

    Returns:
        The splits, or None if all the folders are classes.

    Raises:
        InputError: The folders are ambiguous; the message gives both readings.
    """
    names = folders.keys()
    known = {name: what for name in names if (what := meaning(name))}
    trains = [name for name, (kind, _) in known.items() if kind == "train"]
    groups = {
        name: [
            other for other, what in known.items() if other != name and what[0] != "train" and what[1] == known[name][1]
        ]
        for name in trains
    }
    # A name such as steam_train is the name of a split only next to one such as steam_test.
    sure = [name for name in trains if groups[name] or not known[name][1]]
    if not sure:
        _check_held_out_alone(folders, known, place)
        return None
    train = sure[0]
    group = [train, *groups[train]]
    others = sorted(set(names) - set(group))
    if len(sure) == 1 and not others:
        unlabeled = tuple(name for name in groups[train] if known[name][0] == "unlabeled")
        return Splits(train, tuple(held_out_splits(groups[train])), unlabeled)
    if all(len(folders[name]()) < 2 for name in sure):
        return None  # it contains no classes, so it is a class itself: trains next to cars
    raise InputError(
        f"{place} contains {_listed([f'{name}/' for name in sorted(names)])}, which can be read in two ways: "
        f"{_listed([f'{name}/' for name in sorted({*sure, *group})])} as splits of the data, or every folder as a "
        f"class. If they are splits, move the other folders away or give --data {place}/{train}; if they are classes, "
        f"rename {train}/"
    )


def held_out_splits(names: Collection[str]) -> list[str]:
    """Returns the validation and test splits among the names of splits; the first is the one used for evaluation."""
    known = {name: what[0] for name in names if (what := meaning(name)) and what[0] in _HELD_OUT_KINDS}
    return sorted(known, key=lambda name: (_HELD_OUT_KINDS.index(known[name]), _rank(name), name))


def _check_held_out_alone(
    folders: Mapping[str, Callable[[], Sequence[str]]], known: dict[str, tuple[str, str]], place: str
) -> None:
    """Rejects validation and test folders without a training folder, because the splits could be classes."""
    held = [name for name, (_, affix) in known.items() if not affix]
    others = folders.keys() - set(held)
    splits = len(held) > 1 and not others
    splits = splits or any(others & set(folders[name]()) for name in held)
    if splits:
        raise InputError(
            f"{place} contains {_listed([f'{name}/' for name in sorted(folders)])} and no train/, which can be read in "
            f"two ways: {_listed([f'{name}/' for name in held])} as held-out images, or every folder as a class. If "
            "they are held out, put the classes to train on into a folder train/; if they are classes, rename them"
        )


def _rank(name: str) -> int:
    words = list(NAMES)
    return min((words.index(word.casefold()) for word in _WORDS.findall(name) if word.casefold() in NAMES), default=0)


def _without_filler(word: str) -> str:
    """Turns `trainset` into `train`."""
    for filler in _FILLERS:
        if word.endswith(filler) and word.removesuffix(filler) in NAMES:
            return word.removesuffix(filler)
    return word


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
