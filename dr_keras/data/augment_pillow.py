"""Applies the augmentation of training images with NumPy and Pillow.

`dr_keras.data.augmentation_draws` draws it for a whole batch, as a function of a seed. Flip and shift only move pixels,
so they are done while gathering the batch; Pillow applies the rest. `dr_keras.data.augment_jax` does the same on an
accelerator.
"""

import numpy as np
from PIL import Image

from dr_keras.data.augmentation_draws import (
    FILL_COLOR,
    VALUES,
    Augmentation,
    Moves,
    draw_changes,
    draw_mixing,
    draw_moves,
)
from dr_keras.data.pixel_store import Pixels

SAME_COLORS = np.eye(4)


def augmented(
    pixels: Pixels,
    rows: np.ndarray,
    how: Augmentation,
    *,
    size: int | None = None,
    seed: tuple[int, ...] = (),
    part: slice = slice(None),
) -> np.ndarray:
    """Gathers images from a store and augments each of them independently.

    Args:
        pixels: (N, H, W, 3) uint8, C-contiguous; may be memory-mapped or streamed.
        rows: (B,) rows of the images.
        how: The augmentation.
        size: The side of the results in pixels; as in the store by default.
        seed: The draw is a function of the seed, of `how` and of B only.
        part: The part of the B images to return; all by default.

    Returns:
        (B, size, size, 3) uint8, or the images of `part`.
    """
    side = size or pixels.shape[1]
    if how.only_moves and (size is None or (side, side) == tuple(pixels.shape[1:3])):
        return gather(pixels, rows, flip=how.flip, shift=how.shift, seed=seed, part=part)
    changes = draw_changes(how, len(rows), pixels.shape[1:3], side, seed)
    moved = Augmentation() if how.crop < 1 else how  # a crop includes its own flip and shift
    source = gather(pixels, rows, flip=moved.flip, shift=moved.shift, seed=seed, part=part)
    chosen = range(len(rows))[part]
    out = np.empty((len(chosen), side, side, 3), np.uint8)
    for place, number in enumerate(chosen):
        image = Image.fromarray(source[place])
        if changes.warped[number]:
            coefficients = changes.maps[number].ravel().tolist()
            image = image.transform(
                (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=FILL_COLOR
            )
        else:
            (across, _, left), (_, down, top) = changes.maps[number].tolist()
            box = (left, top, left + across * side, top + down * side)
            image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        if not np.array_equal(changes.tables[number], VALUES):
            image = image.point(changes.tables[number].tolist() * 3)
        if not np.array_equal(changes.colors[number], SAME_COLORS):
            image = image.convert("RGB", changes.colors[number, :3].ravel().tolist())
        made = np.asarray(image)
        out[place] = made[:, ::-1] if changes.mirrored[number] else made
        top, bottom, left, right = changes.holes[number]
        out[place, top:bottom, left:right] = changes.noise[number]
    return out


def mixed(
    images: np.ndarray, *, mixup: float, cutmix: float, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixes some images of a batch with other images of the batch.

    Args:
        images: (B, H, W, 3) uint8, not modified.
        mixup, cutmix, seed: As for `dr_keras.data.augmentation_draws.draw_mixing`.

    Returns:
        The images (B, H, W, 3) uint8, the partner of each (B,) int64, and the share that is its own (B,) float32.
    """
    mixing = draw_mixing(len(images), images.shape[1:3], mixup=mixup, cutmix=cutmix, seed=seed)
    out = images.copy()
    for number in np.flatnonzero(mixing.blended):
        weight, partner = mixing.own[number], mixing.partner[number]
        out[number] = np.rint(images[number] * weight + images[partner] * (1 - weight))
    for number in np.flatnonzero(mixing.pasted[:, 1] > mixing.pasted[:, 0]):
        top, bottom, left, right = mixing.pasted[number]
        out[number, top:bottom, left:right] = images[mixing.partner[number], top:bottom, left:right]
    return out, mixing.partner, mixing.own


def gather(
    pixels: Pixels,
    rows: np.ndarray,
    *,
    flip: bool = False,
    shift: int = 0,
    seed: tuple[int, ...] = (),
    part: slice = slice(None),
) -> np.ndarray:
    """Gathers images from a store, and flips and shifts each of them independently.

    Args:
        pixels: (N, H, W, 3) uint8, C-contiguous; may be memory-mapped or streamed.
        rows: (B,) rows of the images.
        flip: Whether to flip each image left to right with probability 0.5.
        shift: The largest shift along both axes, in pixels; the border pixels are repeated.
        seed: The draw is a function of the seed, of `flip`, `shift` and B only.
        part: The part of the B images to return; all by default.

    Returns:
        (B, H, W, 3) uint8, or the images of `part`.
    """
    if not flip and not shift:
        return pixels[rows[part]]
    moves = draw_moves(Augmentation(flip, shift), len(rows), seed)
    return _moved(pixels, rows[part], Moves(moves.down[part], moves.right[part], moves.mirrored[part]))


def _moved(pixels: Pixels, rows: np.ndarray, moves: Moves) -> np.ndarray:
    if not isinstance(pixels, np.ndarray):
        pixels, rows = pixels[rows], np.arange(len(rows))
    batch, (height, width) = len(rows), pixels.shape[1:3]
    places = zip(rows, moves.down.tolist(), moves.right.tolist(), moves.mirrored.tolist(), strict=True)
    # Copies rectangles of 3-byte pixels, without computing indices and without touching a byte twice except at borders.
    store, out = pixels.view("V3")[..., 0], np.empty((batch, height, width), "V3")
    for image, (row, dy, dx, mirror) in zip(out, places, strict=True):
        place = image[:, ::-1] if mirror else image
        source = store[row]
        top, bottom = min(max(0, -dy), height - 1), max(min(height, height - dy), 1)  # what stays inside `image`
        left, end = min(max(0, -dx), width - 1), max(min(width, width - dx), 1)
        place[top:bottom, left:end] = source[top + dy : bottom + dy, left + dx : end + dx]
        place[:top], place[bottom:] = place[top], place[bottom - 1]
        place[:, :left], place[:, end:] = place[:, left : left + 1], place[:, end - 1 : end]
    return out.view(np.uint8).reshape(batch, height, width, 3)
