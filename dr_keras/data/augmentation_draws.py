"""What is drawn for the augmentation of a batch, in NumPy, whatever applies it: Pillow or the accelerator.

Flip and shift move whole pixels; all that moves pixels otherwise is one affine map an image, all that changes colours a
table for each value and one linear map of its colours.
"""

import math
from dataclasses import dataclass

import numpy as np

GREY = (124, 116, 104)  # what comes into the picture from outside; about the mean of photographs
ASPECT = 4 / 3  # of a cropped part, at most
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's grey

# What `operations` chooses from, in the spirit of RandAugment (Cubuk et al. 2019): all strengths from 0 to these.
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
ROTATE, SHEAR, TRANSLATE, ENHANCE = math.radians(30), 0.3, 0.2, 0.7
ERASED = (0.02, 0.25)  # share of the area, from and to
VALUES = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image; see the settings of the same names in `dr_keras.config.Config`."""

    flip: bool = False
    shift: int = 0
    crop: float = 1.0
    colour: float = 0.0
    operations: int = 0
    erase: float = 0.0

    @property
    def only_moves(self) -> bool:
        """Whether pixels stay as they are and are only moved by whole pixels."""
        return self.crop == 1 and not (self.colour or self.operations or self.erase)


@dataclass(frozen=True)
class Moves:
    """How images are moved by whole pixels, their border pixels repeated; then mirrored.

    Attributes:
        down, right: (B,) int64, result pixel (y, x) is pixel (y + down, x + right).
        mirrored: (B,) bool.
    """

    down: np.ndarray
    right: np.ndarray
    mirrored: np.ndarray


@dataclass(frozen=True)
class Changes:
    """What is done to the images of a batch after `Moves`, in this order.

    Attributes:
        maps: (B, 2, 3), pixel coordinates of the result -> of the image; where they neither turn nor shear nor reach
            outside, the image is resized, and so smoothed where it shrinks.
        warped: (B,) bool, where they may.
        tables: (B, 256) uint8, what becomes of each value.
        colours: (B, 4, 4), maps of (r, g, b, 1).
        mirrored: (B,) bool.
        holes: (B, 4) int64, top, bottom, left and right of what is erased; empty where nothing is.
        noise: (B, 3) uint8, the colour of the holes.
    """

    maps: np.ndarray
    warped: np.ndarray
    tables: np.ndarray
    colours: np.ndarray
    mirrored: np.ndarray
    holes: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Mixing:
    """How the images of a batch are mixed with others of it.

    Attributes:
        partner: (B,) int64, which.
        blended: (B,) bool, whether it is blended with its partner, in the shares `own` and `1 - own`.
        pasted: (B, 4) int64, top, bottom, left and right of the part of the partner that is pasted in; may be empty.
        own: (B,) float32, the share that is still the image's own.
    """

    partner: np.ndarray
    blended: np.ndarray
    pasted: np.ndarray
    own: np.ndarray


def draw_moves(how: Augmentation, count: int, seed: tuple[int, ...]) -> Moves:
    """Flips and shifts of `count` images; a function of the arguments."""
    random = np.random.default_rng(seed)
    down, right = random.integers(-how.shift, how.shift + 1, (2, count))
    return Moves(down, right, how.flip & (random.random(count) < 0.5))


def draw_changes(how: Augmentation, count: int, shape: tuple[int, ...], side: int, seed: tuple[int, ...]) -> Changes:
    """All else that is done to `count` images of height and width `shape`, of which images of `side` are made."""
    random = np.random.default_rng((*seed, 1))
    mirrored = (how.flip and how.crop < 1) & (random.random(count) < 0.5)
    maps = _crops(random, count, shape, how.crop, side)
    maps, warped, tables, colours = _operations(random, maps, how, side)
    colours = _jitter(random, count, how.colour) @ colours  # the operations first
    holes = _holes(random, count, how.erase, side)
    noise = random.integers(0, 256, (count, 3), np.uint8)
    return Changes(maps, warped, tables, colours, mirrored, holes, noise)


def draw_mixing(count: int, shape: tuple[int, ...], *, mixup: float, cutmix: float, seed: tuple[int, ...]) -> Mixing:
    """MixUp (Zhang et al. 2017) or CutMix (Yun et al. 2019) for some of `count` images of height and width `shape`.

    Args:
        count, shape: of the images.
        mixup, cutmix: the probabilities that an image is blended with its partner, or has a rectangle of it pasted in.
        seed: the draw is a function of it and of the other arguments.

    Returns:
        Shares of blends are uniform (Beta(1, 1)), those of pasted areas before clipping too.
    """
    height, width = shape
    random = np.random.default_rng(seed)
    partner = random.permutation(count)
    kind = random.random(count)
    share = random.random(count)
    centre = random.random((2, count))
    blended = kind < mixup
    half = np.sqrt(1 - share) / 2 * (~blended & (kind < mixup + cutmix))
    pasted = np.stack([*_span(centre[0], half, height), *_span(centre[1], half, width)], axis=1)
    covered = (pasted[:, 1] - pasted[:, 0]) * (pasted[:, 3] - pasted[:, 2]) / (height * width)
    return Mixing(partner, blended, pasted, np.where(blended, share, 1 - covered).astype(np.float32))


def _span(centre: np.ndarray, half: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """From where to where, in whole pixels, what reaches `half` to each side of `centre` covers a `length`."""
    low, high = np.rint((centre - half) * length), np.rint((centre + half) * length)
    return np.maximum(low, 0).astype(np.int64), np.minimum(high, length).astype(np.int64)


def _crops(random: np.random.Generator, count: int, shape: tuple[int, ...], least: float, side: int) -> np.ndarray:
    """(B, 2, 3): the affine maps from the result to a random part of the image of at least `least` of its area."""
    height, width = shape
    area = random.uniform(least, 1, count)
    aspect = np.exp(random.uniform(-math.log(ASPECT), math.log(ASPECT), count) * (least < 1))
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
    """Draws the random operations: `maps` with those that move pixels, then `warped`, `tables`, `colours` (Changes)."""
    count = len(maps)
    warped, tables, colours = np.zeros(count, bool), np.tile(VALUES, (count, 1)), np.tile(np.eye(4), (count, 1, 1))
    kinds = random.integers(0, len(OPERATIONS), (how.operations, count))
    strengths = random.random((how.operations, count))
    signs = random.choice([-1.0, 1.0], (how.operations, count))
    middle, back = _translation(side / 2, side / 2), _translation(-side / 2, -side / 2)
    for kind, strength, sign in zip(kinds, strengths, signs, strict=True):
        for number in np.unique(kind):
            name, those = OPERATIONS[number], kind == number
            signed = (sign * strength)[those]
            if name in ("brightness", "contrast", "saturation"):
                colours[those] = enhance(name, 1 + ENHANCE * signed) @ colours[those]
            elif name in ("posterize", "solarize"):
                tables[those] = np.take_along_axis(table(name, strength[those]), tables[those].astype(np.intp), axis=1)
            elif name != "identity":
                warped |= those
                maps[those] = maps[those] @ (middle @ warp(name, signed, side) @ back)
    return maps, warped, tables, colours


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def warp(name: str, strength: np.ndarray, side: int) -> np.ndarray:
    """(n,) strengths from -1 to 1 -> (n, 3, 3): turned, sheared or moved about the origin."""
    matrix = np.tile(np.eye(3), (len(strength), 1, 1))
    if name == "rotate":
        sine, cosine = np.sin(ROTATE * strength), np.cos(ROTATE * strength)
        matrix[:, :2, :2] = np.stack([np.stack([cosine, -sine], axis=1), np.stack([sine, cosine], axis=1)], axis=1)
        return matrix
    row, column, most = {
        "shear_x": (0, 1, SHEAR),
        "shear_y": (1, 0, SHEAR),
        "translate_x": (0, 2, TRANSLATE * side),
        "translate_y": (1, 2, TRANSLATE * side),
    }[name]
    matrix[:, row, column] = most * strength
    return matrix


def table(name: str, strength: np.ndarray) -> np.ndarray:
    """(n,) strengths from 0 to 1 -> (n, 256) uint8: what becomes of each value."""
    if name == "posterize":  # up to five of the eight bits go
        return VALUES & (256 - (1 << np.rint(5 * strength).astype(int)))[:, None].astype(np.uint8)
    return np.where(256 - 192 * strength[:, None] <= VALUES, 255 - VALUES, VALUES)


def enhance(name: str, factor: np.ndarray) -> np.ndarray:
    """(n,) factors -> (n, 4, 4): brightness, contrast or saturation times them, as maps of (r, g, b, 1)."""
    matrix = np.tile(np.eye(4), (len(factor), 1, 1))
    factor = factor[:, None, None]
    if name == "saturation":
        matrix[:, :3, :3] = factor * np.eye(3) + (1 - factor) * LUMA
        return matrix
    matrix[:, :3, :3] *= factor
    if name == "contrast":  # about a fixed grey, not each image's own
        matrix[:, :3, 3] = (1 - factor[:, 0]) * float(LUMA @ GREY)
    return matrix


def _jitter(random: np.random.Generator, count: int, colour: float) -> np.ndarray:
    """(B, 4, 4): random brightness, contrast and saturation."""
    if not colour:
        return np.tile(np.eye(4), (count, 1, 1))
    brightness, contrast, saturation = random.uniform(1 - colour, 1 + colour, (count, 3)).T
    return enhance("saturation", saturation) @ enhance("contrast", contrast) @ enhance("brightness", brightness)


def _holes(random: np.random.Generator, count: int, probability: float, side: int) -> np.ndarray:
    """(B, 4): top, bottom, left and right of what is erased; empty where nothing is (Zhong et al. 2017)."""
    drawn = random.random(count)
    half = np.sqrt(random.uniform(*ERASED, count)) / 2
    stretch = np.exp(random.uniform(-0.5, 0.5, count))
    centre = random.random((2, count))
    holes = np.stack([*_span(centre[0], half * stretch, side), *_span(centre[1], half / stretch, side)], axis=1)
    return holes * (drawn < probability)[:, None]
