"""The classifier on top of the embedding: class proxies, and a softmax over the cosines to them."""

from typing import Any

import keras
from keras import ops

from dr_keras.model.normalization import L2Normalization


@keras.saving.register_keras_serializable(package="dr_keras")
class ClassProxies(keras.layers.Layer):
    """Learned unit vectors that represent the classes.

    Args:
        classes: Number of classes, C.
        each: Vectors per class, N.
        seed: Seed of the initial vectors, which are spread evenly over all directions.

    Call arguments:
        embeddings: (B, D); only D is used.

    Returns:
        (C, N, D) float32 of unit length.
    """

    def __init__(self, classes: int, each: int = 1, seed: int = 0, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.classes, self.each, self.seed = classes, each, seed
        self._unit = L2Normalization(dtype="float32")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        initializer = keras.initializers.RandomNormal(stddev=1.0 / (input_shape[-1] or 1) ** 0.5, seed=self.seed)
        self.vectors = self.add_weight(
            shape=(self.classes, self.each, input_shape[-1]), initializer=initializer, name="proxies"
        )
        self.built = True

    def call(self, _embeddings: Any) -> Any:
        return self._unit(ops.convert_to_tensor(self.vectors))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (self.classes, self.each, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"classes": self.classes, "each": self.each, "seed": self.seed}


@keras.saving.register_keras_serializable(package="dr_keras")
class CosineClassifier(keras.layers.Layer):
    """Softmax cross-entropy over the cosines of an embedding to the class proxies (Zhai and Wu 2018).

    The logit of a class is `scale` times the cosine to its proxy, or the log-mean-exp over several proxies (the idea of
    Qian et al. 2019). The layer adds `weight` times the mean loss to the model's losses.

    Args:
        scale: Steepness of the softmax.
        label_smoothing: Share of the target that is spread evenly over all classes.
        weight: Weight of the loss.

    Call arguments:
        embeddings: (B, D) of unit length.
        proxies: (C, N, D) of unit length.
        label: (B,) integers, the class of each image.
        other: (B,) integers, the class of the image mixed into it.
        share: (B,), how much of the image is of its own class.

    Returns:
        A dict of (B,) statistics: `classifier_loss`, times `weight`, and `accuracy`, whether the class with the highest
        logit is `label`.
    """

    def __init__(self, scale: float = 10.0, label_smoothing: float = 0.0, weight: float = 1.0, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.scale, self.label_smoothing, self.weight = scale, label_smoothing, weight

    def call(self, embeddings: Any, proxies: Any, label: Any, other: Any = None, share: Any = None) -> dict[str, Any]:
        classes, each, dimensions = proxies.shape
        cosines = ops.matmul(embeddings, ops.transpose(ops.reshape(proxies, (classes * each, dimensions))))
        logits = self.scale * ops.reshape(cosines, (-1, classes, each))  # (B, C, N)
        logits = logits[:, :, 0] if each == 1 else ops.logsumexp(logits, axis=-1) - ops.log(float(each))
        log_odds = ops.log_softmax(logits, axis=-1)  # (B, C)
        own = _at(log_odds, label)
        target = own if other is None else share * own + (1.0 - share) * _at(log_odds, other)
        smooth = self.label_smoothing
        loss = -self.weight * ((1.0 - smooth) * target + smooth * ops.mean(log_odds, axis=-1))
        self.add_loss(ops.mean(loss))
        correct = ops.argmax(logits, axis=-1) == ops.cast(label, "int32")
        return {"classifier_loss": loss, "accuracy": ops.cast(correct, "float32")}

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "scale": self.scale,
            "label_smoothing": self.label_smoothing,
            "weight": self.weight,
        }


def _at(values: Any, columns: Any) -> Any:
    """Returns one column of each row: (B, C), (B,) -> (B,)."""
    return ops.take_along_axis(values, ops.cast(columns, "int32")[:, None], axis=-1)[:, 0]
