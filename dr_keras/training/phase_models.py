"""The models of a run's phases: what each phase trains, and what it passes on to the next."""

from contextlib import nullcontext
from dataclasses import dataclass

import keras
import numpy as np

from dr_keras.config import NetworkConfig, OptimizerConfig, RankingConfig
from dr_keras.model.network import embedding_network
from dr_keras.training.compile import compiled_model, precision, training_precision
from dr_keras.training.devices import on_one_device
from dr_keras.training.phases import Phase
from dr_keras.training.tuning import plain_weights, prepare


@dataclass(frozen=True)
class PhaseModels:
    """Builds the compiled models of a run's phases.

    Attributes:
        network: Settings of the embedding network.
        ranking: Settings of the losses.
        optimizer: Settings of the optimizer.
        classes: Number of classes.
        steps: Number of steps of the whole run.
        weighted: Whether the losses of triplets are weighted.
    """

    network: NetworkConfig
    ranking: RankingConfig
    optimizer: OptimizerConfig
    classes: int
    steps: int
    weighted: bool = False

    def first(self, phase: Phase, network: keras.Model) -> keras.Model:
        """Returns the compiled model of a phase that starts with the weights of `network`.

        Args:
            phase: The phase.
            network: The embedding network for images of the full size. If the phase has that size, it becomes part of
                the model; otherwise its weights are copied.
        """
        if phase.size != self.network.image_size:
            with training_precision(self.optimizer):
                smaller = embedding_network(self.network, size=phase.size, weights=False)
            smaller.set_weights(network.get_weights())
            network = smaller
        prepare(network, self.optimizer)
        return compiled_model(
            network,
            ranking=self.ranking,
            optimizer=self.optimizer,
            steps=self.steps,
            classes=self.classes,
            stage=phase.stage,
            weighted=self.weighted,
        )

    def following(self, phase: Phase, before: keras.Model, network: keras.Model, step: int) -> keras.Model:
        """Returns the compiled model of a later phase, with all the state of the previous one that still fits.

        Args:
            phase: The phase that begins.
            before: The model of the phase that has ended.
            network: The embedding network for images of the full size; it gets the weights of `before`.
            step: The global step.
        """
        network.set_weights(embedding_branch(before).get_weights())
        model = self.first(phase, network)
        names = {layer.name for layer in model.layers}
        if "proxies" in names and any(layer.name == "proxies" for layer in before.layers):
            model.get_layer("proxies").set_weights(before.get_layer("proxies").get_weights())
        state = {variable.path: variable for variable in before.optimizer.variables}
        for variable in model.optimizer.variables:
            if variable.path in state and variable.shape == state[variable.path].shape:
                variable.assign(state[variable.path])
        model.optimizer.iterations.assign(step)
        return model


class KeptNetworks:
    """Makes the network that a run keeps: with averaged weights, in the requested precision, on one device.

    A network that is distributed over devices runs only if all hosts call it, each with its part of a batch.

    Args:
        network: Settings of the embedding network.
        optimizer: Settings of the optimizer, including the precision of the training.
    """

    def __init__(self, network: NetworkConfig, optimizer: OptimizerConfig) -> None:
        self._network, self._optimizer = network, optimizer
        self._copies: dict[tuple[int, bool], keras.Model] = {}

    def network(
        self,
        trained: keras.Model,
        weights: list[np.ndarray] | None,
        *,
        size: int | None = None,
        float32: bool = False,
    ) -> keras.Model:
        """Returns `trained` itself if it already fits the request, otherwise a copy.

        Args:
            trained: The network that is trained.
            weights: Weights for the copy; those of `trained` by default.
            size: Side of the images in pixels; that of the finished network by default.
            float32: Whether to compute in float32 rather than in the precision of the training.
        """
        size = size or self._network.image_size
        trained_in_float32 = precision(self._optimizer) == "float32"
        float32 = float32 or trained_in_float32
        spread = keras.distribution.distribution() is not None
        same = trained.input_shape[1] == size and (not float32 or trained_in_float32) and not self._optimizer.lora
        if same and weights is None and not spread:
            return trained
        with on_one_device():
            copy = self._copies.get((size, float32))
            if copy is None:
                with nullcontext() if float32 else training_precision(self._optimizer):
                    copy = embedding_network(self._network, size=size, weights=False)
                self._copies[size, float32] = copy
            copy.set_weights(plain_weights(trained) if weights is None else weights)
        return copy


def embedding_branch(model: keras.Model) -> keras.Model:
    """Returns the embedding network inside the model of a phase."""
    return model.get_layer("embedding_network")
