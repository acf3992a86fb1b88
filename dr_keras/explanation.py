"""Why two pictures are alike: how much each part of one adds to its similarity to the other."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras.backend import import_framework
from dr_keras.cells import Cells, Maps, Projection
from dr_keras.data.images import PADDING
from dr_keras.embedders import LiteRTMaps
from dr_keras.errors import MissingPackage
from dr_keras.heads import GENERAL, GeneralHead
from dr_keras.runs import Run

COVERED = 8  # cells in each direction, where an explanation is by covering parts of the picture

Vectors = Callable[[np.ndarray], np.ndarray]
"""(N, H, W, 3) uint8 -> (N, D) of unit length."""


@dataclass(frozen=True)
class Explanation:
    """Why two pictures are alike.

    Exact explanations are sums: `query_map.sum() + bias == neighbor_map.sum() + bias == total`, and `total` equals
    `cosine` up to rounding. Approximate ones say by how much the cosine falls when a part is covered in gray.

    Attributes:
        cosine: The cosine of the two embeddings, as a search computes it.
        query_map: (G, G), what each part of the query adds to the cosine, from the top left.
        neighbor_map: (G, G), what each part of the neighbor adds to it.
        total: The sum of all pairs of parts and the biases; None if it is approximate.
        bias: The share of `total` that does not come from the pictures; None if it is approximate.
        pairs: (G, G, G, G), what each part of the query (first two axes) and each of the neighbor (last two) add
            together; None if it is approximate.

    Example:
        >>> one = Cells(np.full((1, 1, 2), 0.6, np.float32), np.array([0.0, 0.2], np.float32))
        >>> found = explain_cells(one, one, cosine=1.0)
        >>> round(found.total, 6), round(float(found.query_map.sum()) + found.bias, 6)
        (1.0, 1.0)
    """

    cosine: float
    query_map: np.ndarray
    neighbor_map: np.ndarray
    total: float | None = None
    bias: float | None = None
    pairs: np.ndarray | None = None

    @property
    def exact(self) -> bool:
        """Whether the maps and the bias sum to the cosine."""
        return self.pairs is not None

    def pooled_pairs(self, side: int) -> np.ndarray | None:
        """Returns `pairs` of fewer, larger parts, (S, S, S, S) with S at most `side`; None if there are none."""
        if self.pairs is None:
            return None
        full = len(self.pairs)
        step = next(step for step in range(1, full + 1) if full % step == 0 and full // step <= side)
        part = full // step
        return self.pairs.reshape(part, step, part, step, part, step, part, step).sum(axis=(1, 3, 5, 7))

    def to_dict(self) -> dict[str, Any]:
        """Returns the explanation as plain values, for JSON, without the pairs."""
        return {
            "exact": self.exact,
            "cosine": self.cosine,
            "total": self.total,
            "bias": self.bias,
            "query_map": self.query_map.tolist(),
            "neighbor_map": self.neighbor_map.tolist(),
        }


def explain_cells(query: Cells, neighbor: Cells, cosine: float) -> Explanation:
    """Returns the exact explanation of a cosine.

    Args:
        query, neighbor: The cells of the two embeddings.
        cosine: The cosine of the embeddings.
    """
    side, dim = query.vectors.shape[0], query.vectors.shape[-1]
    one, other = (cells.vectors.reshape(-1, dim).astype(np.float64) for cells in (query, neighbor))
    pairs = one @ other.T
    bias_query, bias_neighbor = query.bias.astype(np.float64), neighbor.bias.astype(np.float64)
    bias = bias_query @ (other.sum(axis=0) + bias_neighbor) + one.sum(axis=0) @ bias_neighbor
    return Explanation(
        cosine=float(cosine),
        query_map=pairs.sum(axis=1).reshape(side, side),
        neighbor_map=pairs.sum(axis=0).reshape(side, side),
        total=float(pairs.sum() + bias),
        bias=float(bias),
        pairs=pairs.reshape(side, side, side, side),
    )


def explain_by_covering(vectors: Vectors, query: np.ndarray, neighbor: np.ndarray) -> Explanation:
    """Returns an approximate explanation, for any network: how the cosine falls if a part is covered in gray.

    Args:
        vectors: Embeds images.
        query, neighbor: (H, W, 3) uint8.
    """
    one, other = vectors(np.stack([query, neighbor]))
    maps = []
    for picture, fixed in ((query, other), (neighbor, one)):
        covered = vectors(_covered(picture))
        maps.append((float(one @ other) - covered @ fixed).reshape(COVERED, COVERED).astype(np.float64))
    return Explanation(float(one @ other), *maps)


def _covered(picture: np.ndarray) -> np.ndarray:
    """(G * G, H, W, 3): the picture with each of its parts covered."""
    found = np.repeat(picture[None], COVERED**2, axis=0)
    down, right = (np.linspace(0, length, COVERED + 1).round().astype(int) for length in picture.shape[:2])
    for row in range(COVERED):
        for column in range(COVERED):
            found[row * COVERED + column, down[row] : down[row + 1], right[column] : right[column + 1]] = PADDING
    return found


class Explainer:
    """Explains the similarities of one run's vectors. Threads may share it.

    Uses the LiteRT file of the run, or Keras if that has no maps and Keras is installed. Networks whose features are
    not the mean of a map are explained by covering.

    Args:
        run: The run.
        vectors: Embeds decoded images by a head.
    """

    def __init__(self, run: Run, vectors: Callable[[np.ndarray, str], np.ndarray]) -> None:
        self._run, self._vectors = run, vectors
        self._projection: Projection | None = None
        self._maps: Callable[[np.ndarray], list[Maps]] | None = None
        self._prepared = False
        self._guard = threading.Lock()

    def __call__(
        self, query: np.ndarray, neighbor: np.ndarray, head: str, after: GeneralHead | None = None
    ) -> Explanation:
        """Explains the similarity of two pictures.

        Args:
            query, neighbor: (H, W, 3) uint8 of the run's image size.
            head: TRAINED or GENERAL.
            after: A general head that is applied to those vectors, or None.
        """

        def vectors(images: np.ndarray) -> np.ndarray:
            found = self._vectors(images, head)
            return found if after is None else after(found)

        with self._guard:
            if not self._prepared:
                self._prepare()
                self._prepared = True
        if self._maps is None or self._projection is None:
            return explain_by_covering(vectors, query, neighbor)
        images = np.stack([query, neighbor])
        one, other = vectors(images)
        general = self._run.general_head() if head == GENERAL else None
        first, second = (self._projection.cells(maps, general) for maps in self._maps(images))
        if after is not None:
            first, second = first.through(after), second.through(after)
        return explain_cells(first, second, float(one @ other))

    def _prepare(self) -> None:
        if self._run.litert_file.is_file() and self._run.projection_file.is_file():
            litert = LiteRTMaps(self._run.litert_file)
            if litert.available:
                self._projection = Projection.load(self._run.projection_file)
                self._maps = lambda images: litert(images)[1]
                return
        try:
            import_framework()
        except MissingPackage:
            return
        from dr_keras.model.maps import map_network, projection_of
        from dr_keras.model.released import run_network

        network = run_network(self._run)
        mapped = map_network(network)
        if mapped is not None:
            self._projection = projection_of(network)
            self._maps = mapped
