"""The heads of a model: which of its vectors are searched, and the general one, which needs no training of its own.

The linear embedding is trained for the classes that it has seen, and discards what does not tell these apart. To tell
other classes apart, the general head adds what the embedding starts from, the features of all paths. A principal
component analysis (PCA) of the training images reduces all of them to few numbers, with the large components scaled
down, so that no direction dominates (docs/quality.md).
"""

import io
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dr_keras.errors import InputError, RunError
from dr_keras.number_files import halved, packed_arrays, read_arrays, to_half, write_arrays

TRAINED, GENERAL = "trained", "general"
FITTED = "fitted"  # a general head that was fitted on the images of an index, and belongs to it
HEADS = ("auto", TRAINED, GENERAL)
GENERAL_DIM = 256
LOW_RESOLUTION_WEIGHT = 0.5  # of the features of these paths, beside those of the ConvNet path
WHITENING = 0.2  # components are divided by their standard deviation to the power of twice this
FIT_IMAGES = 16_384  # more make no difference
LARGE = 4096  # a matrix above this size is reduced to its leading subspace before it is decomposed
ITERATIONS, OVERSAMPLING = 16, 64  # of that reduction
BIAS_ERROR = 1e-6  # of a bias that has half precision but for the rounding of the mean
NOTHING_TO_FIT = "a general head needs at least two different images to be fitted on"
SMALLEST = 1e-6  # variance of a component, as a share of the largest; below it there is only rounding


@dataclass(frozen=True)
class GeneralHead:
    """A PCA with partial whitening: features (N, F) -> vectors (N, D) of unit length.

    Attributes:
        mean: (F,) float32, subtracted from the features.
        matrix: (F, D) float32, the scaled components.
    """

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Returns the vectors (N, D) float32 of features (N, F)."""
        vectors = (features - self.mean) @ self.matrix
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.matrix.shape[1]

    @cached_property
    def checksum(self) -> str:
        """Identifies the head."""
        return f"{zlib.crc32(self.matrix.tobytes(), zlib.crc32(self.mean.tobytes())):08x}"

    def save(self, file: Path) -> None:
        """Writes the head, the matrix in half precision if that loses nothing.

        Raises:
            OSError: The file cannot be written.
        """
        write_arrays(file, mean=self.mean, matrix=halved(self.matrix))

    @classmethod
    def of_index(cls, data: bytes | None) -> "GeneralHead":
        """Reads the head that was fitted on the images of an index, from what the index keeps.

        Raises:
            RunError: It is missing or damaged.
        """
        if data is None:
            raise RunError("the index has lost its general head")
        return cls.load(io.BytesIO(data))

    @classmethod
    def load(cls, file: Path | io.BytesIO) -> "GeneralHead":
        """Reads a head from a file or its content.

        Raises:
            RunError: The file is missing or damaged.
        """
        arrays = read_arrays(file, "a general head")
        try:
            return cls(arrays["mean"].astype(np.float32), arrays["matrix"].astype(np.float32))
        except KeyError as error:
            name = file if isinstance(file, Path) else "what is kept with the index"
            raise RunError(f"{name} cannot be read as a general head: {error}") from error

    def packed(self) -> bytes:
        """Returns the content of a file of the head."""
        return packed_arrays(mean=self.mean, matrix=halved(self.matrix))

    def rounded(self) -> "GeneralHead":
        """Returns the head with its matrix rounded to half precision, for a released model.

        The mean is shifted until the bias of the layer that applies the head, -mean @ matrix, has half precision too: a
        LiteRT file in half precision stores that bias. The mean itself stays in float32.
        """
        matrix = to_half(self.matrix)
        exact = matrix.astype(np.float64)
        bias = -(self.mean.astype(np.float64) @ exact)
        error = bias - to_half(bias)
        if np.abs(error).max() < BIAS_ERROR:  # rounded already
            return GeneralHead(self.mean, matrix)
        shift, *_ = np.linalg.lstsq(exact.T, error, rcond=None)
        return GeneralHead((self.mean + shift).astype(np.float32), matrix)


def fit_general_head(features: np.ndarray, dim: int = GENERAL_DIM, whitening: float = WHITENING) -> GeneralHead:
    """Fits a general head.

    Args:
        features: (N, F), of images like those that will be searched; labels are not needed.
        dim: The length of a vector; less if there are not as many features or images.
        whitening: The variance of a component to the power of minus this is its scale: 0 is a plain PCA, 0.5 complete
            whitening.

    Raises:
        InputError: There are fewer than two different images.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
        >>> fit_general_head(features, dim=4)(features).shape
        (100, 4)
    """
    if len(features) < 2:
        raise InputError(NOTHING_TO_FIT)
    mean = features.mean(axis=0, dtype=np.float64)
    centered = (features - mean).astype(np.float32)
    values, components = _principal_components(centered, dim)
    order = np.argsort(values)[::-1][:dim]
    order = order[values[order] > SMALLEST * max(values[order[0]], np.finfo(np.float32).tiny)]
    if not len(order):
        raise InputError(NOTHING_TO_FIT)
    variances = values[order] / values[order[0]]
    matrix = components[:, order] * variances**-whitening
    return GeneralHead(mean.astype(np.float32), matrix.astype(np.float32))


def _principal_components(centered: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the eigenvalues (D,) and eigenvectors (F, D) of the scatter matrix of `centered` (N, F), D >= dim.

    The smaller of the two symmetric matrices with the same spectrum is decomposed. If that is large, as for AlexNet's
    11,264 features, whose decomposition takes minutes, it is first reduced to its leading subspace by randomized
    subspace iteration (Halko et al. 2011, algorithm 4.4).
    """
    count, length = centered.shape
    width = dim + OVERSAMPLING
    if min(count, length) > max(LARGE, 2 * width):
        basis = np.random.default_rng(0).normal(size=(length, width)).astype(np.float32)
        for _ in range(ITERATIONS):
            basis, _ = np.linalg.qr(centered.T @ (centered @ basis))
        values, vectors = _principal_components(centered @ basis, dim)
        return values, basis @ vectors
    small = centered.T @ centered if length <= count else centered @ centered.T
    values, vectors = np.linalg.eigh(small.astype(np.float64))
    if length <= count:
        return values, vectors
    return values, centered.T @ (vectors / np.sqrt(np.maximum(values, np.finfo(np.float64).tiny)))
