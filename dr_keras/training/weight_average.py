"""The running average of the weights, kept instead of the last weights (Polyak and Juditsky 1992)."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

UPDATE_STEPS = 16  # steps between two updates, each of which applies the decay of that many steps


class WeightAverage(keras.callbacks.Callback):
    """An exponential moving average of all weights of a network, including its normalization statistics.

    It depends only on the global step and the weights, and lives outside the model, so it continues across phases,
    Ctrl-C and `--resume` (checkpoints hold it). Early on the decay is lower, so that the random initial weights are
    soon forgotten. On JAX it stays on the device, and no step waits for it.

    Args:
        decay: Decay per step.
        step: The next global step.
        values: The average so far, as arrays of NumPy or JAX; None before the first step.
    """

    def __init__(self, decay: float, step: int = 0, values: list[Any] | None = None) -> None:
        super().__init__()
        self.values = values
        self._decay, self._step = decay, step
        self._blend: Callable[..., list[Any]] = _blended_on_device() if keras.backend.backend() == "jax" else _blended

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        if self._step % UPDATE_STEPS and self.values is not None:
            return
        network = self.model.get_layer("embedding_network")
        decay = min(self._decay, self._step / (self._step + 10 * UPDATE_STEPS)) ** UPDATE_STEPS if self.values else 0.0
        weights = [variable.value for variable in network.weights]
        self.values = self._blend(self.values or weights, weights, decay)


def _blended(averages: list[Any], weights: list[Any], decay: float) -> list[np.ndarray]:
    """Updates the averages of floating-point weights; counters and random states are copied."""
    values = [np.array(keras.ops.convert_to_numpy(weight)) for weight in weights]
    return [
        average + (1 - decay) * (value - average) if decay and value.dtype.kind == "f" else value
        for average, value in zip(averages, values, strict=True)
    ]


def _blended_on_device() -> Callable[..., list[Any]]:
    """Returns `_blended` for JAX. It never returns the arrays it was given, because the next step overwrites them."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def blended(averages: list[Any], weights: list[Any], decay: float) -> list[Any]:
        return [
            average + (1 - decay) * (value - average) if jnp.issubdtype(value.dtype, jnp.floating) else jnp.copy(value)
            for average, value in zip(averages, weights, strict=True)
        ]

    return blended
