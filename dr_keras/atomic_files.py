"""Files and folders that appear complete or not at all: written under a temporary name, then renamed."""

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.errors import InputError


def cache_folder() -> Path:
    """Where downloaded and generated data are kept: $DR_KERAS_CACHE, else ~/.cache/dr_keras.

    Raises:
        InputError: neither is known.
    """
    if named := os.environ.get("DR_KERAS_CACHE"):
        return Path(named)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise InputError("this user has no home directory to keep data in; set DR_KERAS_CACHE to a folder")
    return Path(home) / ".cache" / "dr_keras"


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Opens a file for reading, unbuffered; nothing that could block, such as a pipe or a device.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        # O_NONBLOCK: a pipe would wait for someone to write to it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a null byte
        raise OSError(errno.EINVAL, str(error), path) from None
    file = io.FileIO(descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return file


def sha256_of(path: str | os.PathLike[str]) -> bytes:
    """SHA-256 of a regular file's content, 32 bytes; read in blocks. Raises OSError where it cannot be read."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on an error it is removed.

    The temporary name keeps the suffix, because writers such as `keras.Model.save` choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem[:40]}.{secrets.token_hex(8)}{path.suffix}"
    temporary.touch(exist_ok=False)  # with the rights that the process gives to new files
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # or a machine that loses power may keep the name and not the content
        os.replace(temporary, path)
        sync_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`; on success it becomes `path`, on an error it is removed.

    Args:
        path: the folder to make.
        replace: whether it takes the place of a folder that is there; if not, that one stays (another process that made
            the same thing was faster) and this one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        yield temporary
        old = Path(f"{temporary}.old")
        if replace and path.exists():  # a folder cannot be renamed onto one that holds files
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
    """Reads what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes `array` as .npy, atomically and without pickle."""
    with new_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def sync_names(folder: Path) -> None:
    """Brings the names in a folder to the disk, or a machine that loses power may not know a new one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
