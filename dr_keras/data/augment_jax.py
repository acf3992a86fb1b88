"""Applies the augmentation of training images with JAX, on the device whose memory holds them.

The same draws (`dr_keras.data.augmentation_draws`) have the same effect as in `dr_keras.data.augment_pillow`, except
for rounding: Pillow rounds to whole values after each step, whereas this module rounds only before a table lookup and
at the end. All functions return immediately, with an array that is still being computed, so that batches are prepared
while the network trains on the previous one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from dr_keras.data.augmentation_draws import FILL_COLOR, Augmentation, draw_changes, draw_mixing, draw_moves


def to_device(pixels: np.ndarray) -> jax.Array:
    """Copies images (N, H, W, 3) uint8 to the memory of the device."""
    return jax.device_put(np.ascontiguousarray(pixels))


def augmented(
    pixels: jax.Array,
    rows: np.ndarray,
    how: Augmentation,
    *,
    size: int | None = None,
    seed: tuple[int, ...] = (),
    part: slice = slice(None),
) -> jax.Array:
    """Gathers and augments images on the device.

    Args:
        pixels: (N, H, W, 3) uint8, from `to_device`.
        rows, how, size, seed, part: As for `dr_keras.data.augment_pillow.augmented`.

    Returns:
        (B, size, size, 3) uint8, or the images of `part`.
    """
    height, width = pixels.shape[1:3]
    side = size or height
    moves: dict[str, np.ndarray] | None = None
    if how.crop == 1 and (how.flip or how.shift):
        moves = _part(vars(draw_moves(how, len(rows), seed)), part)
    if how.only_moves and (size is None or (side, side) == (height, width)):
        return _moved(pixels, rows[part], moves)
    changes = _part(vars(draw_changes(how, len(rows), (height, width), side, seed)), part)
    if not how.operations:  # tables that change nothing are left out of the program
        del changes["tables"], changes["warped"]
    return _changed(pixels, rows[part], moves, changes, side=side, recolor=bool(how.color or how.operations))


def mixed(
    images: jax.Array, *, mixup: float, cutmix: float, seed: tuple[int, ...]
) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """Mixes some images of a batch with other images of the batch on the device.

    Args:
        images: (B, H, W, 3) uint8.
        mixup, cutmix, seed: As for `dr_keras.data.augmentation_draws.draw_mixing`.

    Returns:
        The images (B, H, W, 3) uint8 on the device, and as NumPy arrays the partner of each (B,) int64, and the share
        that is its own (B,) float32.
    """
    mixing = draw_mixing(len(images), images.shape[1:3], mixup=mixup, cutmix=cutmix, seed=seed)
    return _mixed(images, vars(mixing)), mixing.partner, mixing.own


def _part(drawn: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
    return {name: values[part] for name, values in drawn.items()}


@jax.jit
def _moved(pixels: jax.Array, rows: Any, moves: dict[str, Any] | None) -> jax.Array:
    if moves is None:
        return pixels[rows]
    height, width = pixels.shape[1:3]
    y = jnp.clip(jnp.arange(height) + moves["down"][:, None], 0, height - 1)  # (B, H)
    x = jnp.clip(jnp.arange(width) + moves["right"][:, None], 0, width - 1)  # (B, W)
    x = jnp.where(moves["mirrored"][:, None], x[:, ::-1], x)
    return pixels[rows[:, None, None], y[:, :, None], x[:, None, :]]


@functools.partial(jax.jit, static_argnames=("side", "recolor"))
def _changed(
    pixels: jax.Array,
    rows: Any,
    moves: dict[str, Any] | None,
    changes: dict[str, Any],
    *,
    side: int,
    recolor: bool,
) -> jax.Array:
    images = _moved(pixels, rows, moves).astype(jnp.float32)
    maps = changes["maps"]
    out = jax.vmap(functools.partial(_resized, side=side))(images, maps)
    if "warped" in changes:
        turned = jax.vmap(functools.partial(_warped, side=side))(images, maps)
        out = jnp.where(changes["warped"][:, None, None, None], turned, out)
    out = jnp.clip(jnp.rint(out), 0, 255)
    if "tables" in changes:
        out = jax.vmap(lambda table, image: table[image])(changes["tables"], out.astype(jnp.uint8)).astype(jnp.float32)
    if recolor:
        colors = changes["colors"]
        moved = jnp.einsum("bij,byxj->byxi", colors[:, :3, :3], out, precision="highest")
        out = jnp.clip(jnp.rint(moved + colors[:, None, None, :3, 3]), 0, 255)
    out = jnp.where(changes["mirrored"][:, None, None, None], out[:, :, ::-1], out)
    hole = _inside(changes["holes"], side, side)[..., None]
    return jnp.where(hole, changes["noise"][:, None, None, :], out.astype(jnp.uint8))


def _resized(image: jax.Array, to_image: jax.Array, *, side: int) -> jax.Array:
    """(H, W, 3), (2, 3) -> (side, side, 3): the part that the map shows, smoothed where it shrinks."""
    scale = 1.0 / jnp.stack([to_image[1, 1], to_image[0, 0]])
    translation = -jnp.stack([to_image[1, 2], to_image[0, 2]]) * scale
    return jax.image.scale_and_translate(
        image, (side, side, 3), (0, 1), scale, translation, "linear", antialias=True, precision="highest"
    )


def _warped(image: jax.Array, to_image: jax.Array, *, side: int) -> jax.Array:
    """(H, W, 3), (2, 3) -> (side, side, 3): what the map shows, and gray outside the image."""
    height, width = image.shape[:2]
    centers = jnp.arange(side) + 0.5
    x = to_image[0, 0] * centers[None, :] + to_image[0, 1] * centers[:, None] + to_image[0, 2]
    y = to_image[1, 0] * centers[None, :] + to_image[1, 1] * centers[:, None] + to_image[1, 2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    places = [y - 0.5, x - 0.5]
    shown = jax.vmap(lambda channel: map_coordinates(channel, places, order=1, mode="nearest"), -1, -1)(image)
    return jnp.where(inside[..., None], shown, jnp.array(FILL_COLOR, jnp.float32))


@jax.jit
def _mixed(images: jax.Array, mixing: dict[str, Any]) -> jax.Array:
    others = images[mixing["partner"]]
    own = mixing["own"][:, None, None, None]
    blend = jnp.rint(images * own + others * (1 - own)).astype(jnp.uint8)
    out = jnp.where(mixing["blended"][:, None, None, None], blend, images)
    return jnp.where(_inside(mixing["pasted"], *images.shape[1:3])[..., None], others, out)


def _inside(boxes: Any, height: int, width: int) -> jax.Array:
    """(B, 4) top, bottom, left and right -> (B, H, W) bool."""
    top, bottom, left, right = (boxes[:, edge, None, None] for edge in range(4))
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
