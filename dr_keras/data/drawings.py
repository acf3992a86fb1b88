"""Images that are drawn at random, to check exports on where a network has seen no data."""

import numpy as np
from PIL import Image

CELLS = 5  # colors per side, from which an image is interpolated
NOISE = 12.0  # standard deviation of the grain, in gray levels


def drawn_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Draws images of soft colors under fine grain.

    Args:
        count: The number of images.
        size: Pixels per side.
        seed: Seeds the colors and the grain.

    Returns:
        (count, size, size, 3) uint8.

    Example:
        >>> drawn_images(2, 32).shape
        (2, 32, 32, 3)
    """
    random = np.random.default_rng(seed)
    images = np.empty((count, size, size, 3), np.uint8)
    for image in images:
        colors = Image.fromarray(random.integers(0, 256, (CELLS, CELLS, 3), np.uint8))
        soft = np.asarray(colors.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        image[:] = np.clip(soft + random.normal(0, NOISE, soft.shape), 0, 255)
    return images
