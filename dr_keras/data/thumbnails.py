"""The one maker of small pictures: for the server, for reports and for image grids.

Orientation, transparency and depth follow `dr_keras.data.images.read`, as in training and search.
"""

import io

from PIL import Image

from dr_keras.data.images import ImageInput, read

RESAMPLING = Image.Resampling.BICUBIC


def thumbnail(source: ImageInput, side: int) -> Image.Image:
    """Reads an image and shrinks it.

    Args:
        source: a path, the bytes of an encoded image, or a PIL image.
        side: pixels of the longer side at most; a smaller image keeps its size.

    Returns:
        An upright RGB image.

    Raises:
        ImageError: as `dr_keras.data.images.decode`.
    """
    image = read(source, draft=side)
    image.thumbnail((side, side), RESAMPLING)
    return image


def jpeg_thumbnail(source: ImageInput, side: int, quality: int, *, optimize: bool = False) -> bytes:
    """Makes a JPEG of `thumbnail`.

    Args:
        source: as in `thumbnail`.
        side: as in `thumbnail`.
        quality: of the JPEG, from 1 to 95.
        optimize: whether to spend more time on a smaller file.

    Returns:
        The encoded JPEG.

    Raises:
        ImageError: as `dr_keras.data.images.decode`.
    """
    buffer = io.BytesIO()
    thumbnail(source, side).save(buffer, "JPEG", quality=quality, optimize=optimize)
    return buffer.getvalue()


def square_thumbnail(image: Image.Image, side: int, background: tuple[int, int, int]) -> Image.Image:
    """Fits all of an image into a square, its proportions kept; a small image is enlarged.

    Args:
        image: the image.
        side: pixels of the square's side.
        background: RGB color of what the image leaves free.

    Returns:
        An RGB image of `side` x `side` pixels.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side), background)
    small = image.convert("RGB").resize(size, RESAMPLING)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square
