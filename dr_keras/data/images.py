"""The only decoder: a file or its bytes become an RGB uint8 array, in training and in search alike."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from dr_keras.atomic_files import open_regular
from dr_keras.data import metadata
from dr_keras.data.formats import FORMATS, HEAD_BYTES, UPDATE, Format, sniff
from dr_keras.errors import ImageError

# More than any photo that a person searches with, little enough (0.4 GB as RGB) to decode without hurting the machine.
MAX_PIXELS = 128_000_000
WHOLE_BYTES = 64 * 2**20  # a larger file is not read into memory: its decoder takes of it what it needs
BUFFER_BYTES = 2**18  # read of such a file at a time

T = TypeVar("T")
Source = str | os.PathLike[str] | bytes | Image.Image

PADDING = (128, 128, 128)  # the middle of the range, which the networks scale to 0
BILINEAR = Image.Resampling.BILINEAR  # Pillow's filter widens as it shrinks

# What a sample of whole numbers can be deep, where the file does not say: a mask, 4, 8, 12, 16, 24 and 31 bits.
DEPTHS = (1, 4, 8, 12, 16, 24, 31)
# And the largest value of a picture in floating point; of one whose largest lies between 1 and 15 it is not known.
FLOAT_SCALES = (255, 4095, 65535)
LEAST_OF_ONE = 1 / 32  # a picture from 0 to 1 that is nowhere brighter than this would be black

_SAVE = "; save it with 8 bits a channel"

_UPRIGHT = {  # what turns an image of each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x112  # its tag
_DNG_VERSION, _SUBFILE, _SUB_IMAGES, _PHOTOMETRIC = 50706, 254, 330, 262
_SENSOR = (32803, 34892)  # photometric interpretations of what a sensor saw, not of a picture


def decode(source: Source, size: int, resize: str = "stretch") -> np.ndarray:
    """Decodes one image and makes it a square.

    Args:
        source: a path, the bytes of an encoded image, or a PIL image. A large JPEG is shrunk while it is decoded where
            it comes as a path or as bytes; the same JPEG as a PIL image can differ by 2 or 3 levels.
        size: pixels a side.
        resize: 'stretch' changes the proportions, 'crop' keeps the middle square, 'pad' keeps all of the image and
            fills up with grey.

    Returns:
        (size, size, 3) uint8, RGB. EXIF orientation is applied where it can be read, transparency is laid over white,
        and of an animation the first frame is taken. Greys deeper than 8 bits are scaled to 8: by the depth that the
        format declares (PGM, JPEG 2000), else by the least of `DEPTHS` that holds the largest value.

    Raises:
        ImageError: the source is empty, no image, truncated, larger than `MAX_PIXELS`, of a depth that cannot be told,
            or of a format whose decoder is not installed (the message says what to install).
    """
    image = read(source, draft=2 * size)
    width, height = image.size
    if width == height == size:
        return np.asarray(image)
    if resize == "crop":
        return np.asarray(ImageOps.fit(image, (size, size), BILINEAR))
    if resize == "pad":
        return np.asarray(_padded(image, size))
    return np.asarray(image.resize((size, size), BILINEAR))


def _padded(image: Image.Image, size: int) -> Image.Image:
    """All of an image in the middle of a grey square; of the thinnest one line is left."""
    longer = max(image.size)
    width, height = (max(1, round(side / longer * size)) for side in image.size)
    square = Image.new("RGB", (size, size), PADDING)
    square.paste(image.resize((width, height), BILINEAR), (round((size - width) / 2), round((size - height) / 2)))
    return square


def read(source: Source, draft: int | None = None) -> Image.Image:
    """Opens one image upright and in RGB, at its own size.

    Args:
        source: as in `decode`.
        draft: a JPEG whose sides are at least twice this may be decoded at a half, a quarter or an eighth of its
            size, never below `draft`; that makes a large photo many times faster.

    Raises:
        ImageError: as in `decode`.
    """
    if isinstance(source, Image.Image):
        with _saying():
            source.load()  # one opened from a file may not be decoded yet
            return _to_rgb(source, deep=False)
    with _opened(source) as (file, format):
        return _tried(file, format, lambda content: _decoded(content, format, draft))


def look(source: str | os.PathLike[str] | bytes | IO[bytes]) -> tuple[Format, tuple[int, int]]:
    """The format of an image, and its width and height as they are stored; decodes nothing but raw photos and JPEG XL.

    Args:
        source: a path, the bytes of an encoded image, or a file that is open and stays so.

    Raises:
        ImageError: as in `decode`.
    """

    with _opened(source) as (file, format):

        def size(content: IO[bytes]) -> tuple[int, int]:
            with _open_image(content, format) as image:
                return image.size

        return format, _tried(file, format, size)


def _tried(file: IO[bytes], format: Format, use: Callable[[IO[bytes]], T]) -> T:
    """What `use` makes of an image; of the pixels alone where metadata are damaged, which never cost a picture."""
    try:
        return use(file)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, struct.error and more on bad files
        if (plain := metadata.without(file, format.name)) is not None:
            with _saying(error):
                return use(io.BytesIO(plain))
        raise ImageError(f"cannot be decoded: {_reason(error)}") from error


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Iterator[tuple[IO[bytes], Format]]:
    """An image's content, and its format by its first bytes.

    Args:
        source: a path, the bytes of an encoded image, or a file that is open and stays so.

    Raises:
        ImageError: the source is empty, no regular file, cannot be read, or is no picture.
    """
    with _bytes_of(source) as (file, size):
        if not size:
            raise ImageError("is empty (0 bytes)")
        head = file.read(HEAD_BYTES)
        file.seek(0)
        format = sniff(head, size, source if isinstance(source, str | os.PathLike) else None)
        if format is None:
            raise ImageError("is no image of a known format")
        yield file, format


@contextmanager
def _bytes_of(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Iterator[tuple[IO[bytes], int]]:
    """The content and how many bytes it has; of a small file in memory, so that it is read at once."""
    if isinstance(source, bytes):
        yield io.BytesIO(source), len(source)
        return
    if not isinstance(source, str | os.PathLike):
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        yield source, size
        return
    try:
        with open_regular(source) as file:
            size = os.fstat(file.fileno()).st_size
            if size > WHOLE_BYTES:
                yield io.BufferedReader(file, BUFFER_BYTES), size
                return
            content = file.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    yield io.BytesIO(content), len(content)


@contextmanager
def _saying(first: Exception | None = None) -> Iterator[None]:
    """Makes an ImageError of whatever goes wrong, or of what went wrong `first`."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"cannot be decoded: {_reason(first or error)}") from error


def _reason(error: Exception) -> str:
    """What a decoder says, as text: LibRaw says it in bytes, and calls a file that ends early an input/output error."""
    said = error.args[0] if error.args else ""
    reason = said.decode(errors="replace") if isinstance(said, bytes) else str(error)
    return "the file is damaged or ends early" if reason == "Input/output error" else reason


def _decoded(file: IO[bytes], format: Format, draft: int | None) -> Image.Image:
    with _open_image(file, format) as image:
        _check_size(*image.size)
        if draft is not None and image.format == "JPEG" and min(image.size) >= 2 * draft:
            image.draft(None, (draft, draft))
        deep = isinstance(image, ImageFile.ImageFile) and any(";16" in str(tile[3]) for tile in image.tile)
        image.load()
        return _to_rgb(image, deep=deep)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"has {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")


def _open_image(file: IO[bytes], format: Format) -> Image.Image:
    """Opens an image, as `PIL.Image.open` does, without decoding it (but for raw files).

    Pillow's own function would try each format that it knows, also those for which it starts other programs, and it
    compares sizes with a limit of the whole process, which is not ours to change.

    Args:
        file: the content, at its beginning.
        format: what it is.

    Raises:
        ImageError: it needs a decoder that is not installed.
        Exception: whatever Pillow's plug-in raises for damaged content.
    """
    if format.remedy:
        return _open_with_extra(file, format)
    if format.name == "TIFF":
        return _open_with_extra(file, FORMATS["RAW"]) if _is_raw(file) else _Tiff(file)
    if format.name not in Image.OPEN:
        Image.init()
    if format.name not in Image.OPEN:
        raise ImageError(f"is {format.name}, which this installation of Pillow does not read; {UPDATE}")
    return Image.OPEN[format.name][0](file, "")


class _Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's, but for metadata: only the orientation is looked at when the pixels are complete, and applied."""

    def load_end(self) -> None:
        method = _UPRIGHT.get(self.tag_v2.get(ORIENTATION, 1))
        if method is not None:
            self.im = self.im.transpose(method)
            self._size = self.im.size


def _is_raw(file: IO[bytes]) -> bool:
    """Whether a TIFF is what a camera's sensor saw; many have a small picture in front that would be taken for it."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # whatever a damaged directory makes Pillow raise; it is opened, and refused, as a picture
        return False
    finally:
        file.seek(0)
    reduced = tags.get(_SUBFILE) == 1 and _SUB_IMAGES in tags
    return _DNG_VERSION in tags or reduced or tags.get(_PHOTOMETRIC) in _SENSOR


def _open_with_extra(file: IO[bytes], format: Format) -> Image.Image:
    """Opens what the extra `photos` brings the decoders for."""
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
                # Half the size: four cells of the sensor make a pixel, and nothing has to be guessed.
                _check_size(raw.sizes.width // 2, raw.sizes.height // 2)
                return Image.fromarray(raw.postprocess(use_camera_wb=True, half_size=True))
    except ImportError:
        pass  # said below
    raise ImageError(f"is {format.name}, which is not read here; {format.remedy}")


def _to_rgb(image: Image.Image, *, deep: bool) -> Image.Image:
    """A loaded image upright, in RGB.

    Args:
        image: the image.
        deep: whether its file has 16 bits a channel, of which Pillow took the upper 8.
    """
    if image.mode == "RGB" and image.format == "JPEG" and "exif" not in image.info:
        return image  # nearly every image: nothing to do
    method = _UPRIGHT.get(_orientation(image))
    if method is not None:
        format, info = image.format, image.info
        image = image.transpose(method)
        image.format, image.info = format, info
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion would clip at 255
        return Image.fromarray(_eight_bits(np.asarray(image), image.format)).convert("RGB")
    if deep:
        _check_depth(image)
    if image.mode == "RGB":
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Its EXIF orientation; that of an upright image where it has none that can be read."""
    if isinstance(image, _Tiff):
        return 1  # is turned already
    try:
        found = image.getexif().get(ORIENTATION)
    except Exception:  # whatever damaged metadata makes Pillow raise
        found = None
    return metadata.orientation(image.info.get("exif")) if found is None else found


def _eight_bits(grey: np.ndarray, format: str | None) -> np.ndarray:
    """Greys of any depth, (H, W), as uint8.

    Raises:
        ImageError: their range is of no known depth.
    """
    low, high = float(grey.min()), float(grey.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("has values that are no numbers; save it with 8 bits")
    scale = _float_scale(low, high) if grey.dtype.kind == "f" else _whole_scale(low, high, format)
    return (grey.astype(np.float64) * (255 / scale)).clip(0, 255).astype(np.uint8)


def _whole_scale(low: float, high: float, format: str | None) -> float:
    if low < 0:
        raise ImageError(f"has values from {low:.0f} to {high:.0f}, of which black and white are not known{_SAVE}")
    if format in ("PPM", "JPEG2000"):  # Pillow has scaled these by the depth that they declare
        return 65535
    return next(2.0**bits - 1 for bits in DEPTHS if high < 2**bits)


def _float_scale(low: float, high: float) -> float:
    if low < -1e-3:
        raise ImageError(f"has values from {low:g} to {high:g}, of which black and white are not known{_SAVE}")
    if high == 0 or LEAST_OF_ONE <= high <= 1 + 1e-3:
        return 1
    scale = next((scale for scale in FLOAT_SCALES if 15 < high <= scale), None)
    if scale is None:
        raise ImageError(f"has values from {low:g} to {high:g}, a depth that is not known{_SAVE}")
    return scale


def _check_depth(image: Image.Image) -> None:
    """Refuses what is black, or nearly, in the upper 8 of its 16 bits: values of 12 bits or fewer."""
    bands = image.getextrema()
    colours = bands[: len(bands) - ("A" in image.getbands())] if isinstance(bands[0], tuple) else (bands,)
    high = max(band[1] for band in colours)
    if high <= 15:
        raise ImageError(f"has 16 bits a channel, and uses the lower 12 of them at most{_SAVE}")
