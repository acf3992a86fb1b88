"""Files and folders that appear complete or not at all: written under a temporary name, then renamed."""

import errno
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.errors import InputError

NAME_CHARACTERS = 40  # kept of a file's own name in its temporary name, because file systems limit name lengths

# Flags that not every system has. O_NONBLOCK: opening a pipe would wait for a writer; O_BINARY: Windows would translate
# line breaks.
_OPEN_FLAGS = os.O_RDONLY + sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def cache_folder() -> Path:
    """Returns the folder for downloaded and generated data: $DR_KERAS_CACHE, or else ~/.cache/dr_keras.

    Raises:
        InputError: The variable is not set, and the user has no home directory.
    """
    if named := os.environ.get("DR_KERAS_CACHE"):
        return Path(named)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise InputError("this user has no home directory to keep data in; set DR_KERAS_CACHE to a folder")
    return Path(home) / ".cache" / "dr_keras"


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Opens a regular file for reading, unbuffered; never blocks on a pipe or a device.

    Args:
        path: The file.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except ValueError as error:  # a null byte
        raise OSError(errno.EINVAL, str(error), path) from None
    file = io.FileIO(descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return file


def sha256_of(path: str | os.PathLike[str]) -> bytes:
    """Returns the SHA-256 of a file's content, 32 bytes, without reading the whole file into memory.

    Args:
        path: A regular file.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        import hashlib  # which takes a while, and most commands need none of it

        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Writes a file that replaces `path` when the block succeeds.

    Args:
        path: The file to write; its folder is created if necessary.

    Yields:
        A temporary path in the same folder, removed if the block fails. It keeps the suffix of `path`, because writers
        such as `keras.Model.save` choose the format by it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with new_file(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("complete")
        ...     (Path(folder) / "a.txt").read_text()
        'complete'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem[:NAME_CHARACTERS]}.{os.urandom(8).hex()}{path.suffix}"
    temporary.touch(exist_ok=False)  # with the permissions that the process gives to new files
    try:
        yield temporary
        with open(temporary, "r+b" if os.name == "nt" else "rb") as file:  # Windows flushes only writable files
            os.fsync(file.fileno())  # otherwise a power failure may keep the name but not the content
        os.replace(temporary, path)
        sync_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Fills a folder that becomes `path` when the block succeeds.

    Args:
        path: The folder to make; its parents are created if necessary.
        replace: Whether to replace a folder that exists by then. Otherwise the existing one is kept,
            because another process has already made the same content, and the new one is removed.

    Yields:
        An empty temporary folder beside `path`, removed if the block fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:NAME_CHARACTERS]}.{os.urandom(8).hex()}"
    temporary.mkdir()
    try:
        yield temporary
        old = Path(f"{temporary}.old")
        if replace and path.exists():  # a folder cannot be renamed onto one that is not empty
            path.rename(old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                old.rename(path)
            if replace or not path.is_dir():
                raise
        sync_names(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Reads a file that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically.

    Args:
        path: The file; its folder is created if necessary.
        value: Anything that `json.dumps` accepts.
    """
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as .npy, atomically and without pickle.

    Args:
        path: The file; its folder is created if necessary.
        array: An array of numbers.
    """
    with new_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def sync_names(folder: Path) -> None:
    """Flushes the names in a folder to disk, so that a new file still has its name after a power failure."""
    if os.name == "nt":
        return  # Windows cannot open folders, and journals their names
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
