"""Compiles the model of a stage: precision, learning rates, optimizer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import keras

from dr_keras.backend import keras_defaults
from dr_keras.config import OptimizerConfig, RankingConfig
from dr_keras.model.backbones import CALLS_PER_STEP, set_calls_per_step
from dr_keras.model.network import classification_network, training_network
from dr_keras.training.devices import fast_bfloat16, on_gpu
from dr_keras.training.muon import Muon
from dr_keras.training.phases import SOFTMAX, TRIPLETS
from dr_keras.training.tuning import RatesByLayer, rate_factors


@keras_defaults()
def learning_rates(config: OptimizerConfig, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate schedule: a linear warm-up, then a cosine decay to 0.

    Args:
        config: The settings of the optimizer.
        steps: Number of steps of the whole run.
    """
    warmup = round(config.warmup * steps)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - warmup, 1), warmup_target=config.learning_rate, warmup_steps=warmup
    )


def learning_rate_at(config: OptimizerConfig, steps: int, step: int) -> float:
    """Returns the value of `learning_rates` at a step, computed without the device, which may be busy.

    Args:
        config: The settings of the optimizer.
        steps: Number of steps of the whole run.
        step: The global step.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * step / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


@keras_defaults()
def compiled_model(
    network: keras.Model,
    *,
    ranking: RankingConfig,
    optimizer: OptimizerConfig,
    steps: int,
    classes: int | None = None,
    stage: str = TRIPLETS,
    weighted: bool = False,
) -> keras.Model:
    """Returns the model of a stage around `network`, compiled, with its optimizer built.

    Args:
        network: The embedding network.
        ranking: The settings of the losses.
        optimizer: The settings of the optimizer.
        steps: Number of steps of the whole run, which the learning rate schedule covers.
        classes: Number of classes, for the classifier and the proxies; None for triplets without them.
        stage: SOFTMAX or TRIPLETS.
        weighted: Whether the losses of triplets are weighted.
    """
    if stage == SOFTMAX:
        assert classes
        model = classification_network(network, ranking, classes)
    else:
        model = training_network(network, ranking, classes, weighted=weighted)
    set_calls_per_step(network, 1 if stage == SOFTMAX else CALLS_PER_STEP)
    built = _optimizer(optimizer, steps, network)
    built.build(model.trainable_variables)  # built within the first step, it would cause the step to be traced twice
    # On a CPU, convolutions compiled by XLA run at a third of the speed of TensorFlow's own kernels. JAX has only XLA.
    compiles = keras.backend.backend() == "jax" or on_gpu()
    model.compile(built, jit_compile="auto" if compiles else False)
    return model


def _optimizer(config: OptimizerConfig, steps: int, network: keras.Model) -> keras.optimizers.Optimizer:
    """Returns the optimizer, with a fixed name: each phase finds the previous one's optimizer variables by path."""
    by_layer = config.layer_decay < 1 or config.backbone_rate < 1

    def kind(plain: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
        return type(plain.__name__, (RatesByLayer, plain), {}) if by_layer else plain

    rates = learning_rates(config, steps)
    if config.optimizer == "sgd":
        optimizer = kind(keras.optimizers.SGD)(
            rates, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, name="sgd"
        )
    elif config.optimizer == "adamw":
        optimizer = kind(keras.optimizers.AdamW)(rates, weight_decay=config.weight_decay, name="adamw")
    else:
        fast = precision(config) == "mixed_bfloat16"
        optimizer = kind(Muon)(rates, config.weight_decay, iterate_dtype="bfloat16" if fast else "float32")
    if by_layer:
        optimizer.factors = rate_factors(network, config.backbone_rate, config.layer_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "proxies"])
    return optimizer


def precision(config: OptimizerConfig) -> str:
    """Returns the Keras dtype policy that the network is trained with."""
    if config.precision != "auto":
        return config.precision
    fast = on_gpu() or (fast_bfloat16() and not config.deterministic)
    return "mixed_bfloat16" if fast else "float32"


@contextmanager
def training_precision(config: OptimizerConfig) -> Iterator[None]:
    """Sets the dtype policy of the training inside the `with` block."""
    with keras_defaults():
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(precision(config))
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)
