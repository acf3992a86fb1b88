"""The networks of keras.applications as the ConvNet path, with the preprocessing that each of them expects."""

import inspect
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from dr_keras.backend import keras_defaults
from dr_keras.config import BACKBONES
from dr_keras.errors import InputError


@keras.saving.register_keras_serializable(package="dr_keras", name="ColourTransform")  # the name in saved networks
class ColorTransform(layers.Layer):
    """An affine map of the colors, computed in float32: (B, H, W, 3) -> (B, H, W, 3), `x @ matrix + offset`.

    Args:
        matrix: (3, 3), from the channels of the input (rows) to those of the output (columns).
        offset: (3,), added to the product.
    """

    def __init__(self, matrix: Any, offset: Any, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.matrix, self.offset = np.asarray(matrix, np.float32), np.asarray(offset, np.float32)

    def call(self, x: Any) -> Any:
        return ops.matmul(ops.cast(x, "float32"), self.matrix) + self.offset

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"matrix": self.matrix.tolist(), "offset": self.offset.tolist()}


def application_names() -> list[str]:
    """Returns the names of all networks of keras.applications."""
    return sorted(
        name
        for name, value in vars(keras.applications).items()
        if inspect.isfunction(value) and "include_top" in inspect.signature(value).parameters
    )


@keras_defaults()
def application_features(name: str, image: keras.KerasTensor, weights: str | None) -> keras.KerasTensor:
    """Returns the pooled features of a network of keras.applications, without its classifier.

    Args:
        name: "EfficientNetB0", "ResNet50" and so on, as spelled in keras.applications.
        image: Symbolic (B, H, W, 3), RGB in [0, 255]. The network's own preprocessing is included.
        weights: None for random weights, "imagenet" for those that Keras downloads, or a weights file.

    Returns:
        Symbolic (B, F).

    Raises:
        InputError: There is no such network, it does not accept this image size, or the weights cannot be loaded.
    """
    if name not in application_names():
        own = ", ".join(BACKBONES)
        raise InputError(
            f"--backbone is {name!r}; choose {own}, or from keras.applications {', '.join(application_names())}"
        )
    make = getattr(keras.applications, name)
    if weights not in (None, "imagenet") and not Path(str(weights)).is_file():
        raise InputError(f"--weights {weights} does not exist; give none, imagenet or a weights file")
    shape = tuple(image.shape[1:])
    try:
        network = make(include_top=False, weights=weights, input_shape=shape, pooling="avg")
    except Exception as error:  # a size that is too small, a file of another network, no network connection
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--backbone {name} at {shape[0]} px with --weights {weights}: {reason}") from error
    return network(preprocessing(name)(image))


@keras_defaults()
def preprocessing(name: str) -> ColorTransform:
    """Returns the preprocessing of a network of keras.applications (its `preprocess_input`) as a layer.

    All of them are affine in the colors (scaled, centered, or reordered to BGR), so four colors determine the map.
    """
    module = getattr(keras.applications, getattr(keras.applications, name).__module__.rpartition(".")[2])
    black, *primaries = (
        np.asarray(module.preprocess_input(np.full((1, 1, 1, 3), color, np.float32)), np.float64).reshape(3)
        for color in ([0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255])
    )
    return ColorTransform((np.stack(primaries) - black) / 255, black, name="preprocessing")
