"""Overlapping parts of a picture, which are embedded beside the whole so that a search finds small things in it."""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from dr_keras.data.crop import Crop
from dr_keras.errors import InputError

if TYPE_CHECKING:
    from dr_keras.data.images import ImageInput

FINEST = 4  # windows smaller than a quarter of the sides are too many to keep, and show little of most pictures


@cache
def windows(parts: int) -> tuple[Crop, ...]:
    """Returns the parts of a picture: windows of 1/2, ..., 1/`parts` of its sides that overlap by half.

    There are 9 of 1/2, 25 of 1/3 and 49 of 1/4, each row by row from the top left. They are shares of the picture.

    Args:
        parts: 0 for none, or from 2 to `FINEST`.

    Raises:
        InputError: It is another number.

    Example:
        >>> [len(windows(parts)) for parts in (0, 2, 3, 4)]
        [0, 9, 34, 83]
        >>> str(windows(2)[1])
        '0.25,0,0.5,0.5'
    """
    if parts not in (0, *range(2, FINEST + 1)):
        raise InputError(f"parts is {parts}; choose 2 to {FINEST}, for windows of half to 1/{FINEST} of the sides")
    return tuple(
        Crop(across / (2 * level), down / (2 * level), 1 / level, 1 / level)
        for level in range(2, parts + 1)
        for down in range(2 * level - 1)
        for across in range(2 * level - 1)
    )


def decode_parts(source: "ImageInput", size: int, resize: str, parts: int) -> tuple[np.ndarray, dict[str, object]]:
    """Decodes a picture and its parts into squares, and returns what its file says of it.

    Args:
        source, size, resize: As for `dr_keras.data.images.decode`.
        parts: As for `windows`.

    Returns:
        (1 + P, size, size, 3) uint8, the whole picture first; and facts, see `dr_keras.data.exif`.

    Raises:
        ImageError: The picture cannot be decoded.
    """
    from PIL import Image

    from dr_keras.data.images import decode, look, read_with_facts, square

    image, facts = read_with_facts(source, draft=2 * size * parts)
    # A JPEG is shrunk less than for its whole alone, whose pixels should not depend on whether there are parts.
    shrinks = not isinstance(source, Image.Image) and look(source)[0].name == "JPEG"
    whole = decode(source, size, resize) if shrinks else square(image, size, resize)
    return np.stack([whole, *(square(image.crop(one.box(*image.size)), size, resize) for one in windows(parts))]), facts
