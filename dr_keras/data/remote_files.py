"""Files on object stores, such as s3://photos/2024/cat.jpg, by fsspec and the package that it needs for each store."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from dr_keras.data.folders import passed_over
from dr_keras.data.formats import says_picture
from dr_keras.errors import InputError, MissingPackage
from dr_keras.extras import how_to_install

PACKAGES = {  # for each scheme
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
}
READ_AT_ONCE = 16  # files; a store answers each request slowly, but many at a time

_TIMES = ("LastModified", "last_modified", "mtime", "updated")  # what stores call the time of the last change
_CHECKS = ("ETag", "etag", "md5Hash")  # and what changes with the content

Status = tuple[int | None, int | None]
"""The size of a file in bytes, and the time of its last change in nanoseconds; None for both if it is gone."""


def remote_pictures(url: str) -> dict[str, Status]:
    """Lists the images below an address by their suffixes, sorted, each with its status.

    Raises:
        InputError: The store cannot be listed.
        MissingPackage: The package for this store is not installed.
    """
    try:
        with _plain_errors(url):
            system, top = _system(url)
            found = system.find(top, detail=True)
    except OSError as error:
        raise InputError(f"{url} cannot be listed: {error.strerror or error}") from error
    below = f"{top.rstrip('/')}/"
    pictures = {}
    for path, about in sorted(found.items()):
        parts = path.removeprefix(below).split("/")
        if path != top and (not path.startswith(below) or any(map(passed_over, parts)) or not says_picture(parts[-1])):
            continue
        if about.get("type") == "file" and not path.endswith("/"):
            pictures[system.unstrip_protocol(path)] = _status(about)
    return pictures


def remote_status(url: str) -> Status:
    """Returns the status of a file.

    Raises:
        InputError: The store does not answer, or refuses.
        MissingPackage: The package for this store is not installed.
    """
    try:
        with _plain_errors(url):
            system, path = _system(url)
            return _status(system.info(path))
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise InputError(f"{url} cannot be looked at: {error.strerror or error}") from error


def read_remote(url: str) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: It cannot be read.
        MissingPackage: The package for this store is not installed.
    """
    with _plain_errors(url):
        system, path = _system(url)
        return system.cat_file(path)


def download(urls: Sequence[str], folder: str) -> dict[str, str | OSError]:
    """Downloads files into a folder, under other names with the same suffixes.

    Returns:
        For each address the path of its content, or why it cannot be read.
    """

    def one(number: int, url: str) -> str | OSError:
        place = os.path.join(folder, f"{number}{os.path.splitext(url)[1]}")
        try:
            content = read_remote(url)
        except OSError as error:
            return error
        with open(place, "wb") as file:
            file.write(content)
        return place

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        return dict(zip(urls, pool.map(one, range(len(urls)), urls), strict=True))


def _system(url: str) -> tuple[Any, str]:
    """The file system of a store, and the path of a file in it."""
    from fsspec.core import url_to_fs

    return url_to_fs(url, use_listings_cache=False)


def _status(about: dict[str, Any]) -> Status:
    """The status of a file, from what the store says of it; without a time, what changes with the content is for it."""
    time = next((about[name] for name in _TIMES if about.get(name) is not None), None)
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        return about["size"], int(time.timestamp()) * 10**9 + time.microsecond * 1000
    if isinstance(time, int | float):
        return about["size"], int(time * 10**9)
    check = next((str(about[name]) for name in _CHECKS if about.get(name) is not None), None)
    if check is None:
        return about["size"], None
    import hashlib

    return about["size"], int.from_bytes(hashlib.sha256(check.encode()).digest()[:7])


@contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    """Turns whatever the packages of stores raise into an OSError with a message."""
    try:
        yield
    except ImportError as error:
        package = PACKAGES[url.partition(":")[0]]
        raise MissingPackage(f"{url} needs the package {package}: {how_to_install(package)}") from error
    except OSError:
        raise
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise OSError(errno.EIO, message) from error
