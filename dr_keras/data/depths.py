"""From deep grayscale to 8 bits: which value is white, which not every file says."""

import numpy as np
from PIL import Image

from dr_keras.errors import ImageError

# The possible depths of integer samples if the file does not declare one; 1 is a mask.
DEPTHS_BITS = (1, 4, 8, 12, 16, 24, 31)
# The possible values of white in floating point, besides 1; a maximum between 1 and 15 fits none of them.
FLOAT_WHITES = (255, 4095, 65535)
MIN_FLOAT_MAXIMUM = 1 / 32  # an image from 0 to 1 with a smaller maximum would come out black

_SAVE = "; save it with 8 bits per channel"


def eight_bits(gray: np.ndarray, format: str | None) -> np.ndarray:
    """Converts grayscale of any depth, (H, W), to uint8.

    Raises:
        ImageError: Its range fits no known depth.
    """
    low, high = float(gray.min()), float(gray.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("has values that are not finite numbers; save it with 8 bits")
    white = _float_white(low, high) if gray.dtype.kind == "f" else _integer_white(low, high, format)
    return (gray.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)


def _integer_white(low: float, high: float, format: str | None) -> float:
    if low < 0:
        raise ImageError(f"has values from {low:.0f} to {high:.0f}, whose black and white are unknown{_SAVE}")
    if format in ("PPM", "JPEG2000"):  # Pillow has already scaled these by their declared depth
        return 65535
    return next(2.0**bits - 1 for bits in DEPTHS_BITS if high < 2**bits)


def _float_white(low: float, high: float) -> float:
    if low < -1e-3:
        raise ImageError(f"has values from {low:g} to {high:g}, whose black and white are unknown{_SAVE}")
    if high == 0 or MIN_FLOAT_MAXIMUM <= high <= 1 + 1e-3:
        return 1
    white = next((white for white in FLOAT_WHITES if 15 < high <= white), None)
    if white is None:
        raise ImageError(f"has values from {low:g} to {high:g}, which fit no known depth{_SAVE}")
    return white


def check_depth(image: Image.Image) -> None:
    """Rejects an image that is nearly black in the upper 8 of its 16 bits, because it uses 12 bits or fewer."""
    bands = image.getextrema()
    colors = bands[: len(bands) - ("A" in image.getbands())] if isinstance(bands[0], tuple) else (bands,)
    high = max(band[1] for band in colors)
    if high <= 15:
        raise ImageError(f"has 16 bits per channel, but uses only the lower 12{_SAVE}")
