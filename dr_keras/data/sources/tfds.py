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


def tfds_folder(name: str, console: Console | None = None) -> Path:
    """Returns a cached folder with the class folders of a data set, written on the first call.

    The class folders are in train/ and, if the data set has a held-out split, in val/.

    Args:
        name: The name in TFDS, such as 'cifar10' or 'imagenet_resized/64x64', with or without a version ':1.0.0'.
        console: Shows the progress; standard error by default.

    Raises:
        InputError: TFDS does not know the data set or cannot prepare it, or its examples do not have exactly one image
            and one class.
    """
    console = console or stderr()
    builder, image, label = _open(name)
    folder = cache_folder() / "tfds" / re.sub(r"[^\w.-]", "-", builder.info.full_name)
    if folder.is_dir():
        return folder
    held = held_out_splits(builder.info.splits)
    splits = {"train": "train"} | ({"val": held[0]} if held else {})
    class_folders = _folder_names(builder.info.features[label].names)
    try:
        with new_folder(folder, replace=False) as temporary:
            for target, split in splits.items():
                _write(builder, split, image, label, temporary / target, class_folders, console)
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


def _write(
    builder: Any, split: str, image: str, label: str, folder: Path, class_folders: list[str], console: Console
) -> None:
    import tensorflow_datasets as tfds

    for name in class_folders:
        (folder / name).mkdir(parents=True)
    dataset = builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
    total = builder.info.splits[split].num_examples
    with bar(f"writing {split} of {builder.info.full_name}", total, console) as advance:
        for number, example in enumerate(tfds.as_numpy(dataset)):
            encoded = example[image]
            format = sniff(encoded[:HEAD_BYTES], len(encoded))
            suffix = format.ending if format else ".png"
            file = folder / class_folders[example[label]] / f"{split}_{number:07d}{suffix}"
            file.write_bytes(encoded)
            advance(1)
