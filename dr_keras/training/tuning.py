"""What is trained of a network that starts from others' weights, and how fast: freezing, rates by depth, LoRA."""

from typing import Any

import keras
import numpy as np

from dr_keras.config import OptimizerConfig
from dr_keras.errors import InputError
from dr_keras.model.blocks import Blocks, backbone_blocks

# Learned vectors that are used only in pretraining; without a gradient, they would cause a warning in every step.
UNUSED = ("mask_token",)


def prepare(network: keras.Model, config: OptimizerConfig) -> None:
    """Makes only those weights of an embedding network trainable that `config` asks for; adds LoRA's, if it does.

    Frozen batch normalization uses its running statistics.

    Args:
        network: From `dr_keras.model.network.embedding_network`. It is changed.
        config: The settings `freeze` and `lora`.

    Raises:
        InputError: The network has not as many blocks, nothing is left to train, or it has no layer that accepts LoRA.
    """
    blocks = backbone_blocks(network)
    for layer in blocks.all:
        for variable in layer.weights:
            if variable.name in UNUSED:
                variable.trainable = False
    frozen = _frozen(blocks, config.freeze)
    for layer in frozen:
        layer.trainable = False
    if config.lora:
        _add_lora([layer for layer in blocks.all if layer not in frozen], config.lora)
    if not network.trainable_variables:
        raise InputError(f"--freeze {config.freeze} leaves nothing to train; add a linear layer by --embedding-dim 256")


def _frozen(blocks: Blocks, freeze: str) -> list[keras.layers.Layer]:
    if freeze == "none":
        return []
    if freeze == "all":
        return blocks.all
    count = int(freeze)
    if count > len(blocks.blocks):
        raise InputError(f"--freeze is {count}; the network has {len(blocks.blocks)} blocks")
    return [*blocks.stem, *(layer for block in blocks.blocks[:count] for layer in block)]


def _add_lora(layers: list[keras.layers.Layer], rank: int) -> None:
    """Freezes layers, and adds a product of two matrices of the given rank to their kernels (Hu et al. 2022)."""
    parts = [part for layer in layers for part in layer._flatten_layers()]
    if any(getattr(part, "lora_enabled", False) for part in parts):
        return  # in an earlier phase
    able = [part for part in parts if hasattr(part, "enable_lora") and getattr(part, "kernel", None) is not None]
    if not able:
        raise InputError("--lora needs Dense, EinsumDense or Conv2D layers in the blocks that are not frozen")
    for layer in layers:
        for variable in layer.trainable_variables:
            variable.trainable = False
        for part in layer._flatten_layers():
            if isinstance(part, keras.layers.BatchNormalization):
                part.trainable = False
    for part in able:
        part.enable_lora(rank)


def plain_weights(network: keras.Model) -> list[np.ndarray]:
    """Returns what `get_weights` returns for the same network without LoRA, whose kernels include LoRA's products."""
    merged: dict[int, Any] = {}
    added: set[int] = set()
    for layer in network._flatten_layers():
        if getattr(layer, "lora_enabled", False):
            merged[id(layer._kernel)] = layer.kernel
            added |= {id(layer.lora_kernel_a), id(layer.lora_kernel_b)}
    return [
        keras.ops.convert_to_numpy(merged.get(id(variable), variable))
        for variable in network.weights
        if id(variable) not in added
    ]


def rate_factors(network: keras.Model, rate: float, decay: float) -> dict[int, float]:
    """Returns by how much the learning rate of each weight of the backbone is multiplied, by the id of its variable.

    It is `rate` times `decay` to a power: 0 for the layers after the last block, 1 for the last block, 2 for the one
    before, and so on to the stem (Bao et al. 2022, sec. A). All other layers of the network keep the learning rate.

    Args:
        network: From `dr_keras.model.network.embedding_network`.
        rate: In (0, 1].
        decay: In (0, 1].
    """
    parts = backbone_blocks(network)
    groups = [parts.tail, *reversed(parts.blocks), parts.stem]
    return {
        id(variable): rate * decay**depth
        for depth, group in enumerate(groups)
        for layer in group
        for variable in layer.weights
    }


class RatesByLayer:
    """Mixed into an optimizer: the rate of each variable, in its update and its weight decay, has a factor.

    Attributes:
        factors: By the id of a variable; 1 for all others.
    """

    factors: dict[int, float]
    _scales: list[float]
    _decayed: list[bool]

    def build(self, variables: Any) -> None:
        super().build(variables)  # type: ignore[misc]
        self._scales = [self.factors.get(id(variable), 1.0) for variable in variables]
        self._decayed = [self._use_weight_decay(variable) for variable in variables]  # type: ignore[attr-defined]

    def _apply_weight_decay(self, _variables: Any) -> None:
        """Done in `update_step`, which knows the rate of the variable."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        number = self._get_variable_index(variable)  # type: ignore[attr-defined]
        rate = learning_rate * self._scales[number]
        weight_decay = self.weight_decay  # type: ignore[attr-defined]
        if weight_decay and self._decayed[number]:
            share = keras.ops.cast(rate * weight_decay, variable.dtype)
            self.assign_sub(variable, keras.ops.multiply(variable, share))  # type: ignore[attr-defined]
        super().update_step(gradient, variable, rate)  # type: ignore[misc]
