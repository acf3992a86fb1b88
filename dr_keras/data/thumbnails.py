"""Makes all thumbnails: for the server, for reports and for image grids.

Orientation, transparency and depth follow `dr_keras.data.images.read`, as in training and search.
"""

import io

from PIL import Image

from dr_keras.data.images import ImageInput, read

RESAMPLING = Image.Resampling.BICUBIC


def thumbnail(source: ImageInput, side: int) -> Image.Image:
    """Reads an image and shrinks it.

    Args:
        source: A path, the bytes of an encoded image, or a PIL image.
        side: Maximum length of the longer side in pixels; a smaller image keeps its size.

    Returns:
        An upright RGB image.

    Raises:
        ImageError: As in `dr_keras.data.images.decode`.
    """
    image = read(source, draft=side)
    image.thumbnail((side, side), RESAMPLING)
    return image


def jpeg_thumbnail(source: ImageInput, side: int, quality: int, *, optimize: bool = False) -> bytes:
    """Returns `thumbnail` encoded as JPEG.

    Args:
        source: As in `thumbnail`.
        side: As in `thumbnail`.
        quality: The JPEG quality, from 1 to 95.
        optimize: Whether to spend more time on a smaller file.

    Returns:
        The encoded JPEG.

    Raises:
        ImageError: As in `dr_keras.data.images.decode`.
    """
    buffer = io.BytesIO()
    picture = thumbnail(source, side)
    picture.info = {}  # Pillow would write a comment
    picture.save(buffer, "JPEG", quality=quality, optimize=optimize)
    return buffer.getvalue()


def square_thumbnail(image: Image.Image, side: int, background: tuple[int, int, int]) -> Image.Image:
    """Fits a whole image into a square, preserving its proportions; a small image is enlarged.

    Args:
        image: The image.
        side: The square's side in pixels.
        background: RGB color of the area that the image does not cover.

    Returns:
        An RGB image of `side` x `side` pixels.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side), background)
    small = image.convert("RGB").resize(size, RESAMPLING)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square
