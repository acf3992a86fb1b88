"""The only decoder: a file or its bytes become an RGB uint8 array, in training and in search alike."""

import io
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dr_keras.errors import ImageError

# More than any photo that a person searches with, little enough (0.4 GB as RGB) to decode without hurting the machine.
MAX_PIXELS = 128_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow's own limit would warn at 89 million

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

Source = str | os.PathLike[str] | bytes | Image.Image

PADDING = (128, 128, 128)  # the middle of the range, which the networks scale to 0


def decode(source: Source, size: int, resize: str = "stretch") -> np.ndarray:
    """Decodes one image and makes it a square.

    Args:
        source: a path, the bytes of an encoded image, or a PIL image. A large JPEG is shrunk while it is decoded where
            it comes as a path or as bytes; the same JPEG as a PIL image can differ by 2 or 3 levels.
        size: pixels a side.
        resize: 'stretch' changes the proportions, 'crop' keeps the middle square, 'pad' keeps all of the image and
            fills up with grey.

    Returns:
        (size, size, 3) uint8, RGB. EXIF orientation is applied, transparency is laid over white, 16-bit greys are
        scaled to 8 bits, and of an animation the first frame is taken.

    Raises:
        ImageError: the source is empty, no image, truncated, or larger than `MAX_PIXELS`.
    """
    image = read(source, draft=2 * size)
    width, height = image.size
    if width == height == size:
        return np.asarray(image)
    bilinear = Image.Resampling.BILINEAR  # Pillow's filter widens as it shrinks
    if resize == "crop":
        return np.asarray(ImageOps.fit(image, (size, size), bilinear))
    if resize == "pad":
        return np.asarray(ImageOps.pad(image, (size, size), bilinear, PADDING))
    return np.asarray(image.resize((size, size), bilinear))


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
        try:
            source.load()  # one opened from a file may not be decoded yet
            return _to_rgb(source)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be decoded: {error}") from error
    data = source if isinstance(source, bytes) else _read_file(source)
    if not data:
        raise ImageError("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"has {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
            if draft is not None and image.format == "JPEG" and min(width, height) >= 2 * draft:
                image.draft(None, (draft, draft))
            image.load()
            return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("is no image that Pillow can read") from None
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, struct.error and more on bad files
        raise ImageError(f"cannot be decoded: {error}") from error


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and image.format == "JPEG" and "exif" not in image.info:
        return image  # nearly every image: nothing to do
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
