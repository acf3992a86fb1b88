"""Files and folders that appear complete or not at all: written under a temporary name, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def cache_folder() -> Path:
    """Where downloaded and generated data are kept: $DR_KERAS_CACHE, else ~/.cache/dr_keras."""
    return Path(os.environ.get("DR_KERAS_CACHE") or Path.home() / ".cache" / "dr_keras")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on an error it is removed.

    The temporary name keeps the suffix, because writers such as `keras.Model.save` choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
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
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
