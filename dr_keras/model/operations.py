"""Counts the arithmetic of a network."""

import math

import keras
from keras import layers


def multiply_adds(network: keras.Model) -> int:
    """The multiplications (with their additions) of the convolutions and matrices for one image, forward.

    All else (normalisation, activations, pooling) is left out, as is usual: it moves memory, and multiplies little. A
    training step takes about three times as many: forward, the gradient of the activations, that of the weights.
    """
    return sum(_of_layer(layer) for layer in network.layers)


def _of_layer(layer: keras.Layer) -> int:
    if isinstance(layer, keras.Model):
        return multiply_adds(layer)
    if isinstance(layer, layers.Dense | layers.Conv2D | layers.DepthwiseConv2D):
        return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
    return 0
