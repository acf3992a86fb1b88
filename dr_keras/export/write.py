"""Writes the SavedModel and the LiteRT file of a run. Needs Keras on TensorFlow."""

import io
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from dr_keras.atomic_files import new_file, new_folder
from dr_keras.backend import keras_defaults
from dr_keras.data.images import PADDING, decode
from dr_keras.embedders import LiteRTEmbedder, SavedModelEmbedder, embed_with_network
from dr_keras.errors import RunError
from dr_keras.model.released import run_network
from dr_keras.runs import Run

TOLERANCE = 1e-4  # largest difference of any component of a vector
BYTES_TOLERANCE = 1e-3  # TensorFlow's JPEG decoder may round differently from Pillow's
# Half precision rounds the weights of a LiteRT file once more: the converter folds normalization into convolutions.
HALF_TOLERANCE = 2e-3
BATCHES = (1, 37)  # batch sizes to test an export with, besides all samples at once


@keras_defaults()
def export(run: Run) -> dict[str, float]:
    """Writes saved_model/ and embedding.tflite from the run's network, and checks both on its sample images.

    Args:
        run: A run with a network and its sample images.

    Returns:
        The largest absolute differences of any component of an embedding: `saved_model`, `saved_model_bytes`, `litert`.

    Raises:
        RunError: A file is missing, or an export differs from the network by more than its tolerance.
    """
    for file in (run.weights_file if run.weights_file.is_file() else run.network_file, run.samples_file):
        if not file.is_file():
            raise RunError(f"{file} does not exist; the training of this run is not finished")
    network = run_network(run)
    samples = np.load(run.samples_file, allow_pickle=False)
    expected = embed_with_network(network, samples)
    differences = {}
    with new_folder(run.saved_model) as temporary:
        _write_saved_model(network, temporary, run.config().resize)
        differences["saved_model"] = _check("SavedModel", SavedModelEmbedder(temporary), samples, expected)
        differences["saved_model_bytes"] = _check_bytes(network, temporary, samples)
    with new_file(run.litert_file) as temporary:
        temporary.write_bytes(_litert(run.saved_model))
        differences["litert"] = check_litert(temporary, samples, expected)
    return differences


def _write_saved_model(network: keras.Model, folder: Path, resize: str) -> None:
    """Two signatures: `serve`, also `serving_default`, takes pixels; `serve_bytes` takes encoded JPEG or PNG files."""
    _, height, width, channels = network.input_shape

    def serve(images: tf.Tensor) -> tf.Tensor:
        return network(images, training=False)

    def decode_one(encoded: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")  # decodes PNG as well
        image = _to_size(image, height, width, resize)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    def serve_bytes(encoded: tf.Tensor) -> tf.Tensor:
        images = tf.map_fn(decode_one, encoded, fn_output_signature=tf.TensorSpec((height, width, channels), tf.uint8))
        return network(images, training=False)

    archive = keras.export.ExportArchive()
    archive.track(network)
    shape = (None, height, width, channels)
    archive.add_endpoint("serve", serve, [tf.TensorSpec(shape, tf.uint8, "image")])
    archive.add_endpoint("serve_bytes", serve_bytes, [tf.TensorSpec((None,), tf.string, "encoded")])
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
    """The SavedModel's `serve` with built-in operations only, for any batch size.

    It is converted from the SavedModel, not from the Keras model, because that freezes the weights: as variables they
    would need an initializer, which LiteRT does not run.
    """
    return _converter(saved_model).convert()


def _converter(saved_model: Path) -> tf.lite.TFLiteConverter:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=["serve"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter


@keras_defaults()
def half_litert(network: keras.Model, resize: str) -> bytes:
    """A LiteRT file whose weights are stored in half precision; it computes in float32."""
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(network, Path(folder), resize)
        converter = _converter(Path(folder))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        return converter.convert()


def check_litert(file: Path, samples: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """The largest difference of a LiteRT file's vectors from `expected`. Raises `RunError` above `tolerance`."""
    return _check("LiteRT file", LiteRTEmbedder(file), samples, expected, tolerance)


def _check(
    name: str,
    embed: LiteRTEmbedder | SavedModelEmbedder,
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
