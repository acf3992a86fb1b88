"""The normalization layers of the networks."""

from typing import Any

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="dr_keras")
class L2Normalization(layers.Layer):
    """Scales vectors to unit length: (B, D) -> (B, D). A zero vector stays zero, with a finite gradient.

    `keras.layers.UnitNormalization` computes the same, but its gradient at a zero vector is NaN, and features after a
    ReLU can be all zero.
    """

    def call(self, x: Any) -> Any:
        return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-12))


@keras.saving.register_keras_serializable(package="dr_keras")
class FusedBatchNormalization(layers.BatchNormalization):
    """Batch normalization of (B, H, W, C) images, with TensorFlow's fused kernel when training on TensorFlow.

    Computes the same as `keras.layers.BatchNormalization`, which on TensorFlow takes six operations forward and more
    backward; a training step of a ResNet-18 is a sixth faster (docs/decisions/005-speed.md). On other backends and in
    inference it behaves like its base class.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not (training and self.trainable and keras.backend.backend() == "tensorflow"):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        # Half-precision images are kept as such in memory; the kernel computes in float32.
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            ops.convert_to_tensor(self.gamma, "float32"),
            ops.convert_to_tensor(self.beta, "float32"),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = ops.cast(ops.prod(ops.shape(inputs)[:-1]), "float32")
        variance = variance * ((count - 1.0) / count)  # the kernel divides by count - 1, Keras by count
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)
