"""The maps of a network whose features are the mean of a map, from which `dr_keras.cells` explains its embeddings."""

from collections.abc import Callable

import keras
import numpy as np

from dr_keras.backend import keras_defaults
from dr_keras.cells import CONVNET, PATH_A, PATH_B, Maps, Projection

NAMES = {PATH_A: "a_pool", PATH_B: "b_pool"}


@keras_defaults()
def map_tensors(network: keras.Model) -> dict[str, keras.KerasTensor] | None:
    """Returns the maps of an embedding network.

    Args:
        network: From `dr_keras.model.network.embedding_network`.

    Returns:
        By name (`dr_keras.cells.MAPS`), tensors (B, h, w, C) of the graph of `network`; None if its features are not
        the mean of a map.
    """
    pool = network.get_layer("convnet_normalised").input._keras_history.operation
    if isinstance(pool, keras.Model):  # of keras.applications
        inner, pool = pool, pool.layers[-1]
        if not isinstance(pool, keras.layers.GlobalAveragePooling2D):
            return None
        # The same layers once more; converters merge what is computed twice.
        tensor = keras.Model(inner.input, pool.input)(network.get_layer("preprocessing").output)
    elif isinstance(pool, keras.layers.GlobalAveragePooling2D):
        tensor = pool.input
    else:
        return None
    maps = {CONVNET: tensor}
    names = {layer.name for layer in network.layers}
    return maps | {name: network.get_layer(layer).output for name, layer in NAMES.items() if layer in names}


@keras_defaults()
def map_network(network: keras.Model) -> Callable[[np.ndarray], list[Maps]] | None:
    """Returns what makes maps of images (N, H, W, 3) uint8; None where `map_tensors` is.

    Args:
        network: From `dr_keras.model.network.embedding_network`.
    """
    tensors = map_tensors(network)
    if tensors is None:
        return None
    mapped = keras.Model(network.input, tensors)

    def maps(images: np.ndarray) -> list[Maps]:
        found = mapped.predict_on_batch(images)
        return [{name: np.asarray(values[row]) for name, values in found.items()} for row in range(len(images))]

    return maps


def projection_of(network: keras.Model) -> Projection:
    """Returns the linear layer of an embedding network, if it has one."""
    if "linear_embedding" not in {layer.name for layer in network.layers}:
        return Projection()
    kernel, bias = network.get_layer("linear_embedding").get_weights()
    return Projection(kernel, bias)
