"""Features of color and gradients, which say how alike two images of a class are without a network.

In the spirit of the golden features of Wang et al. 2014, section 6.1, which also mix color, edges and texture.
"""

import numpy as np

COLORS = 4  # bins for each of red, green, blue
ORIENTATIONS = 8
CELLS = 4  # in each direction, of the histograms of gradients
SIZE = 32  # pixels per side that are looked at, about
BLOCK = 1024  # images at a time

WIDTH = COLORS**3 + ORIENTATIONS * CELLS**2


def color_features(images: np.ndarray) -> np.ndarray:
    """Returns a histogram of colors and histograms of gradients, whose inner product is a similarity from 0 to 1.

    Half of the similarity compares the colors of the whole images, half the orientations of gradients in 4 x 4 cells;
    each half is the Bhattacharyya coefficient of two histograms.

    Args:
        images: (n, H, W, 3) uint8, with sides of `CELLS` pixels or more.

    Returns:
        (n, 192) float32, of unit length, no number below 0.

    Example:
        >>> red = np.full((1, 8, 8, 3), (255, 0, 0), np.uint8)
        >>> float(np.round(color_features(red) @ color_features(red[..., ::-1]).T, 3)[0, 0])  # the same gradients
        0.5
    """
    found = np.empty((len(images), WIDTH), np.float32)
    for start in range(0, len(images), BLOCK):
        found[start : start + BLOCK] = _features(_smaller(images[start : start + BLOCK]))
    return found


def _smaller(images: np.ndarray) -> np.ndarray:
    """Averages squares of pixels, so that about `SIZE` pixels per side remain: (n, h, w, 3) float32."""
    height, width = images.shape[1:3]
    step = max(1, min(height, width) // SIZE)
    cut = images[:, : height // step * step, : width // step * step]
    return cut.reshape(len(images), height // step, step, width // step, step, 3).mean(axis=(2, 4), dtype=np.float32)


def _features(images: np.ndarray) -> np.ndarray:
    count, height, width = images.shape[:3]
    bins = np.minimum(images * (COLORS / 256), COLORS - 1).astype(np.int64)
    colors = _histograms((bins[..., 0] * COLORS + bins[..., 1]) * COLORS + bins[..., 2], None, COLORS**3)

    gray = images @ np.array([0.299, 0.587, 0.114], np.float32)
    down, right = np.gradient(gray, axis=(1, 2))
    angle = np.arctan2(down, right) % np.pi  # of an edge, whichever side is bright
    orientation = np.minimum(angle * (ORIENTATIONS / np.pi), ORIENTATIONS - 1).astype(np.int64)
    cell = (np.arange(height) * CELLS // height)[:, None] * CELLS + np.arange(width) * CELLS // width
    # A little of every gradient everywhere, so that images without any are alike.
    strength = np.hypot(down, right) + 1
    gradients = _histograms(cell * ORIENTATIONS + orientation, strength, ORIENTATIONS * CELLS**2)
    return np.sqrt(np.concatenate([colors, gradients], axis=1) / 2).reshape(count, WIDTH)


def _histograms(bins: np.ndarray, weights: np.ndarray | None, length: int) -> np.ndarray:
    """One histogram for each image, (n, `length`), whose sum is 1."""
    count = len(bins)
    places = (bins.reshape(count, -1) + np.arange(count)[:, None] * length).ravel()
    flat = None if weights is None else weights.ravel()
    found = np.bincount(places, flat, minlength=count * length).reshape(count, length)
    return found / found.sum(axis=1, keepdims=True)
