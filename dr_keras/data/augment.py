"""Flip and pixel shift of whole batches. Both only move pixels, so they are part of the gather that makes the batch."""

import numpy as np


def gather(
    pixels: np.ndarray, rows: np.ndarray, *, flip: bool = False, shift: int = 0, seed: tuple[int, ...] = ()
) -> np.ndarray:
    """Takes images out of a store, each flipped and shifted on its own.

    Args:
        pixels: (N, H, W, 3) uint8, C-contiguous; may be memory-mapped.
        rows: (B,) which images.
        flip: mirror each image left to right with probability 0.5.
        shift: move each image by up to this many pixels along both axes; the border pixels are repeated.
        seed: the draw is a function of it and of nothing else.

    Returns:
        (B, H, W, 3) uint8.
    """
    if not flip and not shift:
        return pixels[rows]
    batch, (height, width) = len(rows), pixels.shape[1:3]
    random = np.random.default_rng(seed)
    down, right = random.integers(-shift, shift + 1, (2, batch, 1))
    y = np.clip(np.arange(height) + down, 0, height - 1)  # (B, H)
    x = np.clip(np.arange(width) + right, 0, width - 1)  # (B, W)
    if flip:
        x = np.where(random.random((batch, 1)) < 0.5, x[:, ::-1], x)
    # One flat take of 3-byte pixels: four times as fast as indexing along three axes.
    flat = pixels.reshape(-1).view("V3")
    place = (np.asarray(rows, np.int64)[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
    return np.take(flat, place).view(np.uint8).reshape(batch, height, width, 3)
