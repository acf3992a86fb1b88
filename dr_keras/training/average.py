"""The running average of the weights, which is kept instead of the last ones (Polyak and Juditsky 1992)."""

from typing import Any

import keras
import numpy as np

EVERY = 16  # steps between two updates; the decay is that of as many steps


class WeightAverage(keras.callbacks.Callback):
    """An exponential moving average of all weights of a network, its normalisation statistics among them.

    It is a function of the global step and of the weights alone, lives outside the model, and so goes on through
    phases, Ctrl-C and `--resume` (checkpoints hold it). Early on the decay is lower, so that the random weights of the
    start are soon forgotten.

    Args:
        decay: of one step.
        step: the next global step.
        values: the average so far; None before the first step.
    """

    def __init__(self, decay: float, step: int = 0, values: list[np.ndarray] | None = None) -> None:
        super().__init__()
        self.values = values
        self._decay, self._step = decay, step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        if self._step % EVERY and self.values is not None:
            return
        weights = [np.array(value) for value in _network(self.model).get_weights()]
        if self.values is None:
            self.values = weights
            return
        decay = min(self._decay, self._step / (self._step + 10 * EVERY)) ** EVERY
        for average, value in zip(self.values, weights, strict=True):
            if average.dtype.kind == "f":
                average += (1 - decay) * (value - average)
            else:
                average[...] = value  # a count or the state of a random number generator


def _network(model: keras.Model) -> keras.Model:
    return model.get_layer("embedding_network")
