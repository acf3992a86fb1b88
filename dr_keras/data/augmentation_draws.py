"""Draws the augmentation of a batch, in NumPy, for both Pillow and the accelerator.

Flip and shift move whole pixels. All other geometry is one affine map per image, and all color changes are a lookup
table for the values and one linear map of the colors.
"""

import math
from dataclasses import dataclass

import numpy as np

FILL_COLOR = (124, 116, 104)  # outside the image; about the mean of photographs
MAX_ASPECT = 4 / 3  # of a crop, relative to the image
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow

# What `operations` chooses from, in the spirit of RandAugment (Cubuk et al. 2019); all strengths start at 0.
OPERATIONS = (
    "identity",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "brightness",
    "contrast",
    "saturation",
    "posterize",
    "solarize",
)
MAX_ROTATE_RADIANS = math.radians(30)
MAX_SHEAR, MAX_TRANSLATE, MAX_ENHANCE = 0.3, 0.2, 0.7  # translation as a share of the side
ERASED_AREA = (0.02, 0.25)  # the smallest and the largest share of the image
VALUES = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images.

    The attributes are the settings of the same names in `dr_keras.config`.
    """

    flip: bool = False
    shift: int = 0
    crop: float = 1.0
    color: float = 0.0
    operations: int = 0
    erase: float = 0.0

    @property
    def only_moves(self) -> bool:
        """Whether images are only moved by whole pixels, without changing any values."""
        return self.crop == 1 and not (self.color or self.operations or self.erase)


@dataclass(frozen=True)
class Moves:
    """Moves of images by whole pixels, with the border pixels repeated, followed by flips.

    Attributes:
        down, right: (B,) int64, pixel (y, x) of the result is pixel (y + down, x + right) of the image.
        mirrored: (B,) bool, whether the result is flipped left to right.
    """

    down: np.ndarray
    right: np.ndarray
    mirrored: np.ndarray


@dataclass(frozen=True)
class Changes:
    """Changes to the images of a batch after `Moves`, in this order.

    Attributes:
        maps: (B, 2, 3), from pixel coordinates of the result to those of the image.
        warped: (B,) bool, whether the map may rotate, shear, or reach outside the image. Otherwise it only resizes the
            image, with smoothing where it shrinks.
        tables: (B, 256) uint8, the new value for each value.
        colors: (B, 4, 4), maps of (r, g, b, 1).
        mirrored: (B,) bool, whether the result is flipped left to right.
        holes: (B, 4) int64, top, bottom, left and right of what is erased; empty if nothing is.
        noise: (B, 3) uint8, the color of the holes.
    """

    maps: np.ndarray
    warped: np.ndarray
    tables: np.ndarray
    colors: np.ndarray
    mirrored: np.ndarray
    holes: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Mixing:
    """Mixing of the images of a batch with each other.

    Attributes:
        partner: (B,) int64, the image that each one is mixed with.
        blended: (B,) bool, whether it is blended with its partner, in the shares `own` and `1 - own`.
        pasted: (B, 4) int64, top, bottom, left and right of the part of the partner that is pasted in; may be empty.
        own: (B,) float32, the share of the result that comes from the image itself.
    """

    partner: np.ndarray
    blended: np.ndarray
    pasted: np.ndarray
    own: np.ndarray


def draw_moves(how: Augmentation, count: int, seed: tuple[int, ...]) -> Moves:
    """Draws flips and shifts.

    Args:
        how: The augmentation.
        count: The number of images, B.
        seed: The draw is a function of all arguments.

    Example:
        >>> draw_moves(Augmentation(shift=2), 3, seed=(0,)).down.shape
        (3,)
    """
    random = np.random.default_rng(seed)
    down, right = random.integers(-how.shift, how.shift + 1, (2, count))
    return Moves(down, right, how.flip & (random.random(count) < 0.5))


def draw_changes(how: Augmentation, count: int, shape: tuple[int, ...], side: int, seed: tuple[int, ...]) -> Changes:
    """Draws all other changes.

    Args:
        how: The augmentation.
        count: The number of images, B.
        shape: Their height and width in pixels.
        side: The side of the results in pixels.
        seed: The draw is a function of all arguments.
    """
    random = np.random.default_rng((*seed, 1))
    mirrored = (how.flip and how.crop < 1) & (random.random(count) < 0.5)
    maps = _crops(random, count, shape, how.crop, side)
    maps, warped, tables, colors = _operations(random, maps, how, side)
    colors = _jitter(random, count, how.color) @ colors  # the operations first
    holes = _holes(random, count, how.erase, side)
    noise = random.integers(0, 256, (count, 3), np.uint8)
    return Changes(maps, warped, tables, colors, mirrored, holes, noise)


def draw_mixing(count: int, shape: tuple[int, ...], *, mixup: float, cutmix: float, seed: tuple[int, ...]) -> Mixing:
    """Draws MixUp (Zhang et al. 2017) or CutMix (Yun et al. 2019) for some of the images.

    The shares of blends are uniform (Beta(1, 1)), and so are pasted areas before they are clipped.

    Args:
        count: The number of images, B.
        shape: Their height and width in pixels.
        mixup: The probability that an image is blended with its partner.
        cutmix: The probability that a rectangle of its partner is pasted into it.
        seed: The draw is a function of all arguments.
    """
    height, width = shape
    random = np.random.default_rng(seed)
    partner = random.permutation(count)
    kind = random.random(count)
    share = random.random(count)
    center = random.random((2, count))
    blended = kind < mixup
    half = np.sqrt(1 - share) / 2 * (~blended & (kind < mixup + cutmix))
    pasted = np.stack([*_span(center[0], half, height), *_span(center[1], half, width)], axis=1)
    covered = (pasted[:, 1] - pasted[:, 0]) * (pasted[:, 3] - pasted[:, 2]) / (height * width)
    return Mixing(partner, blended, pasted, np.where(blended, share, 1 - covered).astype(np.float32))


def _span(center: np.ndarray, half: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels, start and end, of a span of `half` to each side of `center`, both as shares of `length` pixels."""
    low, high = np.rint((center - half) * length), np.rint((center + half) * length)
    return np.maximum(low, 0).astype(np.int64), np.minimum(high, length).astype(np.int64)


def _crops(random: np.random.Generator, count: int, shape: tuple[int, ...], least: float, side: int) -> np.ndarray:
    """The affine maps (B, 2, 3) from the result to a random part of the image with at least `least` of its area."""
    height, width = shape
    area = random.uniform(least, 1, count)
    aspect = np.exp(random.uniform(-math.log(MAX_ASPECT), math.log(MAX_ASPECT), count) * (least < 1))
    places = random.random((2, count))
    maps = np.zeros((count, 2, 3))
    for axis, length, share in ((0, width, np.sqrt(area * aspect)), (1, height, np.sqrt(area / aspect))):
        share = np.minimum(share, 1)
        maps[:, axis, axis] = share * length / side
        maps[:, axis, 2] = places[axis] * (1 - share) * length
    return maps


def _operations(
    random: np.random.Generator, maps: np.ndarray, how: Augmentation, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws the operations: `maps` with those that move pixels, and `warped`, `tables` and `colors` of `Changes`."""
    count = len(maps)
    warped, tables, colors = np.zeros(count, bool), np.tile(VALUES, (count, 1)), np.tile(np.eye(4), (count, 1, 1))
    kinds = random.integers(0, len(OPERATIONS), (how.operations, count))
    strengths = random.random((how.operations, count))
    signs = random.choice([-1.0, 1.0], (how.operations, count))
    middle, back = _translation(side / 2, side / 2), _translation(-side / 2, -side / 2)
    for kind, strength, sign in zip(kinds, strengths, signs, strict=True):
        for number in np.unique(kind):
            name, those = OPERATIONS[number], kind == number
            signed = (sign * strength)[those]
            if name in ("brightness", "contrast", "saturation"):
                colors[those] = enhance(name, 1 + MAX_ENHANCE * signed) @ colors[those]
            elif name in ("posterize", "solarize"):
                tables[those] = np.take_along_axis(table(name, strength[those]), tables[those].astype(np.intp), axis=1)
            elif name != "identity":
                warped |= those
                maps[those] = maps[those] @ (middle @ warp(name, signed, side) @ back)
    return maps, warped, tables, colors


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def warp(name: str, strength: np.ndarray, side: int) -> np.ndarray:
    """Returns the maps of one of the `OPERATIONS` that move pixels.

    Args:
        name: 'rotate', 'shear_x', 'shear_y', 'translate_x' or 'translate_y'.
        strength: (n,) from -1 to 1.
        side: The side of the images in pixels.

    Returns:
        (n, 3, 3), maps about the origin.
    """
    matrix = np.tile(np.eye(3), (len(strength), 1, 1))
    if name == "rotate":
        sine, cosine = np.sin(MAX_ROTATE_RADIANS * strength), np.cos(MAX_ROTATE_RADIANS * strength)
        matrix[:, :2, :2] = np.stack([np.stack([cosine, -sine], axis=1), np.stack([sine, cosine], axis=1)], axis=1)
        return matrix
    row, column, most = {
        "shear_x": (0, 1, MAX_SHEAR),
        "shear_y": (1, 0, MAX_SHEAR),
        "translate_x": (0, 2, MAX_TRANSLATE * side),
        "translate_y": (1, 2, MAX_TRANSLATE * side),
    }[name]
    matrix[:, row, column] = most * strength
    return matrix


def table(name: str, strength: np.ndarray) -> np.ndarray:
    """Returns the lookup tables of one of the `OPERATIONS`.

    Args:
        name: 'posterize' or 'solarize'.
        strength: (n,) from 0 to 1.

    Returns:
        (n, 256) uint8.
    """
    if name == "posterize":  # up to five of the eight bits are dropped
        return VALUES & (256 - (1 << np.rint(5 * strength).astype(int)))[:, None].astype(np.uint8)
    return np.where(256 - 192 * strength[:, None] <= VALUES, 255 - VALUES, VALUES)


def enhance(name: str, factor: np.ndarray) -> np.ndarray:
    """Returns the color maps of one of the `OPERATIONS`.

    Args:
        name: 'brightness', 'contrast' or 'saturation'.
        factor: (n,), the factor that it is multiplied by.

    Returns:
        (n, 4, 4), maps of (r, g, b, 1).
    """
    matrix = np.tile(np.eye(4), (len(factor), 1, 1))
    factor = factor[:, None, None]
    if name == "saturation":
        matrix[:, :3, :3] = factor * np.eye(3) + (1 - factor) * LUMA
        return matrix
    matrix[:, :3, :3] *= factor
    if name == "contrast":  # around a fixed gray, not that of each image
        matrix[:, :3, 3] = (1 - factor[:, 0]) * float(LUMA @ FILL_COLOR)
    return matrix


def _jitter(random: np.random.Generator, count: int, color: float) -> np.ndarray:
    """Color maps (B, 4, 4) of random brightness, contrast and saturation."""
    if not color:
        return np.tile(np.eye(4), (count, 1, 1))
    brightness, contrast, saturation = random.uniform(1 - color, 1 + color, (count, 3)).T
    return enhance("saturation", saturation) @ enhance("contrast", contrast) @ enhance("brightness", brightness)


def _holes(random: np.random.Generator, count: int, probability: float, side: int) -> np.ndarray:
    """Top, bottom, left and right (B, 4) of what is erased (Zhong et al. 2017); empty if nothing is."""
    drawn = random.random(count)
    half = np.sqrt(random.uniform(*ERASED_AREA, count)) / 2
    stretch = np.exp(random.uniform(-0.5, 0.5, count))
    center = random.random((2, count))
    holes = np.stack([*_span(center[0], half * stretch, side), *_span(center[1], half / stretch, side)], axis=1)
    return holes * (drawn < probability)[:, None]
