"""In-Shop Clothes Retrieval (Liu et al. 2016), as its authors distribute it: a folder of images and a partition file.

Its items are classes. Half of them are trained on; of the others, some images are queries and the rest is the gallery.
"""

import os
from pathlib import Path

from dr_keras.data.sources.manifest import ManifestEntry
from dr_keras.data.splits import NUMBER_OF_NAME
from dr_keras.errors import InputError

PARTITION = "list_eval_partition.txt"
PLACES = ("", "Eval", "Anno")  # of the partition file
IMAGES = ("", "Img", "Image")  # what a path in it, such as img/WOMEN/..., is relative to
HEADER_LINES = 2  # the number of images, and the names of the columns


def partition_file(folder: Path) -> Path | None:
    """Returns the partition file of In-Shop Clothes Retrieval below a folder; None if it has none."""
    files = (folder / place / PARTITION for place in PLACES)
    return next((file for file in files if file.is_file()), None)


def read_partition(file: Path, root: Path) -> list[ManifestEntry]:
    """Reads a partition file; the images are not opened.

    Args:
        file: Text of lines `img/WOMEN/.../01_1_front.jpg  id_00000080  train`, after two lines of heading; the last
            column is train, query or gallery.
        root: The folder of the data set, which ids are relative to.

    Raises:
        InputError: The file cannot be read, or a line has other columns (the message gives its number).
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    entries: list[ManifestEntry] = []
    place = ""
    for number, line in enumerate(lines[HEADER_LINES:], start=HEADER_LINES + 1):
        columns = line.split()
        if not columns:
            continue
        split = NUMBER_OF_NAME.get(columns[-1])
        if len(columns) != 3 or split is None:
            raise InputError(f"{file}, line {number}: expected a path, an item, and train, query or gallery")
        if not entries:  # whether the images are in a folder of their own
            place = next((name for name in IMAGES if os.path.lexists(root / name / columns[0])), "")
        entries.append(ManifestEntry(str(Path(place) / columns[0]).replace(os.sep, "/"), columns[1], split))
    if not entries:
        raise InputError(f"{file} lists no images")
    return entries
