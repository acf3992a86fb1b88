"""Manifests: CSV files that list images, with the columns path, label and, optionally, split."""

import os
from dataclasses import dataclass
from pathlib import Path

from dr_keras.data.sources.table import read_table
from dr_keras.data.splits import NUMBER_OF_NAME
from dr_keras.errors import InputError
from dr_keras.filenames import existing


@dataclass(frozen=True)
class ManifestEntry:
    """One image of a manifest.

    Attributes:
        id: Its path, relative to the folder of the manifest if it is below that folder.
        label: Its class.
        split: TRAIN, MONITOR, VALIDATION or GALLERY.
    """

    id: str
    label: str
    split: int


def read_manifest(file: Path) -> list[ManifestEntry]:
    """Reads a manifest. The images are not opened, so those that do not exist are reported when they are read.

    Args:
        file: CSV in UTF-8 whose first line names the columns, including `path` and `label`. A path is absolute, or
            relative to the folder of the manifest. `split` is train, monitor, validation, or another name in
            `dr_keras.data.splits`, in upper or lower case; test means validation. An image without it is a training
            image.

    Raises:
        InputError: The file cannot be read, a column is missing, a row is incomplete or has an unknown split (the
            message gives its line), or an image is listed with two classes or splits.
    """
    root = file.parent
    entries: dict[str, ManifestEntry] = {}
    for line in read_table(file, "path", "label"):
        path, label, split = (line.values.get(name, "") for name in ("path", "label", "split"))
        if not path or not label or "\0" in path:
            raise InputError(f"{line.where}: path is {path!r} and label is {label!r}; both are required")
        number = NUMBER_OF_NAME.get(split.casefold() or "train")
        if number is None:
            raise InputError(
                f"{line.where}: split is {split.casefold()!r}; expected one of {', '.join(NUMBER_OF_NAME)}"
            )
        entry = ManifestEntry(_id(path, root), label, number)
        known = entries.setdefault(entry.id, entry)
        if known != entry:
            raise InputError(f"{line.where}: {path} has a different class or split than in an earlier line")
    if not entries:
        raise InputError(f"{file} lists no images")
    return list(entries.values())


def _id(path: str, root: Path) -> str:
    whole = existing(os.path.normpath(root / path))
    prefix = str(root) + os.sep
    return whole.removeprefix(prefix).replace(os.sep, "/")
