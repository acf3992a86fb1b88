"""The only image decoder: training, search, and the server all turn a file or its bytes into RGB uint8 here."""

import importlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps

from dr_keras.atomic_files import open_regular
from dr_keras.data import metadata
from dr_keras.data.depths import check_depth, eight_bits
from dr_keras.data.exif import facts_of
from dr_keras.data.formats import FORMATS, HEAD_BYTES, UPDATE, Format, sniff
from dr_keras.data.image_ids import url_of
from dr_keras.data.remote_files import read_remote
from dr_keras.errors import ImageError

# More than any photo that people search with, and few enough (0.4 GB as RGB) to decode safely.
MAX_PIXELS = 128_000_000
IN_MEMORY_BYTES = 64 * 2**20  # a larger file is not read into memory at once: its decoder reads what it needs
BUFFER_BYTES = 2**18  # read from such a file at a time

T = TypeVar("T")
LookAt = Callable[[Image.Image, tuple[int, int]], dict[str, Any]]
ImageInput = str | os.PathLike[str] | bytes | Image.Image

PADDING = (128, 128, 128)  # the middle of the range, which the networks scale to 0
BILINEAR = Image.Resampling.BILINEAR  # Pillow's filter widens when it shrinks an image, so it does not alias

ORIENTATION = 0x112  # the EXIF tag
UPRIGHT = {  # the operation that turns an image of each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(source: ImageInput, size: int, resize: str = "stretch") -> np.ndarray:
    """Decodes one image into a square.

    EXIF orientation is applied if it can be read, transparency is composited over white, and the first frame of an
    animation is used. Grayscale deeper than 8 bits is scaled to 8 bits: by the depth that the format declares (PGM,
    JPEG 2000), or else by the smallest of `dr_keras.data.depths.DEPTHS_BITS` that holds the largest value.

    Args:
        source: A path, the bytes of an encoded image, or a PIL image. A large JPEG given as a path or as bytes is
            shrunk while it is decoded; given as a PIL image, its pixels can differ by 2 or 3 levels.
        size: The side of the square, in pixels.
        resize: 'stretch' changes the proportions, 'crop' keeps the middle square, and 'pad' keeps the whole image and
            fills the rest with gray.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        ImageError: The source is empty, not an image, truncated, larger than `MAX_PIXELS`, of an unknown depth, or in
            a format whose decoder is not installed (the message says what to install).

    Example:
        >>> decode(Image.new("RGB", (30, 20), "white"), 8).shape
        (8, 8, 3)
    """
    return square(read(source, draft=2 * size), size, resize)


def decode_with_facts(source: ImageInput, size: int, resize: str = "stretch") -> tuple[np.ndarray, dict[str, Any]]:
    """Decodes one image into a square, and returns what its file says of it, see `dr_keras.data.exif`.

    Args:
        source, size, resize: As for `decode`. Of a PIL image, nothing is known.

    Raises:
        ImageError: As for `decode`.
    """
    image, facts = read_with_facts(source, draft=2 * size)
    return square(image, size, resize), facts


def square(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """Makes a decoded image square, (size, size, 3) uint8; `resize` as for `decode`."""
    width, height = image.size
    if width == height == size:
        return np.asarray(image)
    if resize == "crop":
        return np.asarray(ImageOps.fit(image, (size, size), BILINEAR))
    if resize == "pad":
        return np.asarray(_padded(image, size))
    return np.asarray(image.resize((size, size), BILINEAR))


def _padded(image: Image.Image, size: int) -> Image.Image:
    """Centers an image on a gray square; even the thinnest image is at least one pixel wide."""
    longer = max(image.size)
    width, height = (max(1, round(side / longer * size)) for side in image.size)
    square = Image.new("RGB", (size, size), PADDING)
    square.paste(image.resize((width, height), BILINEAR), (round((size - width) / 2), round((size - height) / 2)))
    return square


def read(source: ImageInput, draft: int | None = None) -> Image.Image:
    """Decodes one image upright and in RGB, at its original size.

    Args:
        source: As for `decode`.
        draft: A size in pixels. A JPEG whose sides are at least twice as long may be decoded at 1/2, 1/4 or 1/8 of its
            size, but not smaller than `draft`, which is many times faster for a large photo.

    Raises:
        ImageError: As for `decode`.
    """
    return _read(source, draft, lambda *_: {})[0]


def read_with_facts(source: ImageInput, draft: int | None = None) -> tuple[Image.Image, dict[str, Any]]:
    """Decodes one image as `read` does, and returns what its file says of it, see `dr_keras.data.exif`."""
    return _read(source, draft, facts_of)


def _read(source: ImageInput, draft: int | None, look_at: LookAt) -> tuple[Image.Image, dict[str, Any]]:
    """`read`, and what `look_at` finds in the loaded picture, given its size before."""
    if isinstance(source, Image.Image):
        with _as_image_error():
            source.load()  # if it was opened from a file, it may not be decoded yet
            return _to_rgb(source, deep=False), {}
    with _opened(source) as (file, format):
        return _tried(file, format, lambda content: _decoded(content, format, draft, look_at))


def look(source: str | os.PathLike[str] | bytes | IO[bytes]) -> tuple[Format, tuple[int, int]]:
    """Returns the format of an image, and its width and height as stored, before it is turned upright.

    The pixels are not decoded, except those of raw photos and JPEG XL.

    Args:
        source: A path, the bytes of an encoded image, or an open file, which stays open.

    Raises:
        ImageError: As for `decode`.
    """
    with _opened(source) as (file, format):

        def size(content: IO[bytes]) -> tuple[int, int]:
            with _open_image(content, format) as image:
                return image.size

        return format, _tried(file, format, size)


def facts(source: bytes) -> dict[str, Any]:
    """Returns what the bytes of an encoded image say of it, see `dr_keras.data.exif.facts_of`.

    Raises:
        ImageError: As for `decode`.
    """
    with _opened(source) as (file, format):

        def known(content: IO[bytes]) -> dict[str, Any]:
            with _open_image(content, format) as image:
                return facts_of(image, image.size)

        return _tried(file, format, known)


def _tried(file: IO[bytes], format: Format, use: Callable[[IO[bytes]], T]) -> T:
    """Applies `use` to an image; if that fails, to the image without its metadata, which may be damaged."""
    try:
        return use(file)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error and more on damaged files
        if (plain := metadata.without(file, format.name)) is not None:
            with _as_image_error(error):
                return use(io.BytesIO(plain))
        raise ImageError(f"cannot be decoded: {_reason(error)}") from error


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Iterator[tuple[IO[bytes], Format]]:
    """Yields an image's content and its format, determined from its first bytes.

    Raises:
        ImageError: The source is empty, not a regular file, not an image, or cannot be read.
    """
    with _bytes_of(source) as (file, size):
        if not size:
            raise ImageError("is empty (0 bytes)")
        head = file.read(HEAD_BYTES)
        file.seek(0)
        format = sniff(head, size, source if isinstance(source, str | os.PathLike) else None)
        if format is None:
            raise ImageError("is not an image in a known format")
        yield file, format


@contextmanager
def _bytes_of(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Iterator[tuple[IO[bytes], int]]:
    """Yields the content and its length in bytes; a small file is read into memory at once."""
    if isinstance(source, bytes):
        yield io.BytesIO(source), len(source)
        return
    if not isinstance(source, str | os.PathLike):
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        yield source, size
        return
    try:
        if (url := url_of(source)) is not None:
            content = read_remote(url)
        else:
            with open_regular(source) as file:
                size = os.fstat(file.fileno()).st_size
                if size > IN_MEMORY_BYTES:
                    yield io.BufferedReader(file, BUFFER_BYTES), size
                    return
                content = file.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    yield io.BytesIO(content), len(content)


@contextmanager
def _as_image_error(first: Exception | None = None) -> Iterator[None]:
    """Turns any exception into an ImageError, with the message of `first` if given."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"cannot be decoded: {_reason(first or error)}") from error


def _reason(error: Exception) -> str:
    """A decoder's error message as text: LibRaw's are bytes, and report a truncated file as an input/output error."""
    said = error.args[0] if error.args else ""
    reason = said.decode(errors="replace") if isinstance(said, bytes) else str(error)
    return "the file is damaged or ends early" if reason == "Input/output error" else reason


def _decoded(file: IO[bytes], format: Format, draft: int | None, look_at: LookAt) -> tuple[Image.Image, dict[str, Any]]:
    with _open_image(file, format) as image:
        _check_size(*image.size)
        size = image.size  # a draft is smaller
        if draft is not None and image.format == "JPEG" and min(image.size) >= 2 * draft:
            image.draft(None, (draft, draft))
        deep = isinstance(image, ImageFile.ImageFile) and any(";16" in str(tile[3]) for tile in image.tile)
        image.load()
        facts = look_at(image, size)  # not before: to look for metadata, Pillow may load the pixels, and hide damage
        return _to_rgb(image, deep=deep), facts


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"has {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")


def _open_image(file: IO[bytes], format: Format) -> Image.Image:
    """Opens an image without decoding it (except raw photos), like `PIL.Image.open`.

    Pillow's function would try every format that it knows, including those for which it starts external programs, and
    it checks sizes against a process-wide limit.

    Args:
        file: The content, positioned at its beginning.
        format: Its format.

    Raises:
        ImageError: The format needs a decoder that is not installed.
        Exception: Whatever Pillow's plugin raises for damaged content.
    """
    if format.remedy:
        return _open_with_extra(file, format)
    if format.name == "TIFF":
        from dr_keras.data.tiff import UprightTiff, is_raw

        return _open_with_extra(file, FORMATS["RAW"]) if is_raw(file) else UprightTiff(file)
    if format.name not in Image.OPEN:
        with suppress(ImportError):  # its reader alone; all of them take a while
            importlib.import_module(f"PIL.{format.name.capitalize()}ImagePlugin")
    if format.name not in Image.OPEN:
        Image.init()
    if format.name not in Image.OPEN:
        raise ImageError(f"is {format.name}, which this installation of Pillow does not support; {UPDATE}")
    return Image.OPEN[format.name][0](file, "")


def _open_with_extra(file: IO[bytes], format: Format) -> Image.Image:
    """Opens an image with a decoder from the `photos` extra."""
    file.seek(0)
    try:
        if format.name == "HEIF":
            from pillow_heif import HeifImageFile

            return HeifImageFile(file)
        if format.name == "JXL":
            from pillow_jxl.JpegXLImagePlugin import JXLImageFile

            return JXLImageFile(file)
        if format.name == "RAW":
            import rawpy

            with rawpy.imread(file) as raw:  # type: ignore[arg-type]  # it takes any file object
                # At half size, four sensor cells make one pixel, without interpolation.
                _check_size(raw.sizes.width // 2, raw.sizes.height // 2)
                return Image.fromarray(raw.postprocess(use_camera_wb=True, half_size=True))
    except ImportError:
        pass  # reported below
    raise ImageError(f"is {format.name}, which is not supported here; {format.remedy}")


def _to_rgb(image: Image.Image, *, deep: bool) -> Image.Image:
    """Turns a loaded image upright and converts it to RGB.

    Args:
        image: The image.
        deep: Whether its file has 16 bits per channel, of which Pillow kept the upper 8.
    """
    if image.mode == "RGB" and image.format == "JPEG" and "exif" not in image.info:
        return image  # the usual case
    method = UPRIGHT.get(_orientation(image))
    if method is not None:
        format, info = image.format, image.info
        image = image.transpose(method)
        image.format = format
        # Without the metadata, by which it would be turned once more if it were decoded again.
        image.info = {name: value for name, value in info.items() if name == "transparency"}
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion would clip at 255
        return Image.fromarray(eight_bits(np.asarray(image), image.format)).convert("RGB")
    if deep:
        check_depth(image)
    if image.mode == "RGB":
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none that can be read."""
    if getattr(image, "is_upright", False):
        return 1  # `dr_keras.data.tiff` has turned it
    try:
        found = image.getexif().get(ORIENTATION)
    except Exception:  # whatever Pillow raises for damaged metadata
        found = None
    return metadata.orientation(image.info.get("exif")) if found is None else found
