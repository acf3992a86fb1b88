"""How image files become vectors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reader:
    """How image files become vectors.

    Attributes:
        embed: (n, size, size, 3) uint8 -> (n, D) float32 of unit length.
        size, resize: How images are decoded, see `dr_keras.data.images.decode`.
        exif: Whether what a file says of itself becomes attributes, see `dr_keras.data.exif`.
        parts: Which parts of a file are embedded too, see `dr_keras.data.parts.windows`; 0 for none.
    """

    embed: Callable[[np.ndarray], np.ndarray]
    size: int
    resize: str
    exif: bool = True
    parts: int = 0

    def vectors(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds decoded files: (n, D), or with parts (n, 1 + P, D) of (n, 1 + P, size, size, 3), as an index takes."""
        if not self.parts:
            return self.embed(pixels)
        return self.embed(pixels.reshape(-1, *pixels.shape[2:])).reshape(*pixels.shape[:2], -1)
