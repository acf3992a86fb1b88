"""The general head (`dr_keras.heads`) in Keras: the features that it is fitted on, and its layers in a network."""

import keras
from keras import layers

from dr_keras.backend import keras_defaults
from dr_keras.heads import GENERAL, LOW_RESOLUTION_WEIGHT, TRAINED, GeneralHead
from dr_keras.model.normalization import L2Normalization

TRAINED_LAYER = "embedding"


@keras_defaults()
def feature_network(network: keras.Model) -> keras.Model:
    """Returns the part of an embedding network that the general head starts from.

    Args:
        network: From `dr_keras.model.network.embedding_network`.

    Returns:
        (B, H, W, 3) uint8 -> (B, F): the embedding, the features of the ConvNet path and, if there are any, those of
        the low-resolution paths, each of unit length; the last are halved. Without a linear embedding, the features
        of the network.
    """
    return keras.Model(network.input, _features(network), name="features")


@keras_defaults()
def with_general_head(network: keras.Model, head: GeneralHead, *, alone: bool = False) -> keras.Model:
    """Puts a general head on an embedding network.

    Args:
        network: From `dr_keras.model.network.embedding_network`.
        head: The head.
        alone: Whether the general vectors are the only output.

    Returns:
        (B, H, W, 3) uint8 -> the general vectors (B, G), or a dict of those, `general`, and the embedding, `trained`.
    """
    projection = layers.Dense(head.dim, name="general_projection")
    vectors = projection(_features(network))
    projection.set_weights([head.matrix, -head.mean @ head.matrix])
    vectors = L2Normalization(dtype="float32", name=GENERAL)(vectors)
    return keras.Model(network.input, vectors if alone else {TRAINED: network.output, GENERAL: vectors})


def _features(network: keras.Model) -> keras.KerasTensor:
    """The embedding if it is a linear layer's, and what that starts from, each path of unit length times its weight."""
    names = {layer.name for layer in network.layers}
    if "linear_embedding" not in names:
        return network.get_layer("embedding").output
    parts = [network.get_layer(TRAINED_LAYER).output, network.get_layer("convnet_normalised").output]
    if "low_resolution_normalised" in names:
        low = network.get_layer("low_resolution_normalised").output
        parts.append(layers.Rescaling(LOW_RESOLUTION_WEIGHT, name="low_resolution_weight")(low))
    return layers.Concatenate(dtype="float32", name="general_features")(parts)
