"""The share that each cell of a picture has in its embedding, for networks where it is exact.

Where the features are the mean of a map's cells (global average pooling), and all that follows is linear up to the
lengths of vectors, an embedding is the sum of one vector for each cell and one for the biases. So the cosine of two
embeddings is the sum over all pairs of their cells (Stylianou et al. 2019, Zhu et al. 2021).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_keras.heads import LOW_RESOLUTION_WEIGHT, GeneralHead
from dr_keras.number_files import halved, read_arrays, write_arrays

CONVNET, PATH_A, PATH_B = "convnet", "path_a", "path_b"
TINY = 1e-6  # a length; a network that ends in ReLU can give all zeros
MAPS = (CONVNET, PATH_A, PATH_B)  # of an exported file, in this order, after the heads

Maps = dict[str, np.ndarray]
"""By name, the (h, w, C) map of one image: that of the ConvNet path, and those of the low-resolution paths, if any."""


@dataclass(frozen=True)
class Cells:
    """The vectors whose sum is an embedding.

    Attributes:
        vectors: (G, G, D), one for each cell of the image, from the top left.
        bias: (D,), what does not come from the image.
    """

    vectors: np.ndarray
    bias: np.ndarray

    @property
    def embedding(self) -> np.ndarray:
        """The sum, (D,) of unit length."""
        return self.vectors.sum(axis=(0, 1)) + self.bias

    def through(self, head: GeneralHead) -> "Cells":
        """Returns the cells of the vector that a general head makes of the embedding."""
        return _of_unit_length(self.vectors @ head.matrix, (self.bias - head.mean) @ head.matrix)


@dataclass(frozen=True)
class Projection:
    """The linear layer of a network, from the features of all paths to its embedding.

    Attributes:
        kernel: (F, D) float32; None if the features themselves are the embedding.
        bias: (D,) float32, or None.
    """

    kernel: np.ndarray | None = None
    bias: np.ndarray | None = None

    def save(self, file: Path) -> None:
        """Writes the projection, the kernel in half precision if that loses nothing.

        Raises:
            OSError: The file cannot be written.
        """
        values = {}
        if self.kernel is not None and self.bias is not None:
            values = {"kernel": halved(self.kernel), "bias": self.bias}
        write_arrays(file, **values)

    @classmethod
    def load(cls, file: Path) -> "Projection":
        """Reads a projection.

        Raises:
            RunError: The file is missing or damaged.
        """
        arrays = read_arrays(file, "a projection")
        return cls(*(arrays[name].astype(np.float32) for name in ("kernel", "bias") if name in arrays))

    def cells(self, maps: Maps, general: GeneralHead | None = None) -> Cells:
        """Returns the cells of an image's embedding.

        Args:
            maps: The maps of the image.
            general: The general head, for the cells of its vector; None for those of the trained embedding.
        """
        paths = _paths(maps)
        features = np.concatenate(paths, axis=-1)  # (G, G, F)
        nothing = np.zeros(features.shape[-1], np.float32)
        if self.kernel is None or self.bias is None:
            trained = _of_unit_length(features, nothing)
        else:
            trained = _of_unit_length(features @ self.kernel, self.bias)
        if general is None:
            return trained
        if self.kernel is None:
            return trained.through(general)
        # As `dr_keras.model.general_head` joins them.
        low = [LOW_RESOLUTION_WEIGHT * path for path in paths[1:]]
        joined = np.concatenate([trained.vectors, paths[0], *low], axis=-1)
        return Cells(joined, np.concatenate([trained.bias, nothing])).through(general)


def _paths(maps: Maps) -> list[np.ndarray]:
    """What each cell adds to the features of each path, which are of unit length: (G, G, C) and perhaps (G, G, L)."""
    side = math.lcm(*(part for values in maps.values() for part in values.shape[:2]))
    paths = [_spread(maps[CONVNET].astype(np.float32), side)]
    if PATH_A in maps:
        parts = [_spread(_own_numbers(maps[name].astype(np.float32)), side) for name in (PATH_A, PATH_B)]
        paths.append(np.concatenate(parts, axis=-1))
    return [path / max(float(np.linalg.norm(path.sum(axis=(0, 1)))), TINY) for path in paths]


def _own_numbers(values: np.ndarray) -> np.ndarray:
    """(h, w, C) -> (h, w, h * w * C): each cell has numbers of its own in the flattened map."""
    height, width, channels = values.shape
    own = np.zeros((height, width, height * width, channels), np.float32)
    row, column = np.indices((height, width))
    own[row, column, row * width + column] = values
    return own.reshape(height, width, -1)


def _spread(values: np.ndarray, side: int) -> np.ndarray:
    """(h, w, C) -> (side, side, C): divides each cell into equal parts, with the same sum."""
    down, right = side // values.shape[0], side // values.shape[1]
    return values.repeat(down, axis=0).repeat(right, axis=1) / (down * right)


def _of_unit_length(vectors: np.ndarray, bias: np.ndarray) -> Cells:
    length = max(float(np.linalg.norm(vectors.sum(axis=(0, 1)) + bias)), TINY)
    return Cells((vectors / length).astype(np.float32), (bias / length).astype(np.float32))
