"""Unpacks zip and tar archives into folders atomically."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from dr_keras.atomic_files import cache_folder, new_folder
from dr_keras.errors import InputError

MACOS_METADATA = "__MACOSX"  # a folder that macOS adds to its zip files


def archive_folder(file: Path) -> Path:
    """Returns a cached folder with the content of an archive, which is unpacked again if it has changed.

    Raises:
        InputError: As for `unpack`.
    """
    file = file.resolve()
    status = file.stat()
    name = f"{file.name}-{zlib.crc32(str(file).encode(errors='surrogateescape')):08x}"
    folder = cache_folder() / "archives" / f"{name}-{status.st_size:x}-{status.st_mtime_ns:x}"
    if not folder.is_dir():
        unpack(file, folder)
        for old in folder.parent.glob(f"{name}-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
    return folder


def is_archive(file: Path) -> bool:
    """Returns whether the content of a file is a zip or tar archive."""
    return zipfile.is_zipfile(file) or tarfile.is_tarfile(file)


def unpack(file: Path, folder: Path) -> None:
    """Unpacks an archive into a folder, without the single top-level folder that may contain everything.

    Nothing is written outside `folder`, whatever names the archive contains.

    Args:
        file: A zip or tar file.
        folder: The folder to create.

    Raises:
        InputError: The archive is damaged, encrypted, or has names outside of its folder, or the disk is too small.
    """
    try:
        with new_folder(folder, replace=False) as temporary:
            if zipfile.is_zipfile(file):
                _unzip(file, temporary)
            else:
                with tarfile.open(file) as tar:
                    tar.extractall(temporary, filter=_tar_filter)
            _remove_top(temporary)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{file} cannot be unpacked to {folder.parent}: {error}") from error


def _unzip(file: Path, folder: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        needed = sum(member.file_size for member in archive.infolist())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(f"it needs {needed:,} bytes, but only {free:,} are free")
        for member in archive.infolist():
            member.filename = _with_slashes(member.filename)
            archive.extract(member, folder)  # removes '..' and absolute prefixes from names, and checks each CRC


def _tar_filter(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Rejects absolute names, '..', links to the outside, and devices."""
    return tarfile.data_filter(member.replace(name=_with_slashes(member.name), deep=False), folder)


def _with_slashes(name: str) -> str:
    """Replaces the backslashes that some Windows programs use as separators."""
    return name.replace("\\", "/") if "/" not in name else name


def _remove_top(folder: Path) -> None:
    shutil.rmtree(folder / MACOS_METADATA, ignore_errors=True)
    while True:
        inside = list(folder.iterdir())
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].is_symlink() or inside[0].name == "train":
            return
        top = inside[0].rename(folder / ".top")  # a new name, because it may contain an entry with its own name
        for path in list(top.iterdir()):
            path.rename(folder / path.name)
        top.rmdir()
