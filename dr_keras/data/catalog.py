"""Which images there are, which class each one has, and which split it belongs to. Opens no image.

Splits are made here, before anything is sampled: training images make triplets; monitor images, a seeded share of each
class's training images, only watch; validation images are kept for `evaluate.py`. The gallery is train + monitor.
"""

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from dr_keras.data import held_out
from dr_keras.data.folders import Walker, folders_with_pictures, has_pictures, pictures_in
from dr_keras.data.sources import digits
from dr_keras.data.sources.archives import archive_folder, is_archive
from dr_keras.data.sources.download import tiny_imagenet
from dr_keras.data.sources.manifest import read_manifest
from dr_keras.data.sources.tfds import PREFIX as TFDS_PREFIX
from dr_keras.data.sources.tfds import tfds_folder
from dr_keras.data.splits import MONITOR, VALIDATION, Splits, find_splits
from dr_keras.errors import InputError

LEVELS = 3  # folders around the class folders that are looked through, as archives and downloads have them


@dataclass(frozen=True)
class Catalog:
    """The images of a data set, N of them over C classes.

    Attributes:
        root: the folder that ids are relative to.
        source: the folder or manifest that was read.
        ids: N paths relative to `root`, with forward slashes; absolute for a manifest's images elsewhere.
        labels: (N,) int32, indices into `classes`.
        classes: C folder names, sorted.
        class_names: C names for people; the same as `classes` where the data set has no others.
        splits: (N,) uint8 of `TRAIN`, `MONITOR` and `VALIDATION`.
        missing: held-out images that cannot be used: listed and not there, or of a class without training images.
        notes: what a person should know of how the data set was read.
    """

    root: Path
    source: Path
    ids: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: np.ndarray
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, *splits: int) -> np.ndarray:
        """The row numbers of the images in any of `splits`, ascending: (n,) int64."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def take(self, rows: np.ndarray) -> "Catalog":
        """The catalog of only these rows, in this order; the classes stay."""
        ids = tuple(self.ids[row] for row in rows)
        return dataclasses.replace(self, ids=ids, labels=self.labels[rows], splits=self.splits[rows])

    def paths(self) -> list[str]:
        """The N files."""
        return [os.path.join(self.root, name) for name in self.ids]


@dataclass(frozen=True)
class _Listing:
    """What a data set says of its images, before the splits that it leaves to us are made; ids as in `Catalog`.

    Attributes:
        train: the training images of each class; never without one.
        held: the validation images with their class; empty where the data set has no such split.
        monitor: those of `train` that the data set itself gives to the monitor split.
        missing, notes: as in `Catalog`.
        names: the folder that may hold words.txt.
    """

    train: dict[str, list[str]]
    held: list[tuple[str, str]]
    monitor: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    names: Path | None = None


def load_catalog(
    data: str | os.PathLike[str] | None,
    *,
    monitor: float,
    validation: float,
    seed: int,
    console: Console | None = None,
) -> Catalog:
    """Lists the images of a data set and splits them.

    Args:
        data: a folder of class folders with the images anywhere below them; a folder with train/ (and val/) of class
            folders; the official Tiny ImageNet folder; a zip or tar file of one of these; a manifest FILE.csv, see
            `dr_keras.data.sources.manifest`; 'tfds:NAME[/CONFIG]'; 'digits'; 'tiny-imagenet', which is downloaded where
            the cache does not hold it. None stands for 'tiny-imagenet'.
        monitor: share of each class's training images that become the monitor split.
        validation: share of each class that is held out where the data set has no validation split of its own.
        seed: seeds both choices, which `dr_keras.data.held_out.split` makes; of classes that are too small, it takes
            whole ones.
        console: shows the progress of downloads; standard error by default.

    Raises:
        InputError: the data set is absent, cannot be fetched, or holds no class folders with images.
    """
    source = _locate(data, console)
    if source.suffix.lower() == ".csv":
        root, listing = source.parent, _list_manifest(source)
    else:
        root, listing = source, _list_folders(source)
    classes = tuple(sorted(listing.train))
    number = {name: label for label, name in enumerate(classes)}

    images = {name: sorted(listing.train[name]) for name in classes}
    shares = {MONITOR: monitor} if listing.held else {MONITOR: monitor, VALIDATION: validation}
    by_class = held_out.split(images, listing.monitor, shares, seed)
    ids, labels, splits = [], [], []
    for name, label in number.items():
        ids += images[name]
        labels += [label] * len(images[name])
        splits += by_class[name].tolist()
    ids += [image for image, _ in listing.held]
    labels += [number[name] for _, name in listing.held]
    splits += [VALIDATION] * len(listing.held)

    return Catalog(
        root=root,
        source=source,
        ids=tuple(ids),
        labels=np.array(labels, np.int32),
        classes=classes,
        class_names=_class_names(listing.names or root, classes),
        splits=np.array(splits, np.uint8),
        missing=listing.missing,
        notes=listing.notes,
    )


def _locate(data: str | os.PathLike[str] | None, console: Console | None) -> Path:
    """The folder or the manifest that `data` stands for, fetched, written or unpacked where it has to be."""
    if data is None or data == "tiny-imagenet":
        path = tiny_imagenet(console)
    elif data == "digits":
        path = digits.folder()
    elif isinstance(data, str) and data.startswith(TFDS_PREFIX):
        path = tfds_folder(data.removeprefix(TFDS_PREFIX), console)
    else:
        path = Path(os.path.expanduser(data))
    if path.is_file() and path.suffix.lower() != ".csv":
        if not is_archive(path):
            raise InputError(
                f"--data {path} is a file; give a folder that holds one folder of images for each class, a zip or tar "
                "file of one, or a manifest FILE.csv"
            )
        path = archive_folder(path)
    if not path.exists():
        raise InputError(f"--data {path} does not exist; give a folder that holds one folder of images for each class")
    return path.resolve()


def _list_manifest(file: Path) -> _Listing:
    entries = read_manifest(file)
    train: dict[str, list[str]] = {}
    for entry in entries:
        if entry.split != VALIDATION:
            train.setdefault(entry.label, []).append(entry.id)
    if not train:
        raise InputError(f"{file} lists no training images")
    held = [(entry.id, entry.label) for entry in entries if entry.split == VALIDATION]
    return _Listing(
        train=train,
        held=[(image, label) for image, label in held if label in train],
        monitor=frozenset(entry.id for entry in entries if entry.split == MONITOR),
        missing=tuple(image for image, label in held if label not in train),
    )


def _list_folders(root: Path) -> _Listing:
    place, splits = data_folder(root)
    train_root = place / splits.train if splits else place
    train_root = _without_wrappers(train_root) if splits else train_root
    walker = Walker()
    found = {name: walker.pictures(train_root / name) for name in walker.folders(train_root)}
    # A class that cannot be read is no class that is not there.
    if walker.troubles:
        name, reason = walker.troubles[0]
        raise InputError(
            f"{name} cannot be read: {reason}; a class that may not be read would be missing from the training. "
            "Let it be read, or move it away"
        )
    held: list[tuple[str, str]] = []
    missing: list[str] = []
    notes: list[str] = []
    if splits and splits.held_out:
        held_root = _without_wrappers(place / splits.held_out[0], but=found.keys())
        held, missing = _held_out(held_root, found.keys(), walker)
    if walker.troubles:
        name, reason = walker.troubles[0]
        notes.append(
            f"{len(walker.troubles):,} folders or files of held-out images cannot be read, {name} ({reason}) first"
        )
    unused = [*splits.held_out[1:], *splits.unlabeled] if splits else []
    if unused:
        notes.append(f"not used: {', '.join(f'{name}/' for name in unused)}")
    again = walker.again()
    if again:
        one = min(again)
        notes.append(
            f"{len(again):,} paths lead to the file of another image and are left out, {one} to {again[one]} first"
        )
    train = {name: [file for file in files if file not in again] for name, files in found.items()}
    train = {name: files for name, files in train.items() if files}
    if not train:
        raise InputError(_nothing_found(train_root))
    prefix = str(root) + os.sep

    def own(file: str) -> str:
        return file.removeprefix(prefix).replace(os.sep, "/")

    return _Listing(
        train={name: [own(file) for file in files] for name, files in train.items()},
        held=[(own(file), name) for file, name in held if file not in again and name in train],
        missing=tuple(map(own, missing)),
        notes=tuple(notes),
        names=place,
    )


def data_folder(root: Path) -> tuple[Path, Splits | None]:
    """The folder that holds a data set's class folders or its splits, at most `LEVELS` below `root`; and the splits.

    Raises:
        InputError: its folders can be read in two ways, see `dr_keras.data.splits.find_splits`.
    """
    place = root
    for _ in range(LEVELS):
        names = folders_with_pictures(place)
        splits = find_splits({name: partial(folders_with_pictures, place / name) for name in names}, str(place))
        if splits or len(names) != 1 or pictures_in(place):
            return place, splits
        inside = folders_with_pictures(place / names[0])
        if len(inside) < 2 and not any(folders_with_pictures(place / names[0] / name) for name in inside):
            return place, None
        place = place / names[0]
    return place, None


def _without_wrappers(folder: Path, but: Collection[str] = ()) -> Path:
    """The folder of a split's classes, which some archives put into one more folder: seg_train/seg_train/cats.

    Args:
        folder: of the split.
        but: names that are classes, and so no folders around them.
    """
    for _ in range(LEVELS):
        names = folders_with_pictures(folder)
        if len(names) != 1 or names[0] in but or pictures_in(folder):
            break
        if len(folders_with_pictures(folder / names[0])) < 2:
            break
        folder = folder / names[0]
    return folder


def _nothing_found(folder: Path) -> str:
    with os.scandir(folder) as entries:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
    there = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    direct = "; its images lie in no class folder" if pictures_in(folder) else ""
    return (
        f"{folder} holds no class folders with images{direct}. It holds: {there or 'nothing'}. Give the folder whose "
        "folders are the classes"
    )


def _held_out(folder: Path, classes: Collection[str], walker: Walker) -> tuple[list[tuple[str, str]], list[str]]:
    """Held-out images with their classes, and those that cannot be used, by annotations or by class folders."""
    annotations, images = folder / "val_annotations.txt", folder / "images"
    if annotations.is_file() and images.is_dir() and has_pictures(images):
        return _annotated(annotations, images, classes)
    held: list[tuple[str, str]] = []
    unknown: list[str] = []
    for name in walker.folders(folder):
        files = walker.pictures(folder / name)
        if name in classes:
            held += [(file, name) for file in files]
        else:
            unknown += files
    return held, unknown


def _annotated(annotations: Path, images: Path, classes: Collection[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Tiny ImageNet's validation images with their classes, and those that are listed and cannot be used."""
    with os.scandir(images) as entries:
        present = {entry.name for entry in entries}
    held, missing = [], []
    for line in annotations.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition("\t")
        label = rest.split("\t")[0]
        if name in present and label in classes:
            held.append((str(images / name), label))
        else:
            missing.append(str(images / name))
    return held, missing


def _class_names(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The first of each class's names in words.txt (`n01443537<tab>goldfish, Carassius auratus`) where there is one."""
    words = root / "words.txt"
    if not words.is_file():
        return classes
    lines = (line.partition("\t") for line in words.read_text(encoding="utf-8").splitlines())
    names = {key: value.split(",")[0].strip() for key, _, value in lines}
    return tuple(names.get(name) or name for name in classes)
