"""Files that clients may see: images of the index and their thumbnails, and images that clients send."""

import errno
import hashlib
import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from dr_keras.app.problems import Problem
from dr_keras.data import images
from dr_keras.data.formats import Format
from dr_keras.errors import ImageError
from dr_keras.files import new_file

CACHE_BYTES = 64 * 2**20  # of thumbnails: about 16,000 of 128 pixels
FILE_BYTES = 256 * 2**20  # of a file of the gallery that is read to make a thumbnail: more than any photo has
PIECE = 2**18  # bytes of a file sent together
MIN_SIDE, MAX_SIDE = 16, 1024  # pixels of a thumbnail
QUALITY = 85  # of its JPEG: no artefacts that a person sees


@dataclass(frozen=True)
class Opened:
    """An image's file, open for reading; whoever has it closes `descriptor`."""

    descriptor: int
    size: int
    mtime_ns: int
    inode: int
    format: Format

    @property
    def etag(self) -> str:
        return f'"{self.inode:x}-{self.size:x}-{self.mtime_ns:x}"'

    def pieces(self) -> Iterator[bytes]:
        """The content, piece by piece; the file is closed at the end."""
        try:
            place = 0
            while place < self.size:  # no more than was promised, though the file may grow
                piece = os.pread(self.descriptor, min(PIECE, self.size - place), place)
                if not piece:
                    return
                place += len(piece)
                yield piece
        finally:
            self.close()

    def content(self) -> bytes:
        """All of it; the file stays open."""
        if self.size > FILE_BYTES:
            raise Problem(413, f"the image has {self.size:,} bytes; of at most {FILE_BYTES:,} a thumbnail is made")
        with open(self.descriptor, "rb", closefd=False) as file:
            return file.read(self.size)

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def open_image(path: Path, folders: Iterable[Path]) -> Opened:
    """Opens the file of an image that the index names.

    Args:
        path: the file.
        folders: it has to lie below one of them, after all symbolic links are followed.

    Raises:
        Problem: 404 where it is gone, 403 where it lies elsewhere or is no plain file, 415 where it is no image.
    """
    real = os.path.realpath(path)
    if not inside(real, folders):
        raise Problem(403, "this image's file lies outside of the gallery, behind a symbolic link; it is not served")
    try:
        # O_NOFOLLOW: nothing may be put in place of the file that was looked at. O_NONBLOCK: a pipe would wait.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO):
            raise Problem(403, "this image's file may not be read by the server") from None
        raise Problem(404, "this image is in the index and its file is gone; index.py sync removes it") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Problem(403, "this image's file is no plain file; it is not served")
        with open(descriptor, "rb", closefd=False) as file:
            format, _ = _header(file)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return Opened(descriptor, status.st_size, status.st_mtime_ns, status.st_ino, format)
    except BaseException:
        os.close(descriptor)
        raise


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
        with images.opened(source) as (content, format), images.open_image(content, format) as image:
            return format, image.size
    except ImageError as error:
        raise Problem(415, f"this image {error}") from None
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, struct.error and more on bad files
        raise Problem(415, f"this image cannot be read: {error}") from None


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
        raise Problem(415, f"this image {error}") from None
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
