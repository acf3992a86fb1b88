"""Augmentation of training images, each on its own, every draw a function of a seed.

What is drawn is drawn in NumPy for a whole batch. Flip and shift only move pixels, so they are part of the gather that
makes the batch; all that moves pixels otherwise is one affine map an image, all that changes colours one linear map of
its colours, and Pillow applies both.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dr_keras.data.pixels import Images

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


def augmented(
    pixels: Images,
    rows: np.ndarray,
    how: Augmentation,
    *,
    size: int | None = None,
    seed: tuple[int, ...] = (),
    part: slice = slice(None),
) -> np.ndarray:
    """Takes images out of a store, each augmented on its own.

    Args:
        pixels: (N, H, W, 3) uint8, C-contiguous; may be memory-mapped or streamed.
        rows: (B,) which images.
        how: what is done to them.
        size: the side of the images that are made; as in the store by default.
        seed: the draw is a function of it, of B and of nothing else.
        part: which of the B images to make; all by default.

    Returns:
        (B, size, size, 3) uint8, or as many as are in `part`.
    """
    side = size or pixels.shape[1]
    if how.only_moves and (size is None or (side, side) == tuple(pixels.shape[1:3])):
        return gather(pixels, rows, flip=how.flip, shift=how.shift, seed=seed, part=part)
    random = np.random.default_rng((*seed, 1))
    count = len(rows)
    cropped = how.crop < 1
    mirrored = (how.flip and cropped) & (random.random(count) < 0.5)
    maps = _crops(random, count, pixels.shape[1:3], how.crop, side)  # (B, 2, 3), pixels of the result -> of the store
    warped, colours, tables = _operations(random, maps, how, side)
    colours = _jitter(random, count, how.colour) @ colours  # (B, 4, 4), the operations first
    holes = _holes(random, count, how.erase, side)
    noise = random.integers(0, 256, (count, 3), np.uint8)

    chosen = range(count)[part]
    moved = Augmentation() if cropped else how  # without a crop, gather flips and shifts
    source = gather(pixels, rows, flip=moved.flip, shift=moved.shift, seed=seed, part=part)
    out = np.empty((len(chosen), side, side, 3), np.uint8)
    for place, number in enumerate(chosen):
        image = Image.fromarray(source[place])
        if warped[number]:
            coefficients = maps[number].ravel().tolist()
            image = image.transform(
                (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=GREY
            )
        else:
            (across, _, left), (_, down, top) = maps[number].tolist()
            box = (left, top, left + across * side, top + down * side)
            image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        if number in tables:
            image = image.point(tables[number] * 3)
        if not np.array_equal(colours[number], np.eye(4)):
            image = image.convert("RGB", colours[number, :3].ravel().tolist())
        made = np.asarray(image)
        out[place] = made[:, ::-1] if mirrored[number] else made
        top, bottom, left, right = holes[number]
        out[place, top:bottom, left:right] = noise[number]
    return out


def mixed(
    images: np.ndarray, *, mixup: float, cutmix: float, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixes some images of a batch with others of it: MixUp (Zhang et al. 2017) or CutMix (Yun et al. 2019).

    Args:
        images: (B, H, W, 3) uint8, not changed.
        mixup, cutmix: the probabilities that an image is blended with its partner, or has a rectangle of it pasted in.
        seed: the draw is a function of it and of B.

    Returns:
        (B, H, W, 3) uint8; (B,) int64, the partner of each; and (B,) float32, the share that is still the image's own.
        The shares of blends are uniform (Beta(1, 1)), those of pasted areas before clipping too.
    """
    count, (height, width) = len(images), images.shape[1:3]
    random = np.random.default_rng(seed)
    partner = random.permutation(count)
    kind = random.random(count)
    share = random.random(count)
    centre = random.random((2, count))
    out = images.copy()
    own = np.ones(count, np.float32)
    for number in np.flatnonzero(kind < mixup):
        weight = share[number]
        blend = images[number] * np.float32(weight) + images[partner[number]] * np.float32(1 - weight)
        out[number], own[number] = np.rint(blend), weight
    for number in np.flatnonzero((kind >= mixup) & (kind < mixup + cutmix)):
        half = np.sqrt(1 - share[number]) / 2
        top, bottom = _span(centre[0, number], half, height)
        left, right = _span(centre[1, number], half, width)
        out[number, top:bottom, left:right] = images[partner[number], top:bottom, left:right]
        own[number] = 1 - (bottom - top) * (right - left) / (height * width)
    return out, partner, own


def _span(centre: float, half: float, length: int) -> tuple[int, int]:
    return max(round((centre - half) * length), 0), min(round((centre + half) * length), length)


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
) -> tuple[np.ndarray, np.ndarray, dict[int, list[int]]]:
    """Draws the random operations and puts those that move pixels into `maps`.

    Returns:
        (B,) bool, which images are turned, sheared or moved; (B, 4, 4), their colour maps; and the look-up tables of
        those that are posterized or solarized.
    """
    count = len(maps)
    warped, colours = np.zeros(count, bool), np.tile(np.eye(4), (count, 1, 1))
    tables: dict[int, list[int]] = {}
    kinds = random.integers(0, len(OPERATIONS), (how.operations, count))
    strengths = random.random((how.operations, count))
    signs = random.choice([-1.0, 1.0], (how.operations, count))
    middle = _translation(side / 2, side / 2)
    back = _translation(-side / 2, -side / 2)
    for drawn in zip(kinds, strengths, signs, strict=True):
        for number, (kind, strength, sign) in enumerate(zip(*drawn, strict=True)):
            name, signed = OPERATIONS[kind], float(sign * strength)
            if name in ("brightness", "contrast", "saturation"):
                colours[number] = _enhance(name, 1 + ENHANCE * signed) @ colours[number]
            elif name in ("posterize", "solarize"):
                before = tables.get(number, range(256))
                table = _table(name, float(strength))
                tables[number] = [table[value] for value in before]
            elif name != "identity":
                warped[number] = True
                step = middle @ _warp(name, signed, side) @ back
                maps[number] = maps[number] @ step
    return warped, colours, tables


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _warp(name: str, strength: float, side: int) -> np.ndarray:
    if name == "rotate":
        angle = ROTATE * strength
        return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    matrix = np.eye(3)
    row, column, most = {
        "shear_x": (0, 1, SHEAR),
        "shear_y": (1, 0, SHEAR),
        "translate_x": (0, 2, TRANSLATE * side),
        "translate_y": (1, 2, TRANSLATE * side),
    }[name]
    matrix[row, column] = most * strength
    return matrix


def _table(name: str, strength: float) -> list[int]:
    """What becomes of each value from 0 to 255."""
    if name == "posterize":
        kept = 256 - (1 << round(5 * strength))  # up to five of the eight bits go
        return [value & kept for value in range(256)]
    threshold = 256 - 192 * strength
    return [255 - value if value >= threshold else value for value in range(256)]


def _enhance(name: str, factor: float) -> np.ndarray:
    """(4, 4): brightness, contrast or saturation times `factor`, as a map of (r, g, b, 1)."""
    matrix = np.eye(4)
    if name == "saturation":
        matrix[:3, :3] = factor * np.eye(3) + (1 - factor) * LUMA
        return matrix
    matrix[:3, :3] *= factor
    if name == "contrast":  # about a fixed grey, not each image's own
        matrix[:3, 3] = (1 - factor) * float(LUMA @ GREY)
    return matrix


def _jitter(random: np.random.Generator, count: int, colour: float) -> np.ndarray:
    """(B, 4, 4): random brightness, contrast and saturation."""
    if not colour:
        return np.tile(np.eye(4), (count, 1, 1))
    factors = random.uniform(1 - colour, 1 + colour, (count, 3)).tolist()
    return np.stack(
        [_enhance("saturation", s) @ _enhance("contrast", c) @ _enhance("brightness", b) for b, c, s in factors]
    )


def _holes(random: np.random.Generator, count: int, probability: float, side: int) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left and right of what is erased; empty where nothing is (Zhong et al. 2017)."""
    drawn = random.random(count)
    half = np.sqrt(random.uniform(*ERASED, count)) / 2
    stretch = np.exp(random.uniform(-0.5, 0.5, count))
    centre = random.random((2, count))
    return [
        (*_span(y, h * s, side), *_span(x, h / s, side)) if chance < probability else (0, 0, 0, 0)
        for chance, h, s, y, x in zip(drawn, half, stretch, *centre, strict=True)
    ]


def gather(
    pixels: Images,
    rows: np.ndarray,
    *,
    flip: bool = False,
    shift: int = 0,
    seed: tuple[int, ...] = (),
    part: slice = slice(None),
) -> np.ndarray:
    """Takes images out of a store, each flipped and shifted on its own.

    Args:
        pixels: (N, H, W, 3) uint8, C-contiguous; may be memory-mapped or streamed.
        rows: (B,) which images.
        flip: mirror each image left to right with probability 0.5.
        shift: move each image by up to this many pixels along both axes; the border pixels are repeated.
        seed: the draw is a function of it, of B and of nothing else.
        part: which of the B images to make; all by default.

    Returns:
        (B, H, W, 3) uint8, or as many as are in `part`.
    """
    if not flip and not shift:
        return pixels[rows[part]]
    random = np.random.default_rng(seed)
    down, right = random.integers(-shift, shift + 1, (2, len(rows)))[:, part]
    mirrored = flip & (random.random(len(rows)) < 0.5)[part]
    rows = rows[part]
    if not isinstance(pixels, np.ndarray):
        pixels, rows = pixels[rows], np.arange(len(rows))
    batch, (height, width) = len(rows), pixels.shape[1:3]
    # Pixels of 3 bytes, copied in rectangles: no index is computed and no byte is touched twice but at the border.
    store, out = pixels.view("V3")[..., 0], np.empty((batch, height, width), "V3")
    for image, row, dy, dx, mirror in zip(out, rows, down.tolist(), right.tolist(), mirrored.tolist(), strict=True):
        place = image[:, ::-1] if mirror else image
        source = store[row]
        top, bottom = min(max(0, -dy), height - 1), max(min(height, height - dy), 1)  # what stays inside, in `image`
        left, end = min(max(0, -dx), width - 1), max(min(width, width - dx), 1)
        place[top:bottom, left:end] = source[top + dy : bottom + dy, left + dx : end + dx]
        place[:top], place[bottom:] = place[top], place[bottom - 1]
        place[:, :left], place[:, end:] = place[:, left : left + 1], place[:, end - 1 : end]
    return out.view(np.uint8).reshape(batch, height, width, 3)
