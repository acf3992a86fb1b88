"""The ranking layer: distances inside each triplet, the hinge (Wang et al. 2014, eq. 3), and statistics of both."""

from typing import Any

import keras
from keras import ops

from dr_keras.config import DISTANCES, MININGS
from dr_keras.errors import InputError
from dr_keras.model.distances import mean_distance_to_others, safe_sqrt, squared_distance, squared_distances
from dr_keras.model.mining import NEVER, miner_of


@keras.saving.register_keras_serializable(package="dr_keras")
class TripletRanking(keras.layers.Layer):
    """Triplet ranking loss over the embeddings of three branches (Wang et al. 2014, eq. 3).

    For each triplet the loss is `max(0, g + D(q, p+) - D(q, p-))`; the layer adds its mean over the batch to the
    model's losses. The hinge is applied to each triplet, not to the mean. All of it is computed in float32.

    Mining (`dr_keras.model.mining`) replaces the negatives that were drawn, and in one case the positives, by others of
    the 3B embeddings of the batch. Triplets whose negative is of the query's class are kept as they were drawn.

    Class proxies, if given, are additional positives and negatives (Movshovitz-Attias et al. 2017): each of the 3B
    embeddings is a query whose positive is the nearest proxy of its class and whose negative is a proxy of another
    class, chosen by the same rule. Without mining the hinge is averaged over all proxies of other classes.

    Args:
        margin: The gap `g`, above 0.
        distance: "squared", `D = ||q - p||^2` (the paper's eq. 1), or "euclidean", `D = ||q - p||` (the assignment).
        mining: "none", "semi-hard", "hard" or "distance-weighted".
        seed: Seed of the draws of "distance-weighted".

    Call arguments:
        embeddings: (B, 3D), query, positive and negative side by side.
        classes: (B, 2) integers, the query's class and the negative's; only mining and proxies need them.
        proxies: (C, N, D), N vectors of unit length for each class.
        weights: (B,), by which the losses of the triplets are multiplied; 1 by default.

    Returns:
        A dict of (B,) statistics: `loss`, `positive_distance`, `negative_distance` (in the chosen distance, of the
        triplets after mining), and `pairwise_distance`, the mean Euclidean distance of a query to the other queries of
        the batch, which falls toward 0 when the embedding collapses. With proxies also `proxy_loss`, the mean over the
        three embeddings of each triplet; its mean over the batch is added to the model's losses too.

    Raises:
        InputError: `margin` is not above 0, `distance` or `mining` is unknown, the last axis is not a multiple of 3, or
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
        # Owned by the layer, so that it is part of the layer's state.
        self._random = keras.random.SeedGenerator(seed) if mining == "distance-weighted" else None
        self._miner = miner_of(mining, self._random)

    def build(self, input_shape: tuple[int | None, ...], *_shapes: Any, **_more: Any) -> None:
        if input_shape[-1] is None or input_shape[-1] % 3:
            raise InputError(f"the ranking layer got {input_shape}; it expects (B, 3D), three embeddings side by side")
        self.built = True

    def call(self, embeddings: Any, classes: Any = None, proxies: Any = None, weights: Any = None) -> dict[str, Any]:
        query, positive, negative = ops.split(embeddings, 3, axis=-1)  # 3 x (B, D)
        statistics = {}
        if self._miner or proxies is not None:
            if classes is None:
                raise InputError(
                    "mining and proxies need the classes of the triplets: call the layer with classes=(B, 2)"
                )
            everything = ops.concatenate([query, positive, negative], axis=0)  # (3B, D)
            labels = ops.concatenate([classes[:, 0], classes[:, 0], classes[:, 1]], axis=0)  # (3B,)
            if proxies is not None:
                hinge = self._proxy_hinge(everything, labels, proxies)  # (3B,)
                statistics["proxy_loss"] = ops.mean(ops.reshape(hinge, (3, -1)), axis=0)
                self.add_loss(ops.mean(hinge))
            if self._miner:
                positive, negative = self._mined(query, positive, negative, everything, labels, classes)
        near = self._measure(squared_distance(query, positive))  # (B,)
        far = self._measure(squared_distance(query, negative))  # (B,)
        loss = ops.relu(self.margin + near - far)
        if weights is not None:
            loss = loss * ops.cast(weights, loss.dtype)
        self.add_loss(ops.mean(loss))
        return statistics | {
            "loss": loss,
            "positive_distance": near,
            "negative_distance": far,
            "pairwise_distance": mean_distance_to_others(ops.stop_gradient(query)),
        }

    def _mined(self, query: Any, positive: Any, negative: Any, everything: Any, labels: Any, classes: Any) -> Any:
        """The positives and negatives after mining; a triplet within a class, which labels cannot order, is kept."""
        assert self._miner
        mined = self._miner.mine(query, positive, everything, labels)
        inside = classes[:, :1] == classes[:, 1:]  # (B, 1)
        return ops.where(inside, positive, mined[0]), ops.where(inside, negative, mined[1])

    def _proxy_hinge(self, embeddings: Any, labels: Any, proxies: Any) -> Any:
        """(M, D), (M,), (C, N, D) -> (M,): the hinge of each embedding against the proxies."""
        count, each, dimensions = proxies.shape
        vectors = ops.reshape(proxies, (count * each, dimensions))
        owners = ops.repeat(ops.arange(count, dtype="int32"), each)  # (CN,)
        same = ops.cast(labels, "int32")[:, None] == owners[None, :]  # (M, CN)
        squared = squared_distances(embeddings, vectors)
        near = ops.min(ops.where(same, squared, NEVER), axis=1)
        if not self._miner:
            hinge = ops.relu(self.margin + self._measure(near)[:, None] - self._measure(squared))
            return ops.sum(ops.where(same, 0.0, hinge), axis=1) / ((count - 1) * each)
        chosen = self._miner.negatives(ops.stop_gradient(squared), same, ops.stop_gradient(near), dimensions)
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
