"""Mining: which other embeddings of the batch become the negatives, and in one case the positives, of the triplets.

No gradient flows through the choice; the loss of the chosen triplets is computed in `dr_keras.model.ranking`.
"""

from typing import Any

import keras
from keras import ops

from dr_keras.model.distances import safe_sqrt, squared_distance, squared_distances

NEAREST_DRAWN = 0.5  # distance-weighted mining: smaller distances count as this one (Wu et al. 2017, lambda)
FARTHEST_DRAWN = 1.4  # and larger ones are not drawn: almost all pairs of unit vectors are sqrt(2) apart
NEVER = 1e9  # more than any squared distance


class Miner:
    """Chooses positives and negatives by the distances from the queries to candidates."""

    def mine(self, query: Any, positive: Any, candidates: Any, labels: Any) -> tuple[Any, Any]:
        """Chooses among the embeddings of a batch.

        Args:
            query: (B, D), the queries.
            positive: (B, D), the positives that were drawn for them.
            candidates: (M, D), all embeddings of the batch, the queries first.
            labels: (M,) integers, the classes of the candidates.

        Returns:
            The positives and negatives, (B, D) each, that replace those that were drawn.
        """
        count = ops.shape(query)[0]
        squared = squared_distances(ops.stop_gradient(query), ops.stop_gradient(candidates))  # (B, M)
        same = labels[:count, None] == labels[None, :]
        positive = self.positives(squared, same, positive, candidates)
        near = squared_distance(ops.stop_gradient(query), ops.stop_gradient(positive))
        return positive, ops.take(candidates, self.negatives(squared, same, near, query.shape[-1]), axis=0)

    def positives(self, squared: Any, same: Any, positive: Any, candidates: Any) -> Any:
        """Returns the (B, D) positives: those that were drawn, unless a subclass chooses others.

        Args:
            squared: (B, M), squared distances from the queries to the candidates, of which the queries are the first.
            same: (B, M) booleans, whether they are of one class.
            positive: (B, D), the positives that were drawn.
            candidates: (M, D), the candidates.
        """
        return positive

    def negatives(self, squared: Any, same: Any, near: Any, dimensions: int) -> Any:
        """Returns (B,) integers: the candidate that each query gets as its negative.

        Args:
            squared: (B, M), squared distances from the queries to the candidates.
            same: (B, M) booleans, whether they are of one class.
            near: (B,), squared distance from each query to its positive.
            dimensions: D, the length of an embedding.
        """
        raise NotImplementedError


class SemiHardMiner(Miner):
    """The nearest negative that is farther than the positive; where there is none, the farthest (Schroff et al. 2015).

    The fallback follows TensorFlow Addons; the paper does not specify one.
    """

    def negatives(self, squared: Any, same: Any, near: Any, dimensions: int) -> Any:
        farther = ops.where(squared > near[:, None], ops.where(same, NEVER, squared), NEVER)
        farthest = ops.argmax(ops.where(same, -1.0, squared), axis=1)
        return ops.where(ops.min(farther, axis=1) < NEVER, ops.argmin(farther, axis=1), farthest)


class HardMiner(Miner):
    """The nearest negative, and the farthest positive ("batch hard", Hermans et al. 2017)."""

    def positives(self, squared: Any, same: Any, positive: Any, candidates: Any) -> Any:
        itself = ops.eye(ops.shape(squared)[0], ops.shape(candidates)[0], dtype="bool")
        farthest = ops.argmax(ops.where(same & ~itself, squared, -1.0), axis=1)
        return ops.take(candidates, farthest, axis=0)

    def negatives(self, squared: Any, same: Any, near: Any, dimensions: int) -> Any:
        return ops.argmin(ops.where(same, NEVER, squared), axis=1)


class DistanceWeightedMiner(Miner):
    """A negative drawn so that all distances are about equally likely (Wu et al. 2017).

    Made for vectors of unit length: on the sphere, distance d has the density d^(D-2) (1 - d^2/4)^((D-3)/2), and the
    negatives are weighted by its inverse.

    Args:
        random: The generator of the draws. The layer that uses the miner has to own it, so that its state is saved.
    """

    def __init__(self, random: keras.random.SeedGenerator) -> None:
        self._random = random

    def negatives(self, squared: Any, same: Any, near: Any, dimensions: int) -> Any:
        d = ops.clip(safe_sqrt(squared), NEAREST_DRAWN, FARTHEST_DRAWN)
        density = (dimensions - 2.0) * ops.log(d) + (dimensions - 3.0) / 2.0 * ops.log(1.0 - ops.square(d) / 4.0)
        drawable = ~same & (squared < FARTHEST_DRAWN**2)
        any_drawable = ops.any(drawable, axis=1, keepdims=True)  # where there is none, any negative may be drawn
        logits = ops.where(ops.where(any_drawable, drawable, ~same), ops.where(any_drawable, -density, 0.0), -NEVER)
        return keras.random.categorical(logits, 1, seed=self._random)[:, 0]


def miner_of(mining: str, random: keras.random.SeedGenerator | None) -> Miner | None:
    """Returns the miner of a name in `dr_keras.config.MININGS`; None for "none", which keeps the triplets as drawn.

    Args:
        mining: The name.
        random: The generator of the draws; only "distance-weighted" needs it.
    """
    if mining == "semi-hard":
        return SemiHardMiner()
    if mining == "hard":
        return HardMiner()
    if mining == "distance-weighted":
        assert random is not None
        return DistanceWeightedMiner(random)
    return None
