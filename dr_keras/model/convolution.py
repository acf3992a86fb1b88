"""The convolution of the ResNets."""

from typing import Any

import keras
from keras import layers, ops

SMALL, SMALL_STRIDED = 8, 4  # sides of the output up to which a matrix product is faster, with stride 1 and above


@keras.saving.register_keras_serializable(package="dr_keras")
class Convolution(layers.Conv2D):
    """`keras.layers.Conv2D` that trains faster on small images, with TensorFlow on a CPU.

    For images of a few pixels per side, oneDNN takes about twice as long for the gradient of the kernel as for
    everything else. Where the output is at most 8 x 8 (4 x 4 if strided), this layer computes that gradient as one
    matrix product instead, of the patches and the gradients of the outputs. The output and the gradient of the input
    are TensorFlow's own; in inference, on a GPU, and on other backends, it behaves like its base class. The effect on
    speed: docs/decisions/005-speed.md.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Convolves (B, H, W, C) images into (B, H', W', D)."""
        if training and self.trainable and self._gains(inputs.shape):
            return _with_matrix_gradient(inputs, self.kernel, self.strides[0])
        return super().call(inputs)

    def _gains(self, shape: tuple[int | None, ...]) -> bool:
        """Whether the gradient of the kernel is faster, and can be computed, as a matrix product."""
        if keras.backend.backend() != "tensorflow" or None in shape[1:]:
            return False
        import tensorflow as tf

        stride = self.strides[0]
        plain = (
            (self.padding, self.data_format, self.groups) == ("same", "channels_last", 1)
            and (set(self.strides), set(self.dilation_rate)) == ({stride}, {1})
            and self.activation is keras.activations.linear
            and not self.use_bias
        )
        side = max(-(-length // stride) for length in shape[1:3] if length)
        small = side <= (SMALL if stride == 1 else SMALL_STRIDED)
        return plain and small and not tf.config.list_logical_devices("GPU")


def _with_matrix_gradient(images: Any, kernel: Any, stride: int) -> Any:
    """Convolves with "same" padding; the gradient of the kernel is a matrix product.

    Args:
        images: (B, H, W, C).
        kernel: (h, w, C, D), of the same dtype.
        stride: Along both axes.

    Returns:
        (B, H', W', D), H' being H divided by the stride and rounded up.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def convolve(images: Any, kernel: Any) -> Any:
        def gradients(upstream: Any) -> tuple[Any, Any]:
            by_image = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images),
                filter=kernel,
                out_backprop=upstream,
                strides=[1, stride, stride, 1],
                padding="SAME",
            )
            height, width, channels, maps = kernel.shape
            patches = tf.reshape(_patches(images, height, width, stride), (-1, height * width * channels))
            by_kernel = tf.matmul(patches, tf.reshape(upstream, (-1, maps)), transpose_a=True)
            return by_image, tf.reshape(by_kernel, kernel.shape)

        return tf.nn.conv2d(images, kernel, stride, "SAME"), gradients

    return convolve(images, tf.convert_to_tensor(ops.convert_to_tensor(kernel)))  # its value, if it is a variable


def _patches(images: Any, height: int, width: int, stride: int) -> Any:
    """Returns what the kernel meets at each position of a convolution with "same" padding: (B, H', W', h * w * C)."""
    import tensorflow as tf

    pads, spans = [], []
    for length, extent in zip(images.shape[1:3], (height, width), strict=True):
        reach = (-(-length // stride) - 1) * stride + 1  # from the first position to the last
        missing = max(reach + extent - 1 - length, 0)
        pads.append((missing // 2, missing - missing // 2))
        spans.append(reach)
    padded = tf.pad(images, [(0, 0), *pads, (0, 0)])
    shifted = [
        padded[:, down : down + spans[0] : stride, right : right + spans[1] : stride]
        for down in range(height)
        for right in range(width)
    ]
    return tf.concat(shifted, axis=-1)
