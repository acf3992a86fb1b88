"""Writes the SavedModel, the LiteRT file and, on request, the ONNX file of a run. Needs Keras on TensorFlow."""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from dr_keras.atomic_files import new_file, new_folder
from dr_keras.backend import keras_defaults
from dr_keras.data.images import PADDING, decode
from dr_keras.embedders import MAP, LiteRTEmbedder, SavedModelEmbedder, embed_with_network
from dr_keras.errors import RunError
from dr_keras.export.onnx import OnnxEmbedder, require_onnx, write_onnx
from dr_keras.heads import GENERAL, TRAINED, GeneralHead
from dr_keras.model.general_head import with_general_head
from dr_keras.model.maps import map_tensors, projection_of
from dr_keras.model.released import run_network
from dr_keras.runs import Run

TOLERANCE = 1e-4  # largest difference of any component of a vector
BYTES_TOLERANCE = 1e-3  # TensorFlow's JPEG decoder may round differently from Pillow's
HALF_TOLERANCE = 2e-3  # of a LiteRT file in half precision whose weights `round_weights` could not prepare
BATCHES = (1, 37)  # batch sizes to test an export with, besides all samples at once


@keras_defaults()
def export(run: Run) -> dict[str, float]:
    """Writes saved_model/, embedding.tflite and, if the run asks for it, embedding.onnx; checks each.

    They are made from the run's network, and compared with it on its sample images.

    Args:
        run: A run with a network and its sample images.

    Returns:
        The largest absolute differences of any component of a vector of any head: `saved_model`, `saved_model_bytes`,
        `litert`, and perhaps `onnx`.

    Raises:
        MissingPackage: A package that ONNX needs is not installed.
        RunError: A file is missing, or an export differs from the network by more than its tolerance.
    """
    for file in (run.weights_file if run.weights_file.is_file() else run.network_file, run.samples_file):
        if not file.is_file():
            raise RunError(f"{file} does not exist; the training of this run is not finished")
    networks = {TRAINED: run_network(run)}
    general = run.general_head() if run.general_file.is_file() else None
    if general is not None:
        networks[GENERAL] = with_general_head(networks[TRAINED], general, alone=True)
    samples = np.load(run.samples_file, allow_pickle=False)
    expected = {head: embed_with_network(network, samples) for head, network in networks.items()}
    differences = {}
    with new_folder(run.saved_model) as temporary:
        _write_saved_model(networks[TRAINED], general, temporary, run.config().resize)
        differences["saved_model"] = max(
            _check("SavedModel", SavedModelEmbedder(temporary, head), samples, expected[head]) for head in networks
        )
        differences["saved_model_bytes"] = _check_bytes(networks[TRAINED], temporary, samples)
    if map_tensors(networks[TRAINED]) is not None:
        projection_of(networks[TRAINED]).save(run.projection_file)
    with new_file(run.litert_file) as temporary:
        temporary.write_bytes(_litert(run.saved_model))
        differences["litert"] = check_litert(temporary, samples, expected)
    if run.config().onnx:
        require_onnx()
        with new_file(run.onnx_file) as temporary:
            write_onnx(networks[TRAINED], general, temporary)
            differences["onnx"] = max(
                _check("ONNX file", OnnxEmbedder(temporary, head), samples, expected[head]) for head in networks
            )
    return differences


def _write_saved_model(network: keras.Model, general: GeneralHead | None, folder: Path, resize: str) -> None:
    """Writes a SavedModel of up to five signatures.

    `serve`, also `serving_default`, takes pixels; `serve_bytes` takes encoded JPEG or PNG files. With a general head,
    `serve_heads` and `serve_bytes_heads` return both vectors, named `trained` and `general`. Where maps explain the
    embedding (`dr_keras.cells`), `serve_maps` returns them beside the vectors.
    """
    _, height, width, channels = network.input_shape
    both = None if general is None else with_general_head(network, general)
    maps = map_tensors(network)
    mapped = None
    if maps is not None:
        vectors = {TRAINED: network.output} if both is None else both.output
        mapped = keras.Model(network.input, vectors | {MAP + name: tensor for name, tensor in maps.items()})

    def serve(images: tf.Tensor) -> tf.Tensor:
        return network(images, training=False)

    def serve_heads(images: tf.Tensor) -> dict[str, tf.Tensor]:
        assert both is not None
        return both(images, training=False)

    def serve_maps(images: tf.Tensor) -> dict[str, tf.Tensor]:
        assert mapped is not None
        return mapped(images, training=False)

    def decode_one(encoded: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")  # decodes PNG as well
        image = _to_size(image, height, width, resize)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    def decode_all(encoded: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(decode_one, encoded, fn_output_signature=tf.TensorSpec((height, width, channels), tf.uint8))

    def serve_bytes(encoded: tf.Tensor) -> tf.Tensor:
        return serve(decode_all(encoded))

    def serve_bytes_heads(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        return serve_heads(decode_all(encoded))

    archive = keras.export.ExportArchive()
    archive.track(mapped or both or network)
    pixels = [tf.TensorSpec((None, height, width, channels), tf.uint8, "image")]
    files = [tf.TensorSpec((None,), tf.string, "encoded")]
    archive.add_endpoint("serve", serve, pixels)
    archive.add_endpoint("serve_bytes", serve_bytes, files)
    if both is not None:
        archive.add_endpoint("serve_heads", serve_heads, pixels)
        archive.add_endpoint("serve_bytes_heads", serve_bytes_heads, files)
    if mapped is not None:
        archive.add_endpoint("serve_maps", serve_maps, pixels)
    archive.write_out(str(folder), verbose=False)


def _to_size(image: tf.Tensor, height: int, width: int, resize: str) -> tf.Tensor:
    """Makes an image square as `dr_keras.data.images.decode` does, but in the graph; float32."""
    if resize == "pad":
        gray = float(PADDING[0])
        return tf.image.resize_with_pad(tf.cast(image, tf.float32) - gray, height, width, antialias=True) + gray
    if resize == "crop":
        size = tf.shape(image)[:2]
        side = tf.reduce_min(size)
        top, left = tf.unstack((size - side) // 2)
        image = tf.image.crop_to_bounding_box(image, top, left, side, side)
    return tf.image.resize(image, (height, width), antialias=True)


def _litert(saved_model: Path) -> bytes:
    """The SavedModel with built-in operations only, for any batch size; its outputs are the heads and the maps.

    It is converted from the SavedModel, not from the Keras model, because that freezes the weights: as variables they
    would need an initializer, which LiteRT does not run.
    """
    return _converter(saved_model).convert()


def _converter(saved_model: Path) -> tf.lite.TFLiteConverter:
    known = tf.saved_model.load(str(saved_model)).signatures
    signature = next(name for name in ("serve_maps", "serve_heads", "serve") if name in known)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[signature])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter


@keras_defaults()
def half_litert(network: keras.Model, general: GeneralHead | None, resize: str) -> bytes:
    """A LiteRT file whose weights are stored in half precision; it computes in float32."""
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(network, general, Path(folder), resize)
        converter = _converter(Path(folder))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        return converter.convert()


def check_litert(
    file: Path, samples: np.ndarray, expected: Mapping[str, np.ndarray], tolerance: float = TOLERANCE
) -> float:
    """Returns the largest difference of a LiteRT file's vectors from those that are expected.

    Args:
        file: The LiteRT file.
        samples: (n, H, W, 3) uint8.
        expected: For each head, (n, D).
        tolerance: The largest difference that is accepted.

    Raises:
        RunError: A difference is above `tolerance`.
    """
    return max(
        _check("LiteRT file", LiteRTEmbedder(file, head), samples, vectors, tolerance)
        for head, vectors in expected.items()
    )


def _check(
    name: str,
    embed: LiteRTEmbedder | OnnxEmbedder | SavedModelEmbedder,
    samples: np.ndarray,
    expected: np.ndarray,
    tolerance: float = TOLERANCE,
) -> float:
    worst = _compare(name, embed(samples), expected, tolerance)
    for size in BATCHES:
        rows = np.arange(size) % len(samples)
        worst = max(worst, _compare(f"{name}, batch of {size}", embed(samples[rows]), expected[rows], tolerance))
    return worst


def _check_bytes(network: keras.Model, folder: Path, samples: np.ndarray) -> float:
    serve = tf.saved_model.load(str(folder)).signatures["serve_bytes"]
    worst = 0.0
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 92})):
        files = [_encode(image, kind, options) for image in samples]
        decoded = np.stack([decode(file, samples.shape[1]) for file in files])
        vectors = next(iter(serve(tf.constant(files)).values())).numpy()
        expected = embed_with_network(network, decoded)
        worst = max(worst, _compare(f"SavedModel from {kind} bytes", vectors, expected, BYTES_TOLERANCE))
    return worst


def _encode(image: np.ndarray, kind: str, options: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def _compare(name: str, vectors: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    if vectors.shape != expected.shape:
        raise RunError(f"the {name} gives {vectors.shape}, the network {expected.shape}")
    worst = float(np.abs(vectors - expected).max())
    if not worst <= tolerance:  # also if it is NaN
        raise RunError(f"the {name} differs from the network by {worst:.2g}; at most {tolerance:g} is accepted")
    return worst
