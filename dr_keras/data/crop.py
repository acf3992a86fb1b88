"""A part of a picture, to search by: a rectangle in pixels, or in shares of the picture's sides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dr_keras.errors import InputError

if TYPE_CHECKING:  # what a search by name need not import
    from PIL import Image

    from dr_keras.data.images import ImageInput

_SLACK = 0.5  # pixels by which shares that were rounded may exceed a picture
_FORM = "LEFT,TOP,WIDTH,HEIGHT in pixels, or in shares of the picture from 0 to 1"


@dataclass(frozen=True)
class Crop:
    """A rectangle in an upright picture; if no number is above 1, they are shares of its width and height.

    Attributes:
        left, top: Its corner, from the picture's upper left.
        width, height: Its sides.

    Raises:
        InputError: A number is negative or not finite, or a side is 0.

    Example:
        >>> Crop(0.5, 0, 0.5, 1).box(200, 100)
        (100, 0, 200, 100)
        >>> Crop(10, 20, 30, 40).box(200, 100)
        (10, 20, 40, 60)
    """

    left: float
    top: float
    width: float
    height: float

    def __post_init__(self) -> None:
        if not all(0 <= number < math.inf for number in self.numbers) or not (self.width and self.height):
            raise InputError(f"the crop is {self}; expected {_FORM}, with sides above 0")

    @classmethod
    def of(cls, value: "Crop | Sequence[float] | str") -> "Crop":
        """Makes a crop of text such as `0.25,0,0.5,1`, or of four numbers.

        Raises:
            InputError: It is no rectangle.
        """
        if isinstance(value, Crop):
            return value
        parts = value.split(",") if isinstance(value, str) else value
        try:
            left, top, width, height = (float(part) for part in parts)
        except (TypeError, ValueError):
            raise InputError(f"the crop is {value!r}; expected {_FORM}") from None
        return cls(left, top, width, height)

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """Left, top, width and height."""
        return self.left, self.top, self.width, self.height

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Returns left, top, right and bottom in whole pixels of a picture, at least one pixel apart.

        Raises:
            InputError: The rectangle is not inside a picture of this size.
        """
        shares = max(self.numbers) <= 1
        across, down = (width, height) if shares else (1, 1)  # pixels in each unit
        ends = (self.left + self.width) * across, (self.top + self.height) * down
        if ends[0] > width + _SLACK or ends[1] > height + _SLACK:
            unit = " in shares" if shares else ""
            raise InputError(f"the crop {self}{unit} is not inside the picture, which has {width} x {height} pixels")
        left, top = min(round(self.left * across), width - 1), min(round(self.top * down), height - 1)
        right, bottom = min(max(round(ends[0]), left + 1), width), min(max(round(ends[1]), top + 1), height)
        return left, top, right, bottom

    def __str__(self) -> str:
        return ",".join(f"{number:g}" for number in self.numbers)


def cropped(source: "ImageInput", crop: Crop) -> "Image.Image":
    """Decodes a part of a picture.

    Args:
        source: As for `dr_keras.data.images.decode`.
        crop: The part, of the upright picture.

    Returns:
        The part, in RGB.

    Raises:
        ImageError: The picture cannot be decoded.
        InputError: The part is not inside it.
    """
    from dr_keras.data.images import read

    image = read(source)
    return image.crop(crop.box(*image.size))
