"""Flip and pixel shift of whole batches. Both only move pixels, so they are part of the gather that makes the batch."""

import numpy as np

from dr_keras.data.pixels import Images


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
