"""The ranking layer: distances inside each triplet, mining, the hinge, and the statistics that say how it goes."""

from typing import Any

import keras
from keras import ops

from dr_keras.config import DISTANCES, MININGS
from dr_keras.errors import InputError

NEAREST_DRAWN = 0.5  # distance-weighted mining: what is nearer counts as this far (Wu et al. 2017, lambda)
FARTHEST_DRAWN = 1.4  # and what is farther is not drawn: almost all pairs of unit vectors are sqrt(2) apart
NEVER = 1e9  # more than any squared distance


@keras.saving.register_keras_serializable(package="dr_keras")
class TripletRanking(keras.layers.Layer):
    """Triplet ranking loss over the embeddings of three branches (Wang et al. 2014, eq. 3).

    For each triplet the loss is `max(0, g + D(q, p+) - D(q, p-))`; the layer adds its mean over the batch to the
    model's losses. The hinge is applied to each triplet, not to the mean. All of it is computed in float32.

    Mining replaces the negatives that were drawn by some of the 3B embeddings of the batch that are of another class
    than the query:

    - 'semi-hard' (Schroff et al. 2015): the nearest one that is farther than the positive; where there is none, the
      farthest.
    - 'hard' (Hermans et al. 2017): the nearest one; and the positive becomes the farthest of the query's class.
    - 'distance-weighted' (Wu et al. 2017): one drawn with a probability that evens out how many there are at each
      distance. Made for vectors of unit length.

    Class proxies, where given, are further positives and negatives (Movshovitz-Attias et al. 2017): each of the 3B
    embeddings is a query whose positive is the nearest proxy of its class and whose negative is a proxy of another
    class, chosen by the same rule. Without mining the hinge is averaged over all proxies of other classes.

    Args:
        margin: the gap `g`, above 0.
        distance: 'squared', `D = ||q - p||^2` (the paper's eq. 1), or 'euclidean', `D = ||q - p||` (the assignment).
        mining: 'none', 'semi-hard', 'hard' or 'distance-weighted'.
        seed: of the draws of 'distance-weighted'.

    Call arguments:
        embeddings: (B, 3D), query, positive and negative side by side.
        classes: (B, 2) integers, the query's class and the negative's; only mining and proxies need them.
        proxies: (C, N, D), N vectors of unit length for each class.

    Returns:
        A dict of (B,) statistics: `loss`, `positive_distance`, `negative_distance` (in the chosen distance, of the
        triplets after mining), and `pairwise_distance`, the mean Euclidean distance of a query to the other queries of
        the batch, which falls towards 0 when the embedding collapses. With proxies also `proxy_loss`, the mean over the
        three embeddings of each triplet; its mean over the batch is added to the model's losses too.

    Raises:
        InputError: `margin` is not above 0, `distance` or `mining` is unknown, the last axis is no multiple of 3, or
            mining or proxies lack the classes.

    Example:
        >>> layer = TripletRanking(margin=1.0)
        >>> statistics = layer(keras.ops.ones((8, 3 * 256)))
        >>> float(layer.losses[0])  # all distances are 0
        1.0
    """

    def __init__(
        self, margin: float = 1.0, distance: str = "squared", mining: str = "none", seed: int = 0, **kwargs: Any
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        if not margin > 0:
            raise InputError(f"margin is {margin}; the gap of the triplet loss must be above 0, 1.0 for example")
        if distance not in DISTANCES:
            raise InputError(f"distance is {distance!r}; choose one of {', '.join(DISTANCES)}")
        if mining not in MININGS:
            raise InputError(f"mining is {mining!r}; choose one of {', '.join(MININGS)}")
        self.margin = float(margin)
        self.distance = distance
        self.mining = mining
        self.seed = seed
        self._random = keras.random.SeedGenerator(seed) if mining == "distance-weighted" else None

    def build(self, input_shape: tuple[int | None, ...], *_shapes: Any, **_more: Any) -> None:
        if input_shape[-1] is None or input_shape[-1] % 3:
            raise InputError(f"the ranking layer got {input_shape}; it takes (B, 3D), three embeddings side by side")
        self.built = True

    def call(self, embeddings: Any, classes: Any = None, proxies: Any = None) -> dict[str, Any]:
        query, positive, negative = ops.split(embeddings, 3, axis=-1)  # 3 x (B, D)
        if classes is None and (self.mining != "none" or proxies is not None):
            raise InputError("mining and proxies need the classes of the triplets: call the layer with classes=(B, 2)")
        statistics = {}
        if classes is not None and (self.mining != "none" or proxies is not None):
            everything = ops.concatenate([query, positive, negative], axis=0)  # (3B, D)
            labels = ops.concatenate([classes[:, 0], classes[:, 0], classes[:, 1]], axis=0)  # (3B,)
            if proxies is not None:
                hinge = self._proxy_hinge(everything, labels, proxies)  # (3B,)
                statistics["proxy_loss"] = ops.mean(ops.reshape(hinge, (3, -1)), axis=0)
                self.add_loss(ops.mean(hinge))
            if self.mining != "none":
                positive, negative = self._mine(query, positive, everything, labels)
        near = self._measure(squared_distance(query, positive))  # (B,)
        far = self._measure(squared_distance(query, negative))  # (B,)
        loss = ops.relu(self.margin + near - far)
        self.add_loss(ops.mean(loss))
        return statistics | {
            "loss": loss,
            "positive_distance": near,
            "negative_distance": far,
            "pairwise_distance": mean_distance_to_others(ops.stop_gradient(query)),
        }

    def _mine(self, query: Any, positive: Any, everything: Any, labels: Any) -> tuple[Any, Any]:
        """The positives and negatives, (B, D) each, that take the place of those that were drawn."""
        count = ops.shape(query)[0]
        squared = squared_distances(ops.stop_gradient(query), ops.stop_gradient(everything))  # (B, 3B)
        same = labels[:count, None] == labels[None, :]
        if self.mining == "hard":
            itself = ops.eye(count, ops.shape(everything)[0], dtype="bool")
            farthest = ops.argmax(ops.where(same & ~itself, squared, -1.0), axis=1)
            positive = ops.take(everything, farthest, axis=0)
        near = squared_distance(ops.stop_gradient(query), ops.stop_gradient(positive))
        return positive, ops.take(everything, self._negatives(squared, same, near, query.shape[-1]), axis=0)

    def _negatives(self, squared: Any, same: Any, near: Any, dimensions: int) -> Any:
        """(B,): which of the M candidates each query gets as its negative.

        Args:
            squared: (B, M) squared distances of the queries to the candidates.
            same: (B, M) whether they are of one class.
            near: (B,) squared distance of each query to its positive.
            dimensions: of the space, D.
        """
        nearest = ops.where(same, NEVER, squared)
        if self.mining == "hard":
            return ops.argmin(nearest, axis=1)
        if self.mining == "semi-hard":
            farther = ops.where(squared > near[:, None], nearest, NEVER)
            farthest = ops.argmax(ops.where(same, -1.0, squared), axis=1)
            return ops.where(ops.min(farther, axis=1) < NEVER, ops.argmin(farther, axis=1), farthest)
        # Points of the unit sphere lie at distance d with density d^(D-2) (1 - d^2/4)^((D-3)/2).
        d = ops.clip(safe_sqrt(squared), NEAREST_DRAWN, FARTHEST_DRAWN)
        density = (dimensions - 2.0) * ops.log(d) + (dimensions - 3.0) / 2.0 * ops.log(1.0 - ops.square(d) / 4.0)
        drawable = ~same & (squared < FARTHEST_DRAWN**2)
        any_drawable = ops.any(drawable, axis=1, keepdims=True)  # where there is none, any negative may be drawn
        logits = ops.where(ops.where(any_drawable, drawable, ~same), ops.where(any_drawable, -density, 0.0), -NEVER)
        return keras.random.categorical(logits, 1, seed=self._random)[:, 0]

    def _proxy_hinge(self, embeddings: Any, labels: Any, proxies: Any) -> Any:
        """(M, D), (M,), (C, N, D) -> (M,): the hinge of each embedding against the proxies."""
        count, each, dimensions = proxies.shape
        vectors = ops.reshape(proxies, (count * each, dimensions))
        owners = ops.repeat(ops.arange(count, dtype="int32"), each)  # (CN,)
        same = ops.cast(labels, "int32")[:, None] == owners[None, :]  # (M, CN)
        squared = squared_distances(embeddings, vectors)
        near = ops.min(ops.where(same, squared, NEVER), axis=1)
        if self.mining == "none":
            hinge = ops.relu(self.margin + self._measure(near)[:, None] - self._measure(squared))
            return ops.sum(ops.where(same, 0.0, hinge), axis=1) / ((count - 1) * each)
        chosen = self._negatives(ops.stop_gradient(squared), same, ops.stop_gradient(near), dimensions)
        far = ops.take_along_axis(squared, chosen[:, None], axis=1)[:, 0]
        return ops.relu(self.margin + self._measure(near) - self._measure(far))

    def _measure(self, squared: Any) -> Any:
        return squared if self.distance == "squared" else safe_sqrt(squared)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "margin": self.margin,
            "distance": self.distance,
            "mining": self.mining,
            "seed": self.seed,
        }


def squared_distance(a: Any, b: Any) -> Any:
    """Squared Euclidean distance along the last axis: (..., D), (..., D) -> (...)."""
    return ops.sum(ops.square(a - b), axis=-1)


def squared_distances(a: Any, b: Any) -> Any:
    """Squared Euclidean distance of each to each: (A, D), (B, D) -> (A, B), never below 0."""
    squares = ops.sum(ops.square(a), axis=-1)[:, None] + ops.sum(ops.square(b), axis=-1)[None, :]
    return ops.maximum(squares - 2.0 * ops.matmul(a, ops.transpose(b)), 0.0)


def safe_sqrt(x: Any) -> Any:
    """Square root of x >= 0 whose gradient at 0 is 0 instead of infinite."""
    positive = x > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, x, 1.0)), 0.0)


def mean_distance_to_others(vectors: Any) -> Any:
    """The mean Euclidean distance of each vector to the other vectors: (B, D) -> (B,); 0 where there are none."""
    squared = squared_distances(vectors, vectors)
    count = ops.shape(vectors)[0]
    squared = squared * (1.0 - ops.eye(count, dtype=squared.dtype))  # rounding leaves the diagonal not quite 0
    others = ops.maximum(ops.cast(count, squared.dtype) - 1.0, 1.0)
    return ops.sum(safe_sqrt(squared), axis=-1) / others
