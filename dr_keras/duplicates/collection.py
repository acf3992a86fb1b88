"""Lists all images of a folder, each file once, with their classes and splits where known."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dr_keras.data.catalog import Catalog, data_folder, load_catalog
from dr_keras.data.folders import Trouble, Walker
from dr_keras.data.image_ids import image_id, image_path
from dr_keras.data.splits import GALLERY, MONITOR, TRAIN, VALIDATION, Splits, meaning
from dr_keras.errors import InputError


@dataclass(frozen=True)
class Collection:
    """All images of a folder, each file once.

    Attributes:
        root: The folder that ids are relative to.
        ids: The id of each image.
        labels: The class of each id that has one.
        class_names: The display name of each class that has one.
        splits: The split of each id that has one: train, validation or test.
        unlisted: Files and folders that could not be accessed, with the reason.
    """

    root: Path
    ids: list[str]
    labels: dict[str, str]
    class_names: dict[str, str]
    splits: dict[str, str]
    unlisted: Sequence[Trouble] = ()


def list_collection(folder: str | os.PathLike[str], console: Console) -> Collection:
    """Lists the images of a folder or a data set; see `dr_keras.duplicates.find.find_duplicates`.

    Args:
        folder: A folder with images at any depth, or anything else that `load_catalog` accepts.
        console: Shows progress.

    Raises:
        InputError: There is no such folder, or it contains no images.
    """
    catalog = None
    try:
        catalog = load_catalog(folder, monitor=0, validation=0, seed=0, console=console)
        root = catalog.root
    except InputError:
        root = Path(os.path.expanduser(folder))
        if not root.is_dir():
            raise
        root = root.resolve()
    if catalog and catalog.source != root:  # a manifest
        splits = {TRAIN: "train", MONITOR: "train", VALIDATION: "validation", GALLERY: "gallery"}
        return Collection(
            root,
            _each_once(root, catalog.ids),
            _labels(catalog),
            dict(zip(catalog.classes, catalog.class_names, strict=True)),
            {name: splits[split] for name, split in zip(catalog.ids, catalog.splits.tolist(), strict=True)},
        )
    labels = _labels(catalog) if catalog else {}
    walker = Walker()
    below = [image_id(file, root) for file in walker.pictures(root)]
    ids = _each_once(root, [*(catalog.ids if catalog else ()), *below])
    if not ids:
        raise InputError(f"{root} holds no images; give a folder that does")
    place, splits_of_folder = _split_folders(root)
    parts = {name: name.removeprefix(place).split("/") for name in ids}
    if catalog and splits_of_folder:
        labels = _labels_by_folder(parts, set(catalog.classes)) | labels
    kinds = {name: _kind(part[0], splits_of_folder, alone=not catalog) for name, part in parts.items() if len(part) > 1}
    return Collection(
        root,
        ids,
        labels,
        dict(zip(catalog.classes, catalog.class_names, strict=True)) if catalog else {},
        {name: kind for name, kind in kinds.items() if kind},
        walker.troubles,
    )


def _labels(catalog: Catalog) -> dict[str, str]:
    return {name: catalog.classes[label] for name, label in zip(catalog.ids, catalog.labels.tolist(), strict=True)}


def _each_once(root: Path, ids: Iterable[str]) -> list[str]:
    """The ids, without those that lead to the same file as an earlier one, through links or another path."""
    seen: set[tuple[int, int]] = set()
    kept = {}
    for name in ids:
        if name in kept:
            continue
        try:
            status = os.stat(image_path(name, root))
        except OSError:
            kept[name] = True  # reading it will report the error
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            kept[name] = True
    return list(kept)


def _split_folders(root: Path) -> tuple[str, Splits | None]:
    """The prefix of ids before the split or class folders, and which of these folders are splits."""
    try:
        place, splits = data_folder(root)
    except InputError:  # ambiguous, which matters only for training
        return "", None
    return "" if place == root else f"{place.relative_to(root).as_posix()}/", splits


def _kind(folder: str, splits: Splits | None, *, alone: bool) -> str | None:
    """The split of a top-level folder: train, validation or test.

    Args:
        folder: Its name.
        splits: The splits of the data set, if known.
        alone: Whether the folder is not a data set that can be trained on, so only its name tells the split.
    """
    if splits:
        kind = splits.kind(folder)
    else:
        known = meaning(folder) if alone else None
        kind = known[0] if known and not known[1] else None
    return None if kind == "unlabeled" else kind


def _labels_by_folder(parts: dict[str, list[str]], classes: set[str]) -> dict[str, str]:
    """The classes of images in SPLIT/CLASS/... folders, for splits with any of `classes`; test/images is no class."""
    folders = {name: (part[0], part[1]) for name, part in parts.items() if len(part) > 2}
    with_classes = {split for split, label in folders.values() if label in classes}
    return {name: label for name, (split, label) in folders.items() if split in with_classes}
