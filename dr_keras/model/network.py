"""The multi-scale embedding network (Wang et al. 2014, fig. 3) and the networks around it that are trained."""

import random
import zipfile
import zlib
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from dr_keras.backend import keras_defaults
from dr_keras.config import BACKBONES, HUB, NetworkConfig, RankingConfig
from dr_keras.errors import RunError
from dr_keras.model.applications import application_features
from dr_keras.model.backbones import LAST, backbone
from dr_keras.model.classifier import ClassProxies, CosineClassifier
from dr_keras.model.distances import mean_distance_to_others
from dr_keras.model.hub import hub_features, import_keras_hub, needs_hub
from dr_keras.model.normalization import L2Normalization
from dr_keras.model.ranking import TripletRanking

PAPER_SIZE = 225  # pixels per side in the paper's figure 3
LOW_RESOLUTION_MAPS = 96


@keras_defaults()
def embedding_network(config: NetworkConfig, *, size: int | None = None, weights: bool = True) -> keras.Model:
    """Builds the network that embeds an image.

    The ConvNet path and, with `config.multiscale`, the two low-resolution paths are each L2-normalized, joined by a
    linear layer, and L2-normalized again. Without a linear layer (`config.embedding_dim` 0) the features themselves are
    the embedding. The network scales the pixels itself.

    Args:
        config: The settings.
        size: Side of the images in pixels, `config.image_size` by default. Networks of all sizes have the same weights
            and differ only in resolution; the smaller ones are for training with progressively larger images.
        weights: Whether to load `config.weights`; random ones are faster if others are set right afterward.

    Returns:
        A functional model: (B, H, W, 3) uint8 RGB -> (B, D) float32 of unit length.

    Raises:
        InputError: `config.backbone` is unknown or does not accept this image size, or its weights cannot be loaded.

    Example:
        >>> network = embedding_network(NetworkConfig(image_size=32, backbone="resnet10", width=8, embedding_dim=64))
        >>> tuple(network(keras.ops.zeros((2, 32, 32, 3), "uint8")).shape)
        (2, 64)
    """
    full = config.image_size
    size = size or full
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(image)  # [-1, 1]
    if config.backbone in BACKBONES:
        features = backbone(
            config.backbone, x, full, width=config.width, stem_stride=config.stem_stride, dropout=config.dropout
        )
    elif config.backbone.startswith(HUB):
        features = hub_features(config.backbone, image, config.pooling, weights=weights)
    else:
        features = application_features(config.backbone, image, config.weights if weights else None)
    features = L2Normalization(name="convnet_normalised")(features)
    if config.multiscale:
        low = layers.Concatenate(name="low_resolution")(
            [
                layers.Flatten(LAST, name="path_a")(_low_resolution(x, full, shrink=4, pool=7, stride=4, name="a")),
                layers.Flatten(LAST, name="path_b")(_low_resolution(x, full, shrink=8, pool=3, stride=2, name="b")),
            ]
        )  # (B, 3072) at the paper's size
        low = L2Normalization(name="low_resolution_normalised")(low)
        features = layers.Concatenate(name="features")([features, low])
    if config.embedding_dim:
        features = layers.Dense(config.embedding_dim, name="linear_embedding")(features)
    embedding = L2Normalization(dtype="float32", name="embedding")(features)
    return keras.Model(image, embedding, name="embedding_network")


@keras_defaults()
def initial_network(config: NetworkConfig) -> keras.Model:
    """Returns the embedding network with its initial weights, the same ones for the same seed.

    Args:
        config: The settings.

    Raises:
        InputError: The network cannot be built; see `embedding_network`.
    """
    state = random.getstate()
    random.seed(config.seed)  # Keras draws the seeds of its initializers from this generator
    try:
        return embedding_network(config)
    finally:
        random.setstate(state)


def _low_resolution(
    x: keras.KerasTensor, full: int, *, shrink: int, pool: int, stride: int, name: str
) -> keras.KerasTensor:
    """Builds a low-resolution path: the image itself is shrunk, then convolved and max-pooled.

    At 225 px, path a is 225 -> 57 -> 15 -> 4 and path b is 225 -> 29 -> 8 -> 4. The paper's figure swaps the two pools;
    only 7 x 7 / 4 on path a and 3 x 3 / 2 on path b give its 4 x 4. At other sizes the stride of the convolution
    follows the image size, so that both paths still end with the same few cells. An image below the `full` size of the
    network is shrunk less.
    """
    step = max(1, round(4 * full / PAPER_SIZE))  # 4 at the paper's size, 1 at 64 px
    rate, odd = divmod(shrink * x.shape[1], full)
    if odd:
        x = layers.Resizing(-(-full // shrink), -(-full // shrink), data_format=LAST, name=f"{name}_subsample")(x)
    else:
        x = layers.AveragePooling2D(rate, padding="same", data_format=LAST, name=f"{name}_subsample")(x)
    x = layers.Conv2D(
        LOW_RESOLUTION_MAPS,
        max(3, 2 * step),
        step,
        padding="same",
        data_format=LAST,
        activation="relu",
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.MaxPooling2D(pool, stride, padding="same", data_format=LAST, name=f"{name}_pool")(x)


@keras.saving.register_keras_serializable(package="dr_keras")
class StatisticsModel(keras.Model):
    """A functional model whose outputs are statistics of each element of the batch, which it turns into metrics.

    On every backend the metrics are those of the current batch, not running means: the mean of each statistic; `loss`,
    the sum of those that end in `_loss`; and, for triplets, `triplet_accuracy` (the share with D(q, p+) < D(q, p-)) and
    `zero_loss` (the share without a gradient).
    """

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Returns the metrics of a batch from its statistics `y_pred`, as scalars."""
        metrics = {name: ops.mean(value) for name, value in y_pred.items()}
        metrics["loss"] = sum(value for name, value in metrics.items() if name.endswith("_loss"))
        if "positive_distance" in y_pred:
            near, far = y_pred["positive_distance"], y_pred["negative_distance"]
            metrics["triplet_accuracy"] = ops.mean(ops.cast(near < far, "float32"))
            metrics["zero_loss"] = ops.mean(ops.cast(y_pred["triplet_loss"] <= 0, "float32"))
        return metrics


@keras_defaults()
def training_network(
    network: keras.Model, config: RankingConfig, classes: int | None = None, *, weighted: bool = False
) -> StatisticsModel:
    """Joins three branches that share `network` in the ranking layer (fig. 2), next to the classifier if it is kept.

    Args:
        network: Maps (B, H, W, 3) to (B, D).
        config: The settings of the losses.
        classes: Number of classes of the classifier and the proxies; None for neither.
        weighted: Whether the losses of triplets are weighted.

    Returns:
        A functional model of the inputs `query`, `positive`, `negative` (B, H, W, 3) uint8 and `classes` (B, 2) int32,
        and perhaps `weights` (B,) float32, whose outputs are the statistics of `TripletRanking`, its loss as
        `triplet_loss`, and of `CosineClassifier`.

    Example:
        >>> network = embedding_network(NetworkConfig(image_size=32, backbone="resnet10", width=8))
        >>> model = training_network(network, RankingConfig(margin=1.0))
        >>> sorted(model.input)
        ['classes', 'negative', 'positive', 'query']
    """
    inputs = {
        name: keras.Input(network.input_shape[1:], dtype="uint8", name=name)
        for name in ("query", "positive", "negative")
    }
    pair = keras.Input((2,), dtype="int32", name="classes")
    # In float32 even with a mixed policy, because bfloat16 would round small distances away.
    branches = [network(branch) for branch in inputs.values()]  # 3 x (B, D)
    embeddings = layers.Concatenate(dtype="float32", name="embeddings")(branches)  # (B, 3D)
    proxies = None
    statistics: dict[str, Any] = {}
    if classes and (config.classifier_weight or config.proxies):
        stacked = layers.Concatenate(axis=0, dtype="float32", name="stacked_embeddings")(branches)  # (3B, D)
        proxies = _proxies(config, classes)(stacked)
        if config.classifier_weight:
            labels = ops.concatenate([pair[:, 0], pair[:, 0], pair[:, 1]], axis=0)
            classifier = CosineClassifier(
                config.scale, config.label_smoothing, config.classifier_weight, name="classifier"
            )
            statistics |= classifier(stacked, proxies, labels)
    ranking = TripletRanking(config.margin, config.distance, config.mining, config.seed, name="ranking")
    needed = {"classes": pair} if config.mining != "none" or (config.proxies and classes) else {}
    if config.proxies and classes:
        needed["proxies"] = proxies
    inputs["classes"] = pair
    if weighted:
        inputs["weights"] = needed["weights"] = keras.Input((), dtype="float32", name="weights")
    ranked = ranking(embeddings, **needed)
    statistics |= {"triplet_loss": ranked.pop("loss")} | ranked
    return StatisticsModel(inputs, statistics, name="training_network")


@keras_defaults()
def classification_network(network: keras.Model, config: RankingConfig, classes: int) -> StatisticsModel:
    """Puts the classifier on top of `network`, for the softmax stage.

    Args:
        network: Maps (B, H, W, 3) to (B, D).
        config: The settings of the classifier.
        classes: Number of classes.

    Returns:
        A functional model of the inputs `image` (B, H, W, 3) uint8, `label` and `other` (B,) int32 and `share` (B,)
        float32, whose outputs are the statistics of `CosineClassifier` and `pairwise_distance`, the mean distance of an
        embedding to the others of the batch.
    """
    image = keras.Input(network.input_shape[1:], dtype="uint8", name="image")
    label = keras.Input((), dtype="int32", name="label")
    other = keras.Input((), dtype="int32", name="other")
    share = keras.Input((), dtype="float32", name="share")
    embedding = network(image)
    proxies = _proxies(config, classes)(embedding)
    classifier = CosineClassifier(config.scale, config.label_smoothing, name="classifier")
    statistics = classifier(embedding, proxies, label, other, share)
    statistics["pairwise_distance"] = MeanDistance(name="pairwise_distance")(embedding)
    inputs = {"image": image, "label": label, "other": other, "share": share}
    return StatisticsModel(inputs, statistics, name="classification_network")


def _proxies(config: RankingConfig, classes: int) -> ClassProxies:
    return ClassProxies(classes, max(config.proxies, 1), config.seed, name="proxies")


@keras.saving.register_keras_serializable(package="dr_keras")
class MeanDistance(layers.Layer):
    """`dr_keras.model.distances.mean_distance_to_others` as a layer, without a gradient: (B, D) -> (B,)."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)

    def call(self, embeddings: Any) -> Any:
        return mean_distance_to_others(ops.stop_gradient(embeddings))


@keras_defaults()
def load_network(file: Path) -> keras.Model:
    """Reads an embedding network from a .keras archive, in safe mode, so that it cannot run code of its own.

    Args:
        file: The archive.

    Raises:
        RunError: The file is missing, or this version cannot read it.
        MissingPackage: The network has layers of KerasHub, which is not installed.
    """
    try:
        if needs_hub(file):
            import_keras_hub(f"{file} has layers of KerasHub")
        return keras.saving.load_model(file, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{file} cannot be read as a network: {reason}") from error
