"""An image's id: its path relative to the root folder of its collection, with forward slashes.

An image outside the root has its absolute path as its id, and one on an object store its address. All conversions
between ids and paths are here.
"""

import os
import re

STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # the schemes of the addresses of files on object stores

_ADDRESS = re.compile(rf"({'|'.join(STORES)}):/+(?=[^/])")


def url_of(path: str | os.PathLike[str]) -> str | None:
    """Returns the address of a file on an object store, or None for a file on this machine.

    Args:
        path: A path; `pathlib` drops one of the slashes of an address, so both forms are understood.

    Example:
        >>> url_of("s3://photos/cat.jpg"), url_of("s3:/photos/cat.jpg"), url_of("photos/cat.jpg")
        ('s3://photos/cat.jpg', 's3://photos/cat.jpg', None)
    """
    text = os.fspath(path)
    if ":/" not in text or (found := _ADDRESS.match(text)) is None:
        return None
    return f"{found[1]}://{text[found.end() :]}"


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
    """The path of the file with an id, which is relative to `root` or absolute, or its address."""
    if (url := url_of(id)) is not None:
        return url
    return os.path.join(root, id.replace("/", os.sep))


def is_outside_root(id: str) -> bool:
    """Whether an id is an absolute path or an address, so the image does not depend on the root."""
    return os.path.isabs(id) or url_of(id) is not None
