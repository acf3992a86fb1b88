"""Augmentation on the device that JAX computes on, of images that lie in its memory.

The same draws (`dr_keras.data.augmentation_draws`) do the same as in `dr_keras.data.augment_pillow`, but for rounding:
Pillow rounds to whole values after each step, this only before a table is looked up and at the end. Every function
returns at once, with an array that is still being computed, so that batches are made ahead while the network trains on
the last.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from dr_keras.data.augmentation_draws import GREY, Augmentation, draw_changes, draw_mixing, draw_moves


def to_device(pixels: np.ndarray) -> jax.Array:
    """Puts (N, H, W, 3) uint8 images into the memory of the device."""
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
    """`dr_keras.data.augment_pillow.augmented` on the device: (N, H, W, 3) uint8, (B,) -> (B, size, size, 3) uint8."""
    height, width = pixels.shape[1:3]
    side = size or height
    moves: dict[str, np.ndarray] | None = None
    if how.crop == 1 and (how.flip or how.shift):
        moves = _part(vars(draw_moves(how, len(rows), seed)), part)
    if how.only_moves and (size is None or (side, side) == (height, width)):
        return _moved(pixels, rows[part], moves)
    changes = _part(vars(draw_changes(how, len(rows), (height, width), side, seed)), part)
    if not how.operations:  # what is the same for all images needs no place in the program
        del changes["tables"], changes["warped"]
    return _changed(pixels, rows[part], moves, changes, side=side, coloured=bool(how.colour or how.operations))


def mixed(
    images: jax.Array, *, mixup: float, cutmix: float, seed: tuple[int, ...]
) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """`dr_keras.data.augment_pillow.mixed` on the device; the images are there, partners and shares are NumPy's."""
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


@functools.partial(jax.jit, static_argnames=("side", "coloured"))
def _changed(
    pixels: jax.Array, rows: Any, moves: dict[str, Any] | None, changes: dict[str, Any], *, side: int, coloured: bool
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
    if coloured:
        colours = changes["colours"]
        moved = jnp.einsum("bij,byxj->byxi", colours[:, :3, :3], out, precision="highest")
        out = jnp.clip(jnp.rint(moved + colours[:, None, None, :3, 3]), 0, 255)
    out = jnp.where(changes["mirrored"][:, None, None, None], out[:, :, ::-1], out)
    hole = _inside(changes["holes"], side, side)[..., None]
    return jnp.where(hole, changes["noise"][:, None, None, :], out.astype(jnp.uint8))


def _resized(image: jax.Array, to_image: jax.Array, *, side: int) -> jax.Array:
    """(H, W, 3), (2, 3) -> (side, side, 3): what the map shows, without turning; smoothed where it shrinks."""
    scale = 1.0 / jnp.stack([to_image[1, 1], to_image[0, 0]])
    translation = -jnp.stack([to_image[1, 2], to_image[0, 2]]) * scale
    return jax.image.scale_and_translate(
        image, (side, side, 3), (0, 1), scale, translation, "linear", antialias=True, precision="highest"
    )


def _warped(image: jax.Array, to_image: jax.Array, *, side: int) -> jax.Array:
    """(H, W, 3), (2, 3) -> (side, side, 3): what the map shows, and grey from outside of the image."""
    height, width = image.shape[:2]
    centres = jnp.arange(side) + 0.5
    x = to_image[0, 0] * centres[None, :] + to_image[0, 1] * centres[:, None] + to_image[0, 2]
    y = to_image[1, 0] * centres[None, :] + to_image[1, 1] * centres[:, None] + to_image[1, 2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    places = [y - 0.5, x - 0.5]
    shown = jax.vmap(lambda channel: map_coordinates(channel, places, order=1, mode="nearest"), -1, -1)(image)
    return jnp.where(inside[..., None], shown, jnp.array(GREY, jnp.float32))


@jax.jit
def _mixed(images: jax.Array, mixing: dict[str, Any]) -> jax.Array:
    others = images[mixing["partner"]]
    own = mixing["own"][:, None, None, None]
    blend = jnp.rint(images * own + others * (1 - own)).astype(jnp.uint8)
    out = jnp.where(mixing["blended"][:, None, None, None], blend, images)
    return jnp.where(_inside(mixing["pasted"], *images.shape[1:3])[..., None], others, out)


def _inside(boxes: Any, height: int, width: int) -> jax.Array:
    """(B, 4) top, bottom, left, right -> (B, H, W) bool."""
    top, bottom, left, right = (boxes[:, edge, None, None] for edge in range(4))
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
