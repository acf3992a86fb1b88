"""Files that clients may see: images of the index and their thumbnails, and images that clients send."""

import errno
import hashlib
import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from dr_keras.atomic_files import new_file
from dr_keras.data import images
from dr_keras.data.formats import Format
from dr_keras.errors import ImageError
from dr_keras.server.errors import Problem, busy
from dr_keras.server.open_file import OpenFile

CACHE_BYTES = 64 * 2**20  # of thumbnails: about 16,000 of 128 pixels
FILE_BYTES = 256 * 2**20  # of a file of the gallery that is read to make a thumbnail: more than any photo has
MIN_SIDE, MAX_SIDE = 16, 1024  # pixels of a thumbnail
QUALITY = 85  # of its JPEG: no artefacts that a person sees


@dataclass(frozen=True)
class Opened:
    """An image's file, open for reading; whoever has it closes it, and may do so twice.

    Attributes:
        file: its content.
        size: in bytes.
        mtime_ns: time of its last change, in nanoseconds since 1970.
        inode: its number in its file system.
        format: of the image.
    """

    file: OpenFile
    size: int
    mtime_ns: int
    inode: int
    format: Format

    @property
    def etag(self) -> str:
        return f'"{self.inode:x}-{self.size:x}-{self.mtime_ns:x}"'

    def content(self) -> bytes:
        """All of it; the file stays open."""
        if self.size > FILE_BYTES:
            raise Problem(413, f"the image has {self.size:,} bytes; of at most {FILE_BYTES:,} a thumbnail is made")
        return self.file.read(0, self.size)

    def close(self) -> None:
        self.file.close()


def open_image(path: Path, folders: Iterable[Path]) -> Opened:
    """Opens the file of an image that the index names.

    Args:
        path: the file.
        folders: it has to lie below one of them, after all symbolic links are followed.

    Raises:
        Problem: 404 where it is gone, 403 where it lies elsewhere or is no plain file, 415 where it is no image, 503
            where it cannot be opened now.
    """
    real = os.path.realpath(path)
    if not inside(real, folders):
        raise Problem(403, "this image's file lies outside of the gallery, behind a symbolic link; it is not served")
    try:
        raw = io.FileIO(real, opener=_open)  # owns the descriptor from its first moment on
    except IsADirectoryError:
        raise Problem(403, "this image's file is no plain file; it is not served") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO):
            raise Problem(403, "this image's file may not be read by the server") from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Problem(
                404, "this image is in the index and its file is gone; index.py sync --remove-missing removes it"
            ) from None
        raise busy("this image's file cannot be opened now; try again") from None  # no descriptor or disk, say
    try:
        status = os.fstat(raw.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Problem(403, "this image's file is no plain file; it is not served")
        file: io.BufferedReader = io.BufferedReader(raw)
        try:
            format, _ = _header(file)
        finally:
            file.detach()  # or it would close what it was lent
        return Opened(OpenFile(raw), status.st_size, status.st_mtime_ns, status.st_ino, format)
    except BaseException:
        raw.close()
        raise


def _open(path: str, _: int) -> int:
    # O_NOFOLLOW: nothing may be put in place of the file that was looked at. O_NONBLOCK: a pipe would wait.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def inside(real: str, folders: Iterable[Path]) -> bool:
    """Whether a path without symbolic links lies below one of the folders."""
    return any(real.startswith(os.path.join(os.path.realpath(folder), "")) for folder in folders)


def examine(data: bytes, pixels: int) -> Format:
    """Looks at the header of an image that a client sent; decodes nothing.

    Args:
        data: the encoded image.
        pixels: how many it may have.

    Raises:
        Problem: 415 where it is no image of a known format, 413 where it has more pixels.
    """
    if not data:
        raise Problem(400, "the image is empty (0 bytes)")
    format, (width, height) = _header(data)
    if width * height > pixels:
        raise Problem(413, f"the image has {width:,} x {height:,} pixels; at most {pixels:,} are taken")
    return format


def _header(source: bytes | IO[bytes]) -> tuple[Format, tuple[int, int]]:
    """The format and the width and height of an image, by the one rule that training and indexes go by."""
    try:
        return images.look(source)
    except ImageError as error:
        raise Problem(415, f"this file {error}") from None


class Thumbnails:
    """Makes small pictures of files and keeps the latest in memory; its methods may be called from several threads."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._guard = threading.Lock()

    def get(self, opened: Opened, side: int) -> bytes:
        """A JPEG of an image whose longer side has at most `side` pixels.

        Raises:
            Problem: 415 where it cannot be decoded.
        """
        key = (opened.etag, side)
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = _thumbnail(opened.content(), side)
        with self._guard:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > self._limit and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def _thumbnail(data: bytes, side: int) -> bytes:
    try:
        image = images.read(data, draft=side)
    except ImageError as error:
        raise Problem(415, f"this file {error}") from None
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def store_upload(data: bytes, format: Format, folder: Path) -> tuple[Path, bytes, bool]:
    """Stores an image under the hash of its content; nothing of its name is the client's.

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
    """Removes a file that lies directly in the uploads folder; any other is left. Returns whether it is gone."""
    if os.path.realpath(path.parent) != os.path.realpath(folder) or path.name in ("", ".", ".."):
        return False
    with suppress(FileNotFoundError):
        (Path(os.path.realpath(folder)) / path.name).unlink()  # a link itself, never what it points to
    return True
