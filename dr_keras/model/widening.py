"""A ResNet that starts with what a narrower one has learned (Net2WiderNet: Chen et al. 2016, sec. 3.2)."""

import keras
import numpy as np

SMALLEST_PART = 0.25  # of a channel's weight, for each of two copies


def widened_weights(narrow: keras.Model, wide: keras.Model, seed: int) -> list[np.ndarray]:
    """Returns weights for `wide` with which it computes the same features as `narrow`, and almost the same embedding.

    Each additional channel is a copy of one that the narrow network has, and the weights that it is read with are
    divided at random between the copies, which lets them learn different things. The length of the pooled features, by
    which they are divided before the linear layer, depends on which channels are copied, unless all are copied equally
    often. Without a linear layer, the embedding itself has more values.

    Args:
        narrow: An embedding network.
        wide: One with the same layers, of which each has at least as many channels.
        seed: Of the choice of the channels and of the division.

    Returns:
        In the order of `wide.weights`.

    Raises:
        ValueError: A layer of `wide` has fewer channels, or the layers are others.

    Example:
        >>> from dr_keras.config import NetworkConfig
        >>> from dr_keras.model.network import embedding_network
        >>> small = embedding_network(NetworkConfig(image_size=32, backbone="resnet10", width=4))
        >>> large = embedding_network(NetworkConfig(image_size=32, backbone="resnet10", width=6))
        >>> large.set_weights(widened_weights(small, large, seed=0))
    """
    before = {weight.path: keras.ops.convert_to_numpy(weight) for weight in narrow.weights}
    if set(before) != {weight.path for weight in wide.weights}:
        raise ValueError("the networks have different layers")
    random = np.random.default_rng(seed)
    copies: dict[tuple[int, int], np.ndarray] = {}

    def sources(old: int, new: int) -> np.ndarray:
        """The channel that each of `new` channels is a copy of: one choice for all layers that are added up."""
        if new < old:
            raise ValueError(f"{new} channels are fewer than {old}")
        if (old, new) not in copies:
            added = [random.permutation(old) for _ in range(-(-new // old) - 1)]
            copies[old, new] = np.concatenate([np.arange(old), *added])[:new]
        return copies[old, new]

    def divided(kernel: np.ndarray, axis: int, old: int, new: int) -> np.ndarray:
        """The kernel along its input axis: that of `old` channels, divided between the copies of each."""
        chosen = sources(old, new)
        parts = random.uniform(SMALLEST_PART, 1 - SMALLEST_PART, new)
        parts /= np.bincount(chosen, parts, old)[chosen]
        return np.take(kernel, chosen, axis) * np.expand_dims(parts, tuple(range(1, kernel.ndim - axis)))

    result = []
    for weight in wide.weights:
        value, shape = before[weight.path], weight.shape
        value = np.take(value, sources(value.shape[-1], shape[-1]), -1)
        if len(shape) == 4 and value.shape[2] != shape[2]:
            value = divided(value, 2, value.shape[2], shape[2])
        elif len(shape) == 2 and value.shape[0] != shape[0]:
            # The features of the ConvNet path come first, then those of the low-resolution paths, which stay.
            old, new = (network.get_layer("pool").output.shape[-1] for network in (narrow, wide))
            longer = np.sqrt(new / old)  # before they are normalized
            value = np.concatenate([divided(value[:old], 0, old, new) * longer, value[old:]])
        result.append(value.astype(np.float32))
    return result
