"""Image classification data sets from TensorFlow Datasets as class folders, so that they are read like any others.

The encoded images are written to the cache once, as they are, without re-encoding.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from dr_keras.atomic_files import cache_folder, new_folder
from dr_keras.data.formats import HEAD_BYTES, sniff
from dr_keras.data.splits import held_out_splits
from dr_keras.errors import InputError
from dr_keras.progress import bar, stderr

PREFIX = "tfds:"
CLASS_ID = "class_id"  # the product in stanford_online_products, beside coarser classes


def tfds_folder(name: str, console: Console | None = None, *, disjoint: bool = False) -> Path:
    """Returns a cached folder with the class folders of a data set, written on the first call.

    The class folders are in train/ and, if the data set has a held-out split, in val/.

    Args:
        name: The name in TFDS, such as 'cifar10' or 'imagenet_resized/64x64', with or without a version ':1.0.0'.
        console: Shows the progress; standard error by default.
        disjoint: Whether train/ gets the first half of the classes and val/ the second, of all labeled images, as is
            usual for `caltech_birds2011` and `cars196` (Oh Song et al. 2016). The splits of a data set that have no
            class in common, as in `stanford_online_products`, are kept.

    Raises:
        InputError: TFDS does not know the data set or cannot prepare it, or its examples do not have exactly one image
            and one class.
    """
    console = console or stderr()
    builder, image, label = _open(name)
    kind = "-class-disjoint" if disjoint else ""
    folder = cache_folder() / "tfds" / (re.sub(r"[^\w.-]", "-", builder.info.full_name) + kind)
    if folder.is_dir():
        return folder
    held = held_out_splits(builder.info.splits)
    splits = {"train": "train"} | ({"val": held[0]} if held else {})
    classes = builder.info.features[label].names
    try:
        with new_folder(folder, replace=False) as temporary:
            if disjoint:
                # Numbered, because the order of the classes decides which are trained on.
                numbered = _folder_names(f"{number:05d} {name}" for number, name in enumerate(classes))
                _write_disjoint(builder, splits, image, label, temporary, numbered, console)
            else:
                for target, split in splits.items():
                    _write(builder, split, image, label, temporary / target, _folder_names(classes), console)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; set DR_KERAS_CACHE to another one") from error
    return folder


def _open(name: str) -> tuple[Any, str, str]:
    """The prepared builder, and the names of its image feature and its label feature."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(f"--data {PREFIX}{name} needs tensorflow-datasets and TensorFlow: {error}") from error
    try:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
        if "train" not in (builder.info.splits or {}):
            builder.download_and_prepare()
    except Exception as error:  # TFDS passes on whatever its builders and network code raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise InputError(f"--data {PREFIX}{name} cannot be prepared by TensorFlow Datasets: {reason}") from error
    features = builder.info.features
    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    labels = [key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)]
    if builder.info.supervised_keys:  # decides if there are several
        wanted = set(builder.info.supervised_keys)
        images, labels = (
            [key for key in images if key in wanted] or images,
            [key for key in labels if key in wanted] or labels,
        )
    labels = [key for key in labels if key == CLASS_ID] or labels
    if len(images) != 1 or len(labels) != 1 or "train" not in builder.info.splits:
        raise InputError(
            f"--data {PREFIX}{name} has images {images}, labels {labels} and splits {list(builder.info.splits)}; "
            "expected one image, one class label and a split 'train'"
        )
    return builder, images[0], labels[0]


def _folder_names(classes: Iterable[str]) -> list[str]:
    """One folder name per class: characters that file systems reject are replaced, and duplicates are numbered."""
    names: list[str] = []
    for number, name in enumerate(classes):
        plain = re.sub(r'[/\\\0:*?"<>|]', "_", name).strip(". ") or str(number)
        while plain in names:
            plain += f"_{number}"
        names.append(plain)
    return names


def _write_disjoint(
    builder: Any,
    splits: dict[str, str],
    image: str,
    label: str,
    folder: Path,
    class_folders: list[str],
    console: Console,
) -> None:
    """Writes all images to train/ or val/ by their class."""
    used = {target: _labels(builder, split, image, label) for target, split in splits.items()}
    first = used["train"]
    if "val" not in used or not first.isdisjoint(used["val"]):
        ordered = sorted(set().union(*used.values()))
        first = frozenset(ordered[: len(ordered) // 2])
    for split in splits.values():
        _write(builder, split, image, label, folder, class_folders, console, first)
    for target in ("train", "val"):
        for name in class_folders:
            place = folder / target / name
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def _labels(builder: Any, split: str, image: str, label: str) -> frozenset[int]:
    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
    return frozenset(int(one) for one in tfds.as_numpy(dataset.map(lambda example: example[label])))


def _write(
    builder: Any,
    split: str,
    image: str,
    label: str,
    folder: Path,
    class_folders: list[str],
    console: Console,
    first: frozenset[int] | None = None,
) -> None:
    """Writes a split to class folders; with `first`, to those in train/ if the class is in it, else in val/."""
    import tensorflow_datasets as tfds

    places = [folder] if first is None else [folder / "train", folder / "val"]
    for place in places:
        for name in class_folders:
            (place / name).mkdir(parents=True, exist_ok=True)
    dataset = builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
    total = builder.info.splits[split].num_examples
    with bar(f"writing {split} of {builder.info.full_name}", total, console) as advance:
        for number, example in enumerate(tfds.as_numpy(dataset)):
            encoded = example[image]
            format = sniff(encoded[:HEAD_BYTES], len(encoded))
            suffix = format.ending if format else ".png"
            place = places[0 if first is None or int(example[label]) in first else 1]
            file = place / class_folders[example[label]] / f"{split}_{number:07d}{suffix}"
            file.write_bytes(encoded)
            advance(1)
