"""Lists the images of a data set, with the class and the split of each, without opening any image.

Images are split here, before anything is sampled: training images form triplets; monitor images, a seeded share of each
class's training images, only monitor the run; validation images are held out for `evaluate.py`. The gallery consists of
the training and monitor images.
"""

import dataclasses
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from dr_keras.data import held_out
from dr_keras.data.folders import Walker, contents, folders_with_pictures, has_pictures, pictures_in
from dr_keras.data.image_ids import image_id, image_path
from dr_keras.data.sources import digits, in_shop
from dr_keras.data.sources.archives import archive_folder, is_archive
from dr_keras.data.sources.download import tiny_imagenet
from dr_keras.data.sources.manifest import ManifestEntry, read_manifest
from dr_keras.data.sources.tfds import PREFIX as TFDS_PREFIX
from dr_keras.data.sources.tfds import tfds_folder
from dr_keras.data.splits import GALLERY, MONITOR, TRAIN, VALIDATION, Splits, find_splits
from dr_keras.errors import InputError

MAX_LEVELS = 3  # of folders around the class folders, as in archives and downloads


@dataclass(frozen=True)
class Catalog:
    """The N images of a data set with C classes.

    Attributes:
        root: The folder that ids are relative to.
        source: The folder or the manifest that was read.
        ids: N paths relative to `root`, with forward slashes; absolute for images of a manifest that are elsewhere.
        labels: (N,) int32, indices into `classes`.
        classes: C folder names, sorted.
        class_names: C display names; the same as `classes` if the data set has no others.
        splits: (N,) uint8, `TRAIN`, `MONITOR`, `VALIDATION` or `GALLERY`.
        missing: Held-out images that cannot be used, because they do not exist or their class has no training images.
        notes: What the user should know about how the data set was read.
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
        """Returns the rows of the images in the given splits, (n,) int64, ascending."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def take(self, rows: np.ndarray) -> "Catalog":
        """Returns a catalog of only these rows, in this order, with the same classes."""
        ids = tuple(self.ids[row] for row in rows)
        return dataclasses.replace(self, ids=ids, labels=self.labels[rows], splits=self.splits[rows])

    def paths(self) -> list[str]:
        """Returns the paths of the N files."""
        return [image_path(id, self.root) for id in self.ids]


@dataclass(frozen=True)
class _Listing:
    """The images that a data set lists, before missing splits are drawn; ids as in `Catalog`.

    Attributes:
        train: The training images of each class, at least one; no classes if the data set is only for evaluation.
        held: The validation images with their classes; empty if the data set has no such split.
        gallery: The images that are ranked for `held`, with their classes; empty if these are the training images.
        monitor: The images of `train` that the data set assigns to the monitor split.
        missing, notes: As in `Catalog`.
        names: The folder that may contain words.txt.
    """

    train: dict[str, list[str]]
    held: list[tuple[str, str]]
    gallery: list[tuple[str, str]] = field(default_factory=list)
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
    protocol: str = "standard",
    one_class: bool = False,
    console: Console | None = None,
) -> Catalog:
    """Lists the images of a data set and splits them.

    Args:
        data: One of

            - a folder of class folders with the images at any depth below them
            - a folder with train/ (and val/), each with class folders
            - the folder of Tiny ImageNet as published
            - a zip or tar file of one of these
            - a manifest FILE.csv, see `dr_keras.data.sources.manifest`
            - the folder of In-Shop Clothes Retrieval, see `dr_keras.data.sources.in_shop`
            - 'tfds:NAME[/CONFIG]' or 'digits'
            - 'tiny-imagenet' or None, downloaded if it is not in the cache

        monitor: The share of each class's training images for the monitor split.
        validation: The share of each class that is held out if the data set has no validation split.
        seed: Seeds both splits, see `dr_keras.data.held_out.split`.
        protocol: 'standard', or 'class-disjoint': the splits of the data set if they have no class in common, else the
            first half of the classes for training and all images of the second half held out.
        one_class: Whether a folder without class folders is accepted, as a single class.
        console: Shows the progress of downloads; standard error by default.

    Raises:
        InputError: The data set does not exist, cannot be fetched, or has no class folders with images.

    A manifest may list no training images, for evaluation only.
    """
    disjoint = protocol == "class-disjoint"
    source = _locate(data, disjoint, console)
    root = source
    if source.suffix.lower() == ".csv":
        root, listing = source.parent, _listing_of(read_manifest(source), disjoint=disjoint)
    elif partition := in_shop.partition_file(source):
        listing = _listing_of(in_shop.read_partition(partition, source), disjoint=True)
    else:
        listing = _list_folders(source, disjoint, one_class)
    if disjoint:
        listing = _class_disjoint(listing, data)
    return _split(root, source, listing, monitor, validation, seed)


def _split(root: Path, source: Path, listing: _Listing, monitor: float, validation: float, seed: int) -> Catalog:
    """Makes the catalog of a listing: the images class by class, then the data set's own held-out images."""
    classes = tuple(sorted({*listing.train, *(name for _, name in (*listing.held, *listing.gallery))}))
    number = {name: label for label, name in enumerate(classes)}
    images = {name: sorted(listing.train[name]) for name in classes if name in listing.train}
    shares = {MONITOR: monitor} if listing.held else {MONITOR: monitor, VALIDATION: validation}
    by_class = held_out.split(images, listing.monitor, shares, seed)
    ids, labels, splits = [], [], []
    for name in images:
        ids += images[name]
        labels += [number[name]] * len(images[name])
        splits += by_class[name].tolist()
    for split, listed in ((GALLERY, listing.gallery), (VALIDATION, listing.held)):
        ids += [image for image, _ in listed]
        labels += [number[name] for _, name in listed]
        splits += [split] * len(listed)

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


def _locate(data: str | os.PathLike[str] | None, disjoint: bool, console: Console | None) -> Path:
    """The folder or manifest that `data` stands for; downloads, writes or unpacks it if necessary."""
    if data is None or data == "tiny-imagenet":
        path = tiny_imagenet(console)
    elif data == "digits":
        path = digits.folder()
    elif isinstance(data, str) and data.startswith(TFDS_PREFIX):
        path = tfds_folder(data.removeprefix(TFDS_PREFIX), console, disjoint=disjoint)
    else:
        path = Path(os.path.expanduser(data))
    if path.is_file() and path.suffix.lower() != ".csv":
        if not is_archive(path):
            raise InputError(
                f"--data {path} is a file; give a folder with one folder of images for each class, a zip or tar file "
                "of one, or a manifest FILE.csv"
            )
        path = archive_folder(path)
    if not path.exists():
        raise InputError(f"--data {path} does not exist; give a folder with one folder of images for each class")
    return path.resolve()


def _listing_of(entries: Sequence[ManifestEntry], *, disjoint: bool) -> _Listing:
    """The listing of a manifest; unless `disjoint`, held-out images of classes that are not trained on are missing."""
    train: dict[str, list[str]] = {}
    for entry in entries:
        if entry.split in (TRAIN, MONITOR):
            train.setdefault(entry.label, []).append(entry.id)
    held = [(entry.id, entry.label) for entry in entries if entry.split == VALIDATION]
    gallery = [(entry.id, entry.label) for entry in entries if entry.split == GALLERY]
    # Without other images, held-out images are ranked against each other.
    searched = {label for _, label in gallery or held} if gallery or not train else train.keys()
    known = [(image, label) for image, label in held if disjoint or label in searched]
    return _Listing(
        train=train,
        held=known,
        gallery=gallery,
        monitor=frozenset(entry.id for entry in entries if entry.split == MONITOR),
        missing=tuple(image for image, _ in sorted(set(held) - set(known))),
    )


def _class_disjoint(listing: _Listing, data: object) -> _Listing:
    """The listing for training on some classes and searching others; see `load_catalog`."""
    other = {name for _, name in (*listing.held, *listing.gallery)}
    if other and other.isdisjoint(listing.train):
        return listing
    images = {name: list(files) for name, files in listing.train.items()}
    for image, name in (*listing.held, *listing.gallery):
        images.setdefault(name, []).append(image)
    names = sorted(images)
    half = len(names) // 2
    if half < 2:
        raise InputError(f"--data {data} has {len(names)} classes; --protocol class-disjoint needs at least 4")
    return replace(
        listing,
        train={name: images[name] for name in names[:half]},
        held=[(image, name) for name in names[half:] for image in sorted(images[name])],
        gallery=[],
        monitor=frozenset(),
    )


def _list_folders(root: Path, disjoint: bool, one_class: bool) -> _Listing:
    place, splits = data_folder(root)
    train_root = place / splits.train if splits else place
    train_root = _without_wrappers(train_root) if splits else train_root
    walker = Walker()
    found = {name: walker.pictures(train_root / name) for name in walker.folders(train_root)}
    if one_class and (not any(found.values()) or pictures_in(train_root)):
        found = {train_root.name: walker.pictures(train_root)}
    if walker.troubles:
        name, reason = walker.troubles[0]
        raise InputError(
            f"{name} cannot be read: {reason}; a class that cannot be read would be missing from training. "
            "Change its permissions, or move it away"
        )
    held: list[tuple[str, str]] = []
    missing: list[str] = []
    notes: list[str] = []
    if splits and splits.held_out:
        held_root = _without_wrappers(place / splits.held_out[0], but=found.keys())
        known = {*found, *walker.folders(held_root)} if disjoint else found.keys()
        held, missing = _held_out(held_root, known, walker)
    if walker.troubles:
        name, reason = walker.troubles[0]
        notes.append(
            f"{len(walker.troubles):,} folders or files of held-out images cannot be read, first {name} ({reason})"
        )
    unused = [*splits.held_out[1:], *splits.unlabeled] if splits else []
    if unused:
        notes.append(f"not used: {', '.join(f'{name}/' for name in unused)}")
    again = walker.again()
    if again:
        one = min(again)
        notes.append(
            f"{len(again):,} paths lead to the file of another image and are left out, first {one} to {again[one]}"
        )
    train = {name: [file for file in files if file not in again] for name, files in found.items()}
    train = {name: files for name, files in train.items() if files}
    if not train:
        raise InputError(_nothing_found(train_root))
    return _Listing(
        train={name: [image_id(file, root) for file in files] for name, files in train.items()},
        held=[(image_id(file, root), name) for file, name in held if file not in again and (disjoint or name in train)],
        missing=tuple(image_id(file, root) for file in missing),
        notes=tuple(notes),
        names=place,
    )


def data_folder(root: Path) -> tuple[Path, Splits | None]:
    """Finds the class folders or the splits of a data set.

    Args:
        root: A folder that contains them, with at most `MAX_LEVELS` folders around them.

    Returns:
        The folder that directly contains them, and the splits; None if all its folders are classes.

    Raises:
        InputError: The folders are ambiguous, see `dr_keras.data.splits.find_splits`.
    """
    place = root
    for _ in range(MAX_LEVELS):
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
    """The folder with a split's classes, which some archives nest one folder deeper: seg_train/seg_train/cats.

    Args:
        folder: The folder of the split.
        but: Names of classes, which do not count as nested folders.
    """
    for _ in range(MAX_LEVELS):
        names = folders_with_pictures(folder)
        if len(names) != 1 or names[0] in but or pictures_in(folder):
            break
        if len(folders_with_pictures(folder / names[0])) < 2:
            break
        folder = folder / names[0]
    return folder


def _nothing_found(folder: Path) -> str:
    names = sorted(name + "/" * is_folder for name, is_folder in contents(folder).items())
    there = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    direct = "; its images are not in class folders" if pictures_in(folder) else ""
    return (
        f"{folder} has no class folders with images{direct}. It contains: {there or 'nothing'}. Give the folder whose "
        "folders are the classes"
    )


def _held_out(folder: Path, classes: Collection[str], walker: Walker) -> tuple[list[tuple[str, str]], list[str]]:
    """Held-out images with their classes, from annotations or class folders, and those that cannot be used."""
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
    """Tiny ImageNet's validation images with their classes, and those that are listed but cannot be used."""
    present = contents(images)
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
    """The first name of each class in words.txt, if there is one: `n01443537<tab>goldfish, Carassius auratus`."""
    words = root / "words.txt"
    if not words.is_file():
        return classes
    lines = (line.partition("\t") for line in words.read_text(encoding="utf-8").splitlines())
    names = {key: value.split(",")[0].strip() for key, _, value in lines}
    return tuple(names.get(name) or name for name in classes)
