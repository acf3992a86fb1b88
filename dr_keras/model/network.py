"""The multi-scale embedding network (Wang et al. 2014, fig. 3) and the three-branch training network around it."""

import zipfile
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from dr_keras.config import BACKBONES, Config
from dr_keras.errors import RunError
from dr_keras.model.applications import application_features
from dr_keras.model.backbones import backbone
from dr_keras.model.normalization import L2Normalization
from dr_keras.model.ranking import TripletRanking

PAPER_SIZE = 225  # pixels a side in the paper's figure 3
LOW_RESOLUTION_MAPS = 96


def embedding_network(config: Config, *, weights: bool = True) -> keras.Model:
    """Builds the network that makes an embedding of an image.

    The ConvNet path and, with `config.multiscale`, the two low-resolution paths are each L2-normalised, joined by one
    linear layer and L2-normalised again. Scaling of the pixels is part of the network.

    Args:
        config: the settings.
        weights: whether `config.weights` are loaded; random ones are quicker where others are set at once.

    Returns:
        A functional model: (B, H, W, 3) uint8 RGB -> (B, D) float32 of unit length.

    Raises:
        InputError: `config.backbone` is unknown or does not take this image size, or its weights cannot be had.
    """
    size = config.image_size
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(image)  # [-1, 1]
    if config.backbone in BACKBONES:
        features = backbone(config.backbone, x, width=config.width, dropout=config.dropout)
    else:
        features = application_features(config.backbone, image, config.weights if weights else None)
    features = L2Normalization(name="convnet_normalised")(features)
    if config.multiscale:
        low = layers.Concatenate(name="low_resolution")(
            [
                layers.Flatten(name="path_a")(_low_resolution(x, shrink=4, pool=7, stride=4, name="a")),
                layers.Flatten(name="path_b")(_low_resolution(x, shrink=8, pool=3, stride=2, name="b")),
            ]
        )  # (B, 3072) at the paper's size
        low = L2Normalization(name="low_resolution_normalised")(low)
        features = layers.Concatenate(name="features")([features, low])
    embedding = layers.Dense(config.embedding_dim, name="linear_embedding")(features)
    embedding = L2Normalization(dtype="float32", name="embedding")(embedding)
    return keras.Model(image, embedding, name="embedding_network")


def _low_resolution(x: keras.KerasTensor, *, shrink: int, pool: int, stride: int, name: str) -> keras.KerasTensor:
    """One low-resolution path: the image itself is shrunk, then convolved and max-pooled.

    At 225 px: path a 225 -> 57 -> 15 -> 4, path b 225 -> 29 -> 8 -> 4. The figure prints the two pools the other way
    round; only 7 x 7 / 4 on path a and 3 x 3 / 2 on path b give its 4 x 4. At other sizes the convolution's stride
    follows the image size, so that both paths still end at the same few cells.
    """
    step = max(1, round(4 * x.shape[1] / PAPER_SIZE))  # 4 at the paper's size, 1 at 64 px
    x = layers.AveragePooling2D(shrink, padding="same", name=f"{name}_subsample")(x)
    x = layers.Conv2D(
        LOW_RESOLUTION_MAPS,
        max(3, 2 * step),
        step,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.MaxPooling2D(pool, stride, padding="same", name=f"{name}_pool")(x)


@keras.saving.register_keras_serializable(package="dr_keras")
class TripletModel(keras.Model):
    """A functional model that ends in a `TripletRanking` layer and turns its statistics into metrics.

    The metrics are those of the one batch, not a running mean, on every backend: `loss`, `triplet_accuracy` (the share
    of triplets with D(q, p+) < D(q, p-)), `zero_loss` (the share that no longer teaches anything),
    `positive_distance`, `negative_distance` and `pairwise_distance`.
    """

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The metrics of one batch from the ranking layer's statistics `y_pred`, as scalars."""
        near, far = y_pred["positive_distance"], y_pred["negative_distance"]
        return {name: ops.mean(value) for name, value in y_pred.items()} | {
            "triplet_accuracy": ops.mean(ops.cast(near < far, "float32")),
            "zero_loss": ops.mean(ops.cast(y_pred["loss"] <= 0, "float32")),
        }


def training_network(network: keras.Model, *, margin: float, distance: str) -> TripletModel:
    """Puts three branches that share `network` before one ranking layer.

    Args:
        network: maps (B, H, W, 3) to (B, D).
        margin, distance: see `TripletRanking`.

    Returns:
        A functional model of the inputs `query`, `positive`, `negative` (B, H, W, 3) uint8 and `classes` (B, 2) int32,
        whose outputs are the ranking layer's statistics. Random triplets need no classes; mining does.
    """
    inputs = {
        name: keras.Input(network.input_shape[1:], dtype="uint8", name=name)
        for name in ("query", "positive", "negative")
    }
    # In float32 also under a mixed policy: bfloat16 would round small distances away.
    joined = layers.Concatenate(dtype="float32", name="embeddings")
    embeddings = joined([network(branch) for branch in inputs.values()])  # (B, 3D)
    statistics = TripletRanking(margin, distance, name="ranking")(embeddings)
    inputs["classes"] = keras.Input((2,), dtype="int32", name="classes")
    return TripletModel(inputs, statistics, name="training_network")


def load_network(file: Path) -> keras.Model:
    """Reads an embedding network from a .keras archive, in safe mode: it can hold no code of its own.

    Raises:
        RunError: the file is absent, or no archive that this version can read.
    """
    try:
        return keras.saving.load_model(file, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{file} cannot be read as a network: {reason}") from error
