"""Which images there are, which class each one has, and which split it belongs to. Opens no image.

Splits are made here, before anything is sampled: training images make triplets; monitor images, a seeded share of each
class's training images, only watch; validation images are kept for `evaluate.py`. The gallery is train + monitor.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from dr_keras.data import MONITOR, VALIDATION, digits, held_out
from dr_keras.data.archives import archive_folder, is_archive
from dr_keras.data.download import tiny_imagenet
from dr_keras.data.images import EXTENSIONS
from dr_keras.data.manifest import read_manifest
from dr_keras.data.tfds_sets import PREFIX as TFDS_PREFIX
from dr_keras.data.tfds_sets import tfds_folder
from dr_keras.errors import InputError

HELD_OUT_FOLDERS = ("val", "validation", "valid", "dev", "test")  # the first that exists is taken


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
    """

    root: Path
    source: Path
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
        missing: as in `Catalog`.
    """

    train: dict[str, list[str]]
    held: list[tuple[str, str]]
    monitor: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()


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
            `dr_keras.data.manifest`; 'tfds:NAME[/CONFIG]'; 'digits'; 'tiny-imagenet', which is downloaded where the
            cache does not hold it. None stands for 'tiny-imagenet'.
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
        class_names=_class_names(root, classes),
        splits=np.array(splits, np.uint8),
        missing=listing.missing,
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
        path = Path(data).expanduser()
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
    train_root, held_root = _split_folders(root)
    found = {name: list(images_below(train_root / name)) for name in _folders(train_root)}
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise InputError(f"{train_root} holds no class folders with images ({', '.join(sorted(EXTENSIONS))})")
    held, missing = _held_out(held_root, found.keys()) if held_root else ([], [])
    prefix = str(root) + os.sep

    def own(file: str) -> str:
        return file.removeprefix(prefix).replace(os.sep, "/")

    return _Listing(
        train={name: [own(file) for file in files] for name, files in found.items()},
        held=[(own(file), name) for file, name in held],
        missing=tuple(map(own, missing)),
    )


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of training and of held-out classes; `root` itself where train/ is a class like the others."""
    others = [name for name in _folders(root) if name != "train" and name not in HELD_OUT_FOLDERS]
    if not (root / "train").is_dir() or any(next(images_below(root / name), None) for name in others):
        return root, None
    return root / "train", next((root / name for name in HELD_OUT_FOLDERS if (root / name).is_dir()), None)


def _held_out(folder: Path, classes: Collection[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Held-out images with their classes, and those that cannot be used, by annotations or by class folders."""
    annotations, images = folder / "val_annotations.txt", folder / "images"
    if annotations.is_file() and images.is_dir() and next(images_below(images), None):
        return _annotated(annotations, images, classes)
    held: list[tuple[str, str]] = []
    unknown: list[str] = []
    for name in _folders(folder):
        files = sorted(images_below(folder / name))
        if name in classes:
            held += [(file, name) for file in files]
        else:
            unknown += files
    return held, unknown


def images_below(folder: Path, *, onerror: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """The image files at any depth, through symbolic links but into no folder twice, hidden ones left out.

    Args:
        folder: the folder.
        onerror: called for a folder that cannot be listed; by default it is passed over.
    """
    seen = set()
    for here, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield os.path.join(here, name)


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
