"""An image's id: its path relative to the root folder of its collection, with forward slashes.

An image that lies outside the root has its whole path as its id. Every module that turns one into the other does it
here.
"""

import os


def image_id(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """The id of a file.

    Args:
        path: the file's absolute path.
        root: the collection's folder, an absolute path.

    Returns:
        The path relative to `root`, with forward slashes, or the whole path of a file outside it.
    """
    return os.fspath(path).removeprefix(os.path.join(root, "")).replace(os.sep, "/")


def image_path(id: str, root: str | os.PathLike[str]) -> str:
    """The path of the file that an id names, whether it lies below `root` or has its whole path as its id."""
    return os.path.join(root, id.replace("/", os.sep))


def is_outside_root(id: str) -> bool:
    """Whether an id is a whole path, so that the image does not depend on the root."""
    return os.path.isabs(id)
