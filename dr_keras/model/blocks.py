"""The blocks of a backbone, in order: what `--freeze` and `--layer-decay` count."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import keras

# Layers of the embedding network that belong to no backbone.
OWN_LAYERS = ("a_", "b_", "path_", "low_resolution", "features", "linear_embedding", "embedding")


@dataclass(frozen=True)
class Blocks:
    """The layers of a backbone that have weights, from the image on.

    Attributes:
        stem: Those before the first block.
        blocks: Of a transformer, its blocks; of a ConvNet, its stages, between which the resolution falls.
        tail: Those after the last block.
    """

    stem: list[keras.layers.Layer]
    blocks: list[list[keras.layers.Layer]]
    tail: list[keras.layers.Layer]

    @property
    def all(self) -> list[keras.layers.Layer]:
        """All layers, in order."""
        return [*self.stem, *(layer for block in self.blocks for layer in block), *self.tail]


def backbone_blocks(network: keras.Model) -> Blocks:
    """Returns the blocks of the backbone in an embedding network.

    Args:
        network: From `dr_keras.model.network.embedding_network`.

    Example:
        >>> from dr_keras.config import NetworkConfig
        >>> from dr_keras.model.network import embedding_network
        >>> network = embedding_network(NetworkConfig(image_size=32, backbone="resnet10", width=8))
        >>> len(backbone_blocks(network).blocks)  # at 32, 16, 8 and 4 px
        4
    """
    nested = [layer for layer in network.layers if isinstance(layer, keras.Model)]
    layers = nested or [layer for layer in network.layers if not layer.name.startswith(OWN_LAYERS)]
    units = [unit for layer in layers for unit in _units(layer)]
    kinds = Counter(type(unit) for unit in units if _children(unit))
    repeated = [number for number, unit in enumerate(units) if kinds[type(unit)] > 1]
    if repeated:  # a transformer
        first, last = repeated[0], repeated[-1]
        starts = [*repeated, last + 1]
        blocks = [units[start:end] for start, end in itertools.pairwise(starts)]
        return Blocks(units[:first], blocks, units[last + 1 :])
    stages: dict[int, list[keras.layers.Layer]] = {}
    for unit in units:
        stages.setdefault(_side(unit, stages), []).append(unit)
    return Blocks([], list(stages.values()), [])


def _units(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yields the layers with weights, in order; a block of a transformer is one."""
    if not layer.weights:
        return
    children = _children(layer)
    composed = Counter(type(child) for child in children if _children(child))
    if isinstance(layer, keras.Model) or any(count > 1 for count in composed.values()):
        for child in children:
            yield from _units(child)
    else:
        yield layer


def _children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    if isinstance(layer, keras.Model):
        return [child for child in layer.layers if child.weights]
    return [child for child in layer._flatten_layers(include_self=False, recursive=False) if child.weights]


def _side(unit: keras.layers.Layer, stages: dict[int, list[keras.layers.Layer]]) -> int:
    """The number of pixels per side of a layer's output; that of the layer before if the output is no image."""
    shape = unit.output.shape
    return shape[1] if len(shape) == 4 else next(reversed(stages), 0)
