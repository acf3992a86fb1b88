"""Which images there are, which class each one has, and which split it belongs to. Opens no image.

Splits are made here, before anything is sampled: training images make triplets; monitor images, a seeded share of each
class's training images, only watch; validation images are kept for `evaluate.py`. The gallery is train + monitor.
"""

import dataclasses
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_keras.data import MONITOR, TRAIN, VALIDATION, digits
from dr_keras.data.images import EXTENSIONS
from dr_keras.errors import InputError
from dr_keras.files import cache_folder

HELD_OUT_FOLDERS = ("val", "validation", "valid", "dev", "test")  # the first that exists is taken


@dataclass(frozen=True)
class Catalog:
    """The images of a data set, N of them over C classes.

    Attributes:
        root: the folder that ids are relative to.
        ids: N paths relative to `root`, with forward slashes.
        labels: (N,) int32, indices into `classes`.
        classes: C folder names, sorted.
        class_names: C names for people; the same as `classes` where the data set has no others.
        splits: (N,) uint8 of `TRAIN`, `MONITOR` and `VALIDATION`.
        missing: held-out images that cannot be used: listed and not there, or of a class without training images.
    """

    root: Path
    ids: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: np.ndarray
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, *splits: int) -> np.ndarray:
        """The row numbers of the images in any of `splits`, ascending: (n,) int64."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def take(self, rows: np.ndarray) -> "Catalog":
        """The catalog of only these rows, in this order; the classes stay."""
        ids = tuple(self.ids[row] for row in rows)
        return dataclasses.replace(self, ids=ids, labels=self.labels[rows], splits=self.splits[rows])

    def paths(self) -> list[Path]:
        """The N files."""
        return [self.root / name for name in self.ids]


def load_catalog(data: str | os.PathLike[str] | None, *, monitor: float, validation: float, seed: int) -> Catalog:
    """Lists the images of a data set and splits them.

    Args:
        data: 'digits', the official Tiny ImageNet folder, a folder with train/ (and val/) of class folders, or a folder
            of class folders with the images anywhere below them. None stands for Tiny ImageNet in the cache.
        monitor: share of each class's training images that become the monitor split.
        validation: share of each class that is held out where the data set has no validation split of its own.
        seed: seeds both choices. An image's split depends on nothing but this, its class and the class's files.

    Raises:
        InputError: the folder is absent or holds no class folders with images.
    """
    if data == "digits":
        root = digits.folder()
    elif data is None:
        root = cache_folder() / "tiny-imagenet-200"
        if not root.is_dir():
            raise InputError(
                f"no --data was given and {root} does not exist. Unpack tiny-imagenet-200.zip there, or name "
                "a folder of class folders (--data FOLDER), or try --data digits, which needs no download"
            )
    else:
        root = Path(data).expanduser()
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise InputError(f"--data {root} {kind}; give a folder that holds one folder of images for each class")
    root = root.resolve()

    train_root, held_root = _split_folders(root)
    found = {name: tuple(_images_below(train_root / name)) for name in _folders(train_root)}
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise InputError(f"{train_root} holds no class folders with images ({', '.join(sorted(EXTENSIONS))})")
    classes = tuple(sorted(found))
    number = {name: label for label, name in enumerate(classes)}
    held, missing = _held_out(held_root, number) if held_root else ([], [])

    ids, labels, splits = [], [], []
    for name, label in number.items():
        files = sorted(found[name])
        split = np.full(len(files), TRAIN, np.uint8)
        own = zlib.crc32(os.fsencode(name))  # by its name, so that a class keeps its splits when others come or go
        if not held:
            split[_choose(np.flatnonzero(split == TRAIN), validation, (seed, VALIDATION, own))] = VALIDATION
        split[_choose(np.flatnonzero(split == TRAIN), monitor, (seed, MONITOR, own))] = MONITOR
        ids += files
        labels += [label] * len(files)
        splits += split.tolist()
    ids += [name for name, _ in held]
    labels += [label for _, label in held]
    splits += [VALIDATION] * len(held)

    prefix = str(root) + os.sep
    return Catalog(
        root=root,
        ids=tuple(name.removeprefix(prefix).replace(os.sep, "/") for name in ids),
        labels=np.array(labels, np.int32),
        classes=classes,
        class_names=_class_names(root, classes),
        splits=np.array(splits, np.uint8),
        missing=tuple(name.removeprefix(prefix).replace(os.sep, "/") for name in missing),
    )


def _choose(rows: np.ndarray, share: float, seed: tuple[int, ...]) -> np.ndarray:
    """A seeded `share` of `rows`, at least one where the share is above 0, always leaving two for a pair."""
    count = max(0, min(max(1, round(share * len(rows))), len(rows) - 2)) if share else 0
    return np.random.default_rng(seed).permutation(rows)[:count]


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of training and of held-out classes; `root` itself where train/ is a class like the others."""
    others = [name for name in _folders(root) if name != "train" and name not in HELD_OUT_FOLDERS]
    if not (root / "train").is_dir() or any(next(_images_below(root / name), None) for name in others):
        return root, None
    return root / "train", next((root / name for name in HELD_OUT_FOLDERS if (root / name).is_dir()), None)


def _held_out(folder: Path, number: dict[str, int]) -> tuple[list[tuple[str, int]], list[str]]:
    """Held-out images with their labels, and those that cannot be used, by annotations or by class folders."""
    annotations, images = folder / "val_annotations.txt", folder / "images"
    if annotations.is_file() and images.is_dir() and next(_images_below(images), None):
        return _annotated(annotations, images, number)
    held: list[tuple[str, int]] = []
    unknown: list[str] = []
    for name in _folders(folder):
        files = sorted(_images_below(folder / name))
        if name in number:
            held += [(file, number[name]) for file in files]
        else:
            unknown += files
    return held, unknown


def _images_below(folder: Path) -> Iterator[str]:
    """The image files at any depth, through symbolic links but into no folder twice, hidden ones left out."""
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield os.path.join(here, name)


def _annotated(annotations: Path, images: Path, number: dict[str, int]) -> tuple[list[tuple[str, int]], list[str]]:
    """Tiny ImageNet's validation images with their labels, and those that are listed and cannot be used."""
    with os.scandir(images) as entries:
        present = {entry.name for entry in entries}
    held, missing = [], []
    for line in annotations.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition("\t")
        label = number.get(rest.split("\t")[0])
        if name not in present or label is None:
            missing.append(str(images / name))
        else:
            held.append((str(images / name), label))
    return held, missing


def _class_names(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The first of each class's names in words.txt (`n01443537<tab>goldfish, Carassius auratus`) where there is one."""
    words = root / "words.txt"
    if not words.is_file():
        return classes
    lines = (line.partition("\t") for line in words.read_text(encoding="utf-8").splitlines())
    names = {key: value.split(",")[0].strip() for key, _, value in lines}
    return tuple(names.get(name) or name for name in classes)
