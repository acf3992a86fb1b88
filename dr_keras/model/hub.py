"""Pretrained backbones of KerasHub as the ConvNet path: DINOv2, DINOv3, SigLIP, CLIP, ViT, Swin, MobileNet."""

import importlib
import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from dr_keras.backend import keras_defaults
from dr_keras.config import HUB
from dr_keras.errors import InputError, MissingPackage
from dr_keras.extras import how_to_install
from dr_keras.model.applications import ColorTransform
from dr_keras.model.backbones import LAST

CLASS_TOKEN_FIRST = ("DINOV2Backbone", "DINOV3Backbone", "ViTBackbone", "DeiTBackbone")
VISION_AND_TEXT = ("CLIPBackbone", "SigLIPBackbone", "MetaCLIP2Backbone")
FULL_COLOR = 255.0
NETWORK_PACKAGES = ("http", "requests", "urllib3")  # how their names begin


@dataclass(frozen=True)
class Preset:
    """A backbone of KerasHub with its preprocessing.

    Attributes:
        backbone: The network with the weights of the preset, for images of the wanted size. Of a network of images and
            texts, the half that sees images, projected into their common space.
        kind: The name of its class, such as "DINOV2Backbone".
        scale, offset: (3,) each; the network expects `pixels * scale + offset` of RGB pixels in [0, 255].
    """

    backbone: keras.Model
    kind: str
    scale: np.ndarray
    offset: np.ndarray


@keras_defaults()
def hub_features(
    name: str, image: keras.KerasTensor, pooling: str = "auto", *, weights: bool = True
) -> keras.KerasTensor:
    """Returns the pooled features of a backbone of KerasHub.

    Args:
        name: "hub:" and a built-in preset, `hf://ORGANIZATION/MODEL`, `kaggle://...`, or a folder in the format of
            Keras or Hugging Face.
        image: Symbolic (B, H, W, 3), RGB in [0, 255], H = W. The preset's own preprocessing is included.
        pooling: "cls" for the class token, "mean" over positions, "projection" into the space that images share with
            texts, or "auto": what the network was made for.
        weights: Whether to load the weights of the preset; random ones are faster if others are set right afterwards.

    Returns:
        Symbolic (B, F).

    Raises:
        InputError: There is no such preset, it cannot be downloaded, it does not see images, or it does not accept this
            image size or pooling.
        MissingPackage: KerasHub is not installed.
    """
    preset = load_preset(name.removeprefix(HUB), image.shape[1], weights=weights)
    x = ColorTransform(np.diag(preset.scale), preset.offset, name="preprocessing")(image)
    names = _inputs(preset.backbone)
    features = preset.backbone({names[0]: x} if isinstance(preset.backbone.input, dict) else x)
    return _pooled(features, preset, pooling, name)


def load_preset(preset: str, size: int, *, weights: bool = True) -> Preset:
    """Loads a backbone of KerasHub for square images of `size` pixels per side.

    Position embeddings are interpolated where the preset is for another size.

    Args:
        preset: A built-in preset, a handle or a folder.
        size: Pixels per side.
        weights: Whether to load the weights.

    Raises:
        InputError: As in `hub_features`.
        MissingPackage: KerasHub is not installed.
    """
    keras_hub = import_keras_hub(f"--backbone {HUB}{preset} is a network of KerasHub")
    if _is_path(preset) and not Path(preset).is_dir():
        raise InputError(f"--backbone {HUB}{preset}: there is no such folder")
    try:
        if "://" in preset:
            _probe(preset)
        native = keras_hub.models.Backbone.from_preset(
            preset, load_weights=weights, dtype=keras.config.dtype_policy().name
        )
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception as error:  # whatever the loaders, the clients of the hubs or the network raise
        raise InputError(f"--backbone {HUB}{preset} cannot be loaded: {_reason(error)}") from error
    kind = type(native).__name__
    if "images" not in _inputs(native) and "pixel_values" not in _inputs(native) and len(native.inputs) != 1:
        raise InputError(f"--backbone {HUB}{preset} is a {kind}, which does not see images")
    seeing = native.vision_encoder if kind in VISION_AND_TEXT else native
    network = _resized(seeing, size, preset)
    if kind in VISION_AND_TEXT:
        network = _projected(native, network)
    scale, offset = _preprocessing(preset, converter)
    return Preset(network, kind, scale, offset)


def import_keras_hub(reason: str) -> ModuleType:
    """Returns the module `keras_hub`, whose import makes its layers known to Keras.

    Args:
        reason: Why it is needed, for the error.

    Raises:
        MissingPackage: It is not installed.
    """
    try:
        return importlib.import_module("keras_hub")
    except ImportError as error:
        raise MissingPackage(f"{reason}, which is not installed; {how_to_install('keras_hub')}") from error


def needs_hub(file: Path) -> bool:
    """Returns whether a .keras archive has layers of KerasHub."""
    with zipfile.ZipFile(file) as archive:
        return b"keras_hub" in archive.read("config.json")


def _inputs(network: keras.Model) -> list[str]:
    return list(network.input) if isinstance(network.input, dict) else [tensor.name for tensor in network.inputs]


def _probe(preset: str) -> None:
    """Raises what keeps a model from being downloaded; KerasHub itself only says that it has no configuration."""
    from keras_hub.src.utils.preset_utils import get_file

    get_file(preset, "config.json")


def _is_path(preset: str) -> bool:
    return "://" not in preset and (os.sep in preset or preset.startswith((".", "~")))


def _reason(error: Exception) -> str:
    """Describes in one line why a preset could not be loaded, with what to do about it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in chain]
    status = next((status for status in statuses if status is not None), None)
    text = " ".join(str(error).split()) or type(error).__name__
    if status in (401, 403) or "is gated" in text:
        return "the model is gated: accept its terms and log in (HF_TOKEN or KAGGLE_KEY), or give a folder"
    if status is not None and status >= 500:
        return f"the hub answers {status}; try again later, or download the model elsewhere and give its folder"
    if any(type(one).__name__ == "LocalEntryNotFoundError" for one in chain):
        return "the hub cannot be reached; download the model elsewhere and give its folder"
    if status == 404:
        return (
            "the hub has no such model, or it is not one of KerasHub or transformers; check the name, or give a folder"
        )
    if any(type(one).__module__.startswith(NETWORK_PACKAGES) for one in chain):
        return f"{text}; try again, or download the model elsewhere and give its folder"
    return text


def _resized(network: keras.Model, size: int, preset: str) -> keras.Model:
    """Returns the network for images of `size` pixels, with its weights and with interpolated position embeddings."""
    shape = network.inputs[0].shape[1:]
    if shape[:2] in ((size, size), (None, None)):
        return network
    try:
        other = type(network).from_config(network.get_config() | {"image_shape": (size, size, 3)})
    except Exception as error:
        raise InputError(f"--backbone {HUB}{preset} does not accept --image-size {size}: {_reason(error)}") from error
    for old, new in zip(network.variables, other.variables, strict=True):
        if keras.backend.is_float_dtype(old.dtype):  # others are numbers of positions
            new.assign(old if old.shape == new.shape else _interpolated(old, new.shape))
    return other


def _interpolated(positions: Any, shape: Sequence[int]) -> Any:
    """Interpolates position embeddings, ([1,] tokens, D), to another number of tokens; those beside the grid stay."""
    tokens, dim = positions.shape[-2:]
    old, new = math.isqrt(tokens), math.isqrt(shape[-2])
    kept = tokens - old**2  # the class token and others, in front
    if new**2 + kept != shape[-2]:
        raise InputError(f"position embeddings of {tokens} tokens do not fit {shape[-2]}")
    flat = ops.reshape(ops.cast(positions, "float32"), (tokens, dim))
    grid = ops.reshape(flat[kept:], (1, old, old, dim))
    grid = ops.image.resize(grid, (new, new), interpolation="bicubic", antialias=True, data_format=LAST)
    return ops.reshape(ops.concatenate([flat[:kept], ops.reshape(grid, (new**2, dim))]), shape)


def _projected(native: keras.Model, encoder: keras.Model) -> keras.Model:
    """Puts the rest of the vision half on `encoder`: pooling, and the projection into the space shared with texts."""
    image = keras.Input(encoder.inputs[0].shape[1:], name="images")
    x = encoder({"images": image})
    for part in ("vision_pooler", "vision_post_layer_norm", "vision_projection"):
        layer = getattr(native, part, None)
        x = x if layer is None else layer(x)
    return keras.Model({"images": image}, x, name=f"{native.name}_vision")


def _preprocessing(preset: str, converter: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and offset, (3,) each: `pixels * scale + offset` is what the network expects.

    Raises:
        InputError: The preset does not say how images are scaled.
    """
    if converter is not None:
        scale = 1.0 if converter.scale is None else converter.scale
        offset = 0.0 if converter.offset is None else converter.offset
        return np.broadcast_to(np.asarray(scale, np.float64), 3), np.broadcast_to(np.asarray(offset, np.float64), 3)
    settings = _preprocessor_config(preset)  # KerasHub reads it for some networks only
    if settings is None:
        raise InputError(f"--backbone {HUB}{preset} has no preprocessor_config.json, so how to scale images is unknown")
    rescale = settings.get("rescale_factor", 1 / FULL_COLOR) if settings.get("do_rescale", True) else 1.0
    mean, std = np.zeros(3), np.ones(3)
    if settings.get("do_normalize", True):
        mean, std = np.asarray(settings["image_mean"], float), np.asarray(settings["image_std"], float)
    return rescale / std, -mean / std


def _preprocessor_config(preset: str) -> dict[str, Any] | None:
    """Returns the preprocessing of a model in the format of Hugging Face, or None if it has none."""
    file = preset_file(preset, "preprocessor_config.json")
    try:
        return None if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def preset_file(preset: str, name: str) -> Path | None:
    """Returns a file of a preset, downloaded if necessary; None if it cannot be had.

    Args:
        preset: As in `load_preset`.
        name: The name of the file.
    """
    from keras_hub.src.utils.preset_utils import get_file

    try:
        return Path(get_file(preset, name))
    except Exception:  # whatever the clients of the hubs raise for a file that a preset need not have
        return None


def _pooled(features: Any, preset: Preset, pooling: str, name: str) -> keras.KerasTensor:
    """Pools what a backbone returns, (B, F), (B, tokens, F) or (B, H, W, F), to (B, F)."""
    projected, tokens = preset.kind in VISION_AND_TEXT, len(features.shape) == 3
    has_class_token = tokens and preset.kind in CLASS_TOKEN_FIRST
    if pooling == "auto":
        pooling = "projection" if projected else "cls" if has_class_token else "mean"
    possible = ["projection"] if projected else ["cls", "mean"] if has_class_token else ["mean"]
    if pooling not in possible:
        raise InputError(f"--pooling {pooling} is not possible with {name}; choose auto or {' or '.join(possible)}")
    if pooling == "projection":
        return features
    return Pooling(_tokens_in_front(preset) if tokens else 0, class_token=pooling == "cls", name="pooling")(features)


def _tokens_in_front(preset: Preset) -> int:
    """Returns the number of tokens beside those of the image: the class token and registers."""
    if preset.kind not in CLASS_TOKEN_FIRST:
        return 0
    distillation = 1 if preset.kind == "DeiTBackbone" else 0
    return 1 + distillation + getattr(preset.backbone, "num_register_tokens", 0)


@keras.saving.register_keras_serializable(package="dr_keras")
class Pooling(layers.Layer):
    """Pools features in float32: (B, tokens, F) or (B, H, W, F) -> (B, F).

    Args:
        front: The number of tokens in front that are not of the image; they are left out of the mean.
        class_token: Whether to return the first token instead of the mean.
    """

    def __init__(self, front: int = 0, *, class_token: bool = False, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.front, self.class_token = front, class_token

    def call(self, x: Any) -> Any:
        if self.class_token:
            return x[:, 0]
        return ops.mean(x[:, self.front :], axis=tuple(range(1, len(x.shape) - 1)))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"front": self.front, "class_token": self.class_token}
