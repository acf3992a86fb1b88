"""Euclidean distances between embeddings, with gradients that stay finite where two of them coincide."""

from typing import Any

from keras import ops


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
