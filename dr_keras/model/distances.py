"""Euclidean distances between embeddings, with gradients that stay finite where two of them coincide."""

from typing import Any

from keras import ops


def squared_distance(a: Any, b: Any) -> Any:
    """Returns the squared Euclidean distance along the last axis: (..., D), (..., D) -> (...)."""
    return ops.sum(ops.square(a - b), axis=-1)


def squared_distances(a: Any, b: Any) -> Any:
    """Returns all pairwise squared Euclidean distances: (A, D), (B, D) -> (A, B), never below 0."""
    squares = ops.sum(ops.square(a), axis=-1)[:, None] + ops.sum(ops.square(b), axis=-1)[None, :]
    return ops.maximum(squares - 2.0 * ops.matmul(a, ops.transpose(b)), 0.0)


def safe_sqrt(x: Any) -> Any:
    """Returns the square root of x >= 0, with gradient 0 instead of infinity at 0."""
    positive = x > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, x, 1.0)), 0.0)


def mean_distance_to_others(vectors: Any) -> Any:
    """Returns the mean Euclidean distance of each vector to all others: (B, D) -> (B,); 0 for a single vector."""
    squared = squared_distances(vectors, vectors)
    count = ops.shape(vectors)[0]
    squared = squared * (1.0 - ops.eye(count, dtype=squared.dtype))  # rounding leaves the diagonal not quite 0
    others = ops.maximum(ops.cast(count, squared.dtype) - 1.0, 1.0)
    return ops.sum(safe_sqrt(squared), axis=-1) / others
