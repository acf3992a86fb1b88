"""The files behind the API: images of the index and their thumbnails, and images that clients upload."""

import errno
import functools
import hashlib
import io
import operator
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dr_keras.atomic_files import new_file
from dr_keras.data import images
from dr_keras.data.formats import Format
from dr_keras.data.thumbnails import jpeg_thumbnail
from dr_keras.errors import ImageError
from dr_keras.invocation import command
from dr_keras.lru import LRUCache
from dr_keras.server.errors import Problem, busy
from dr_keras.server.open_file import OpenFile

CACHE_BYTES = 64 * 2**20  # about 16,000 thumbnails of 128 pixels
MAX_FILE_BYTES = 256 * 2**20  # of a file to make a thumbnail of: larger than any photo
MIN_THUMBNAIL_PIXELS, MAX_THUMBNAIL_PIXELS = 16, 1024  # of the longer side
JPEG_QUALITY = 85  # no visible artifacts
UPLOAD_NAME = re.compile(r"[0-9a-f]{40}\.\w+")  # of the files of `store_upload`


@dataclass(frozen=True)
class Opened:
    """An image's file, open for reading. Its owner closes it; closing it twice is harmless.

    Attributes:
        file: The open file.
        size: In bytes.
        mtime_ns: Time of the last modification, in nanoseconds since the epoch.
        inode: The file's inode number.
        format: The image's format.
    """

    file: OpenFile
    size: int
    mtime_ns: int
    inode: int
    format: Format

    @property
    def etag(self) -> str:
        """The file's strong entity tag."""
        state = f"{self.inode} {self.size} {self.mtime_ns}".encode()
        return f'"{hashlib.sha256(state).hexdigest()[:32]}"'  # which does not tell when the file was changed

    def content(self) -> bytes:
        """Reads the whole file, which stays open.

        Raises:
            Problem: 413 if it is too large.
        """
        if self.size > MAX_FILE_BYTES:
            raise Problem(
                413, f"the image has {self.size:,} bytes; thumbnails are made of images up to {MAX_FILE_BYTES:,} bytes"
            )
        return self.file.read(0, self.size)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def open_image(path: Path, folders: Iterable[Path]) -> Opened:
    """Opens the file of an image of the index.

    Args:
        path: The file.
        folders: The file must lie below one of these, with all symbolic links resolved.

    Returns:
        The open file.

    Raises:
        Problem: 404 if the file is gone, 403 if it lies elsewhere or is not a plain file, 415 if it is not an image,
            503 if it cannot be opened now.
    """
    real = os.path.realpath(path)
    if not inside(real, folders):
        raise Problem(403, "this image's file lies outside of the gallery, behind a symbolic link; it is not served")
    try:
        raw = io.FileIO(real, opener=_open)  # owns the descriptor from the start
    except IsADirectoryError:
        raise Problem(403, "this image's file is no plain file; it is not served") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO):
            raise Problem(403, "the server has no permission to read this image's file") from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Problem(
                404,
                f"this image is in the index, but its file is gone; "
                f"{command('index')} sync --remove-missing removes it",
            ) from None
        raise busy("this image's file cannot be opened now; try again") from None  # out of descriptors, for example
    try:
        status = os.fstat(raw.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Problem(403, "this image's file is no plain file; it is not served")
        file: io.BufferedReader = io.BufferedReader(raw)
        try:
            format, _ = _header(file)
        finally:
            file.detach()  # otherwise it would close `raw`
        return Opened(OpenFile(raw), status.st_size, status.st_mtime_ns, status.st_ino, format)
    except BaseException:
        raw.close()
        raise


# O_NOFOLLOW: the file that was checked cannot be replaced by a link. O_NONBLOCK: opening a pipe would block forever.
# Windows lacks these flags; there O_BINARY leaves line endings unchanged.
_OPEN_FLAGS = os.O_RDONLY | functools.reduce(
    operator.or_, (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
)


def _open(path: str, _: int) -> int:
    return os.open(path, _OPEN_FLAGS)


def inside(real: str, folders: Iterable[Path]) -> bool:
    """Whether a path, whose symbolic links are resolved, lies below one of the folders."""
    return any(real.startswith(os.path.join(os.path.realpath(folder), "")) for folder in folders)


def examine(data: bytes, pixels: int) -> Format:
    """Checks the header of an uploaded image, without decoding it.

    Args:
        data: The encoded image.
        pixels: The most that it may have.

    Returns:
        The image's format.

    Raises:
        Problem: 400 if it is empty, 415 if it is not an image of a known format, 413 if it has more pixels.
    """
    if not data:
        raise Problem(400, "the image is empty (0 bytes)")
    format, (width, height) = _header(data)
    if width * height > pixels:
        raise Problem(413, f"the image has {width:,} x {height:,} pixels; at most {pixels:,} are accepted")
    return format


def _header(source: bytes | IO[bytes]) -> tuple[Format, tuple[int, int]]:
    """The format, width and height of an image, by the same rules as in training."""
    try:
        return images.look(source)
    except ImageError as error:
        raise Problem(415, f"this file {error}") from None


class Thumbnails:
    """Makes thumbnails and caches the most recently used ones. Its methods may be called from several threads.

    Args:
        limit: The size of the cache in bytes.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.cache: LRUCache[tuple[str, int], bytes] = LRUCache(limit, len)

    def get(self, opened: Opened, side: int) -> bytes:
        """Returns the thumbnail of an image.

        Args:
            opened: The image's file, which stays open.
            side: The maximum length of the longer side, in pixels.

        Returns:
            An encoded JPEG.

        Raises:
            Problem: 415 if the image cannot be decoded, 413 if its file is too large.
        """
        key = (opened.etag, side)
        made = self.cache.get(key)
        if made is None:
            try:
                made = jpeg_thumbnail(opened.content(), side, JPEG_QUALITY)
            except ImageError as error:
                raise Problem(415, f"this file {error}") from None
            self.cache.put(key, made)
        return made


def store_upload(data: bytes, format: Format, folder: Path) -> tuple[Path, bytes, bool]:
    """Stores an uploaded image under the hash of its content; no part of the file's name comes from the client.

    Args:
        data: The encoded image.
        format: Its format, which determines the file's ending.
        folder: The uploads folder.

    Returns:
        The file, the SHA-256 of its content, and whether it is new.
    """
    digest = hashlib.sha256(data)
    file = folder / f"{digest.hexdigest()[:40]}{format.ending}"
    if file.is_file() and not file.is_symlink() and file.stat().st_size == len(data):
        return file, digest.digest(), False
    with new_file(file) as temporary:
        temporary.write_bytes(data)
    return file, digest.digest(), True


def remove_upload(path: Path, folder: Path) -> bool:
    """Removes a file if it lies directly in the uploads folder and has the name of an upload.

    The folder may hold other pictures, which are their owner's.

    Returns:
        Whether the file is gone; any other file is left alone.
    """
    if os.path.realpath(path.parent) != os.path.realpath(folder) or not UPLOAD_NAME.fullmatch(path.name):
        return False
    with suppress(FileNotFoundError):
        (Path(os.path.realpath(folder)) / path.name).unlink()  # removes a link itself, never its target
    return True
