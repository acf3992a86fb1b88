"""Finds the image that a name refers to, for the library, the commands and the server."""

import os
from pathlib import Path

from dr_keras.data.image_ids import image_id, image_path
from dr_keras.errors import InputError
from dr_keras.filenames import existing
from dr_keras.index.index import Index


def find_indexed(index: Index, name: str) -> int:
    """Finds an image of an index without looking at the file system: for names from untrusted clients.

    Args:
        index: The index. Hold it (`index.held()`) for as long as the row is used.
        name: The image's id, its path, or its base name if that is unique.

    Returns:
        The image's row.

    Raises:
        InputError: No image has this name (the message suggests similar ones), or several have.
    """
    return index.records.find(name)


def resolve(index: Index, name: str) -> int | Path:
    """Finds an image of an index, or else an image file.

    Args:
        index: The index. Hold it (`index.held()`) for as long as a row is used.
        name: As in `find_indexed`, or the path of any other file. A name that begins with '.', '/' or '~' always
            means a file if there is one of that name.

    Returns:
        The image's row, or the path of a file that is not in the index.

    Raises:
        InputError: No image and no file has this name (the message suggests similar ones), or several images have.
    """
    file = existing(os.path.expanduser(name))  # in the Unicode form that it has on disk
    exists = os.path.lexists(file)  # a file that is not an image is rejected when it is read
    if exists and name.startswith((".", "/", "~")):
        row = _row_of_file(index, file)
        return Path(file) if row is None else row
    try:
        return index.records.find(name, hint=", and there is no such file")
    except InputError:
        if exists and not os.path.isdir(file):
            return Path(file)
        raise


def file_named(index: Index | None, name: str) -> Path:
    """Returns the file of an image of an index, or of any other image; see `resolve`.

    Args:
        index: The index; None if names are only those of files.
        name: As in `resolve`.

    Raises:
        InputError: As in `resolve`.
    """
    if index is None:
        return Path(os.path.expanduser(name))
    with index.held():
        found = resolve(index, name)
        return found if isinstance(found, Path) else Path(image_path(index.records.entries([found])[0].id, index.root))


def _row_of_file(index: Index, file: str) -> int | None:
    paths = (os.path.abspath(file), os.path.realpath(file))  # class folders may be symbolic links
    ids = (image_id(path, index.root) for path in paths)
    return next((row for id in ids if (row := index.records.row(id)) is not None), None)
