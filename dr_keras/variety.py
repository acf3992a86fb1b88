"""Variety among results: near-copies folded into one, and results that are unlike each other."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dr_keras.errors import InputError

POOL = 4  # times as many images are looked at as results are asked for, and more if many of them are copies
MIN_DIVERSE_POOL = 100


@dataclass(frozen=True)
class Variety:
    """What is asked for besides nearness.

    Attributes:
        distinct: Fold copies of a result into it.
        diverse: The weight of nearness, from 0 to 1, against being unlike the results before (maximal marginal
            relevance, Carbonell and Goldstein 1998); None ranks by nearness alone, as 1 does.

    Raises:
        InputError: `diverse` is not from 0 to 1.
    """

    distinct: bool = False
    diverse: float | None = None

    def __post_init__(self) -> None:
        if self.diverse is not None and not 0 <= self.diverse <= 1:
            raise InputError(f"diverse is {self.diverse:g}; it must be from 0 to 1, and 1 ranks by nearness alone")

    def __bool__(self) -> bool:
        return self.distinct or self.diverse is not None

    def pool(self, k: int) -> int:
        """Returns how many of the nearest images to look at first, for `k` results."""
        return max(POOL * k, MIN_DIVERSE_POOL) if self.diverse is not None else POOL * k


NEAREST = Variety()  # nothing besides


def vary(
    variety: Variety,
    vectors: np.ndarray,
    distances: np.ndarray,
    k: int,
    copies_among: Callable[[], np.ndarray],
) -> tuple[list[int], list[list[int]]]:
    """Chooses results among the nearest images.

    Args:
        variety: What is asked for.
        vectors: (N, D) of unit length, those of the nearest images.
        distances: (N,) Euclidean, to the query, ascending.
        k: How many results.
        copies_among: Returns (N,) the first image of each one's group, see `dr_keras.duplicates.copies`.

    Returns:
        The numbers of at most `k` images, best first; and for each, those of its copies.
    """
    group = copies_among() if variety.distinct else np.arange(len(vectors))
    firsts = np.unique(group)  # ascending, so still nearest first
    chosen = firsts[:k]
    if variety.diverse is not None:
        chosen = firsts[marginal(vectors[firsts], distances[firsts], k, variety.diverse)]
    return chosen.tolist(), [np.flatnonzero(group == first)[1:].tolist() for first in chosen]


def marginal(vectors: np.ndarray, distances: np.ndarray, k: int, weight: float) -> np.ndarray:
    """Ranks images by maximal marginal relevance (Carbonell and Goldstein 1998).

    Each next image has the greatest `weight` * cosine to the query - (1 - `weight`) * greatest cosine to those before.

    Args:
        vectors: (N, D) of unit length.
        distances: (N,) Euclidean, to the query.
        k: How many to choose; capped at N.
        weight: From 0 to 1.

    Returns:
        (K,) int64, the numbers of the images, best first.
    """
    relevance = weight * (1 - np.asarray(distances, np.float64) ** 2 / 2)
    nearest = np.full(len(vectors), -np.inf)  # cosine of each image to the most similar one chosen
    left = np.ones(len(vectors), bool)
    chosen: list[int] = []
    for _ in range(min(k, len(vectors))):
        score = relevance - (1 - weight) * nearest if chosen else relevance - distances  # the first is the nearest
        best = int(np.argmax(np.where(left, score, -np.inf)))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return np.array(chosen, np.int64)
