"""The running average of the weights, which is kept instead of the last ones (Polyak and Juditsky 1992)."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

EVERY = 16  # steps between two updates; the decay is that of as many steps


class WeightAverage(keras.callbacks.Callback):
    """An exponential moving average of all weights of a network, its normalisation statistics among them.

    It is a function of the global step and of the weights alone, lives outside the model, and so goes on through
    phases, Ctrl-C and `--resume` (checkpoints hold it). Early on the decay is lower, so that the random weights of the
    start are soon forgotten. On JAX it stays on the device, and no step waits for it.

    Args:
        decay: of one step.
        step: the next global step.
        values: the average so far, NumPy's or JAX's arrays; None before the first step.
    """

    def __init__(self, decay: float, step: int = 0, values: list[Any] | None = None) -> None:
        super().__init__()
        self.values = values
        self._decay, self._step = decay, step
        self._blend: Callable[..., list[Any]] = _blended_on_device() if keras.backend.backend() == "jax" else _blended

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        if self._step % EVERY and self.values is not None:
            return
        network = self.model.get_layer("embedding_network")
        decay = min(self._decay, self._step / (self._step + 10 * EVERY)) ** EVERY if self.values else 0.0
        weights = [variable.value for variable in network.weights]
        self.values = self._blend(self.values or weights, weights, decay)


def _blended(averages: list[Any], weights: list[Any], decay: float) -> list[np.ndarray]:
    """The weights, their averages mixed in by `decay` where they are real numbers (not counts or random states)."""
    values = [np.array(keras.ops.convert_to_numpy(weight)) for weight in weights]
    return [
        average + (1 - decay) * (value - average) if decay and value.dtype.kind == "f" else value
        for average, value in zip(averages, values, strict=True)
    ]


def _blended_on_device() -> Callable[..., list[Any]]:
    """`_blended` for arrays of JAX. What it returns is never what it was given, which the next step writes over."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def blended(averages: list[Any], weights: list[Any], decay: float) -> list[Any]:
        return [
            average + (1 - decay) * (value - average) if jnp.issubdtype(value.dtype, jnp.floating) else jnp.copy(value)
            for average, value in zip(averages, weights, strict=True)
        ]

    return blended
