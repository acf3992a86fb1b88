"""Counts the arithmetic operations of a network."""

import math

import keras
from keras import layers


def multiply_adds(network: keras.Model) -> int:
    """Returns the number of multiply-adds of the convolutions and dense layers in a forward pass of one image.

    Everything else (normalization, activations, pooling) is left out, as usual: it moves memory and multiplies little.
    A training step takes about three times as many: the forward pass and the gradients of activations and weights.

    Args:
        network: A functional model.
    """
    return sum(_of_layer(layer) for layer in network.layers)


def _of_layer(layer: keras.Layer) -> int:
    if isinstance(layer, keras.Model):
        return multiply_adds(layer)
    if isinstance(layer, layers.Dense | layers.Conv2D | layers.DepthwiseConv2D):
        return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
    return 0
