"""Rounds the weights of a network to half precision, such that no runtime has to round them once more."""

import keras
import numpy as np
from keras import layers

from dr_keras.number_files import to_half


def round_weights(network: keras.Model) -> None:
    """Rounds the weights of a network to half precision, in place.

    Converters fold a batch normalization into the convolution before it, as the kernel K f and the bias b - m f, where
    f = g / sqrt(v + epsilon), and store both in half precision. For these to need no rounding, each channel of the
    kernel is scaled until f is a power of two, and the moving mean m is shifted until the bias has half precision; v
    and m themselves stay in float32. Because the normalization undoes the scale, the network computes the same, also
    if it is trained further.

    Args:
        network: Any network; its other weights are rounded as they are.
    """
    kept = set()  # the moving means and variances that stay in float32
    for layer in network._flatten_layers():
        if isinstance(layer, layers.BatchNormalization) and layer.scale and layer.center:
            convolution = _folds_into(layer)
            if convolution is not None:
                _round_pair(convolution, layer)
                kept |= {id(layer.moving_mean), id(layer.moving_variance)}
    for weight in network.weights:
        value = keras.ops.convert_to_numpy(weight)
        if value.dtype.kind == "f" and id(weight) not in kept:
            weight.assign(to_half(value))


def _folds_into(normalization: layers.BatchNormalization) -> layers.Conv2D | None:
    """The convolution whose output is normalized, if that is all that becomes of it and it adds no bias."""
    if len(normalization._inbound_nodes) != 1:  # a part of another layer, or used more than once
        return None
    layer = normalization.input._keras_history.operation
    if not isinstance(layer, layers.Conv2D) or layer.use_bias or layer.activation is not keras.activations.linear:
        return None
    alone = all(node.operation is normalization for node in layer._outbound_nodes)
    return layer if alone and layer.data_format == "channels_last" else None


def _round_pair(convolution: layers.Conv2D, normalization: layers.BatchNormalization) -> None:
    """Rounds a convolution and its normalization together; channels with a scale of zero stay as they are."""
    weights = [np.asarray(weight, np.float64) for weight in normalization.get_weights()]
    gamma, beta, mean, variance = weights
    factor = np.abs(gamma) / np.sqrt(variance + normalization.epsilon)
    rounded_gamma, rounded_beta = to_half(gamma).astype(np.float64), to_half(beta).astype(np.float64)
    used = (factor > 0) & (rounded_gamma != 0)
    # Not above the factor, so that no variance becomes negative; a factor that is a power of two already stays one.
    power = np.exp2(np.floor(np.log2(np.where(used, factor, 1)) + 1e-6))
    scale = np.where(used, factor / power, 1)
    new_variance = np.where(used, np.square(rounded_gamma / power) - normalization.epsilon, variance)
    signed = np.where(gamma < 0, -power, power)
    bias = to_half(beta - mean * scale * signed).astype(np.float64)
    new_mean = np.where(used, (rounded_beta - bias) / signed, mean)
    convolution.kernel.assign(to_half(keras.ops.convert_to_numpy(convolution.kernel) * scale.astype(np.float32)))
    normalization.set_weights([rounded_gamma, rounded_beta, new_mean, np.maximum(new_variance, 0)])
