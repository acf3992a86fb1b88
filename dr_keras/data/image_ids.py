"""An image's id: its path relative to the root folder of its collection, with forward slashes.

An image outside the root has its absolute path as its id. All conversions between ids and paths are here.
"""

import os


def image_id(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """The id of a file.

    Args:
        path: The file's absolute path.
        root: The collection's folder, an absolute path.

    Returns:
        The path relative to `root`, with forward slashes, or the absolute path of a file outside it.
    """
    return os.fspath(path).removeprefix(os.path.join(root, "")).replace(os.sep, "/")


def image_path(id: str, root: str | os.PathLike[str]) -> str:
    """The path of the file with an id, which is relative to `root` or absolute."""
    return os.path.join(root, id.replace("/", os.sep))


def is_outside_root(id: str) -> bool:
    """Whether an id is an absolute path, so the image does not depend on the root."""
    return os.path.isabs(id)
