"""The ranking layer: distances inside each triplet, the hinge on them, and the statistics that say how it goes."""

from typing import Any

import keras
from keras import ops

from dr_keras.config import DISTANCES
from dr_keras.errors import InputError


@keras.saving.register_keras_serializable(package="dr_keras")
class TripletRanking(keras.layers.Layer):
    """Triplet ranking loss over the embeddings of three branches (Wang et al. 2014, eq. 3).

    For each triplet the loss is `max(0, g + D(q, p+) - D(q, p-))`; the layer adds its mean over the batch to the
    model's losses. The hinge is applied to each triplet, not to the mean. All of it is computed in float32.

    Args:
        margin: the gap `g`, above 0.
        distance: 'squared', `D = ||q - p||^2` (the paper's eq. 1), or 'euclidean', `D = ||q - p||` (the assignment).

    Call arguments:
        embeddings: (B, 3D), query, positive and negative side by side.

    Returns:
        A dict of (B,) statistics: `loss`, `positive_distance`, `negative_distance` (in the chosen distance), and
        `pairwise_distance`, the mean Euclidean distance of a query to the other queries of the batch. That last one
        falls towards 0 when the embedding collapses.

    Raises:
        InputError: `margin` is not above 0, `distance` is unknown, or the last axis is no multiple of 3.

    Example:
        >>> layer = TripletRanking(margin=1.0)
        >>> statistics = layer(keras.ops.ones((8, 3 * 256)))
        >>> float(layer.losses[0])  # all distances are 0
        1.0
    """

    def __init__(self, margin: float = 1.0, distance: str = "squared", **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        if not margin > 0:
            raise InputError(f"margin is {margin}; the gap of the triplet loss must be above 0, 1.0 for example")
        if distance not in DISTANCES:
            raise InputError(f"distance is {distance!r}; choose one of {', '.join(DISTANCES)}")
        self.margin = float(margin)
        self.distance = distance

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if input_shape[-1] is None or input_shape[-1] % 3:
            raise InputError(f"the ranking layer got {input_shape}; it takes (B, 3D), three embeddings side by side")
        self.built = True

    def call(self, embeddings: Any) -> dict[str, Any]:
        query, positive, negative = ops.split(embeddings, 3, axis=-1)  # 3 x (B, D)
        near = self._measure(squared_distance(query, positive))  # (B,)
        far = self._measure(squared_distance(query, negative))  # (B,)
        loss = ops.relu(self.margin + near - far)
        self.add_loss(ops.mean(loss))
        return {
            "loss": loss,
            "positive_distance": near,
            "negative_distance": far,
            "pairwise_distance": mean_distance_to_others(ops.stop_gradient(query)),
        }

    def _measure(self, squared: Any) -> Any:
        return squared if self.distance == "squared" else safe_sqrt(squared)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"margin": self.margin, "distance": self.distance}


def squared_distance(a: Any, b: Any) -> Any:
    """Squared Euclidean distance along the last axis: (..., D), (..., D) -> (...)."""
    return ops.sum(ops.square(a - b), axis=-1)


def safe_sqrt(x: Any) -> Any:
    """Square root of x >= 0 whose gradient at 0 is 0 instead of infinite."""
    positive = x > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, x, 1.0)), 0.0)


def mean_distance_to_others(vectors: Any) -> Any:
    """The mean Euclidean distance of each vector to the other vectors: (B, D) -> (B,); 0 where there are none."""
    squares = ops.sum(ops.square(vectors), axis=-1)  # (B,)
    products = ops.matmul(vectors, ops.transpose(vectors))  # (B, B)
    squared = ops.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    count = ops.shape(vectors)[0]
    squared = squared * (1.0 - ops.eye(count, dtype=squared.dtype))  # rounding leaves the diagonal not quite 0
    others = ops.maximum(ops.cast(count, squared.dtype) - 1.0, 1.0)
    return ops.sum(safe_sqrt(squared), axis=-1) / others
