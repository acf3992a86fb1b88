"""The ConvNet path by name: AlexNet as in the paper, or a small ResNet trained from scratch.

A backbone is a function of a symbolic (B, H, W, 3) image in [-1, 1] that returns (B, F) features.
"""

import keras
from keras import layers

from dr_keras.model.convolution import Convolution
from dr_keras.model.normalization import FusedBatchNormalization

LAST = "channels_last"  # whatever keras.json says

RESNET_BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}

# The triplet stage calls the embedding network three times per step, and each call updates the running statistics.
# The momentum of one call is therefore the cube root of the momentum that a step should have.
CALLS_PER_STEP = 3
STEP_MOMENTUM = 0.97


def set_calls_per_step(network: keras.Model, calls: int) -> None:
    """Sets the momentum with which `calls` calls update the running statistics as much as one step should.

    Args:
        network: The embedding network.
        calls: How often it is called in a training step.
    """
    for layer in network.layers:
        if isinstance(layer, FusedBatchNormalization):
            layer.momentum = STEP_MOMENTUM ** (1 / calls)


def backbone(
    name: str, image: keras.KerasTensor, full: int, *, width: int, dropout: float, stem_stride: int | None = None
) -> keras.KerasTensor:
    """Returns the features of the ConvNet path.

    Args:
        name: "alexnet", "resnet10", "resnet18" or "resnet34".
        image: Symbolic (B, H, W, 3), scaled to [-1, 1].
        full: The image size in pixels that the network is made for; the stem is the same for smaller images.
        width: Channels of the first stage of a ResNet.
        dropout: Dropout rate in the fully connected layers of AlexNet.
        stem_stride: Stride of the first convolution of a ResNet; by default 1 below 48 px, otherwise 2.

    Returns:
        Symbolic (B, F): F is 4096 for AlexNet and 8 * width for a ResNet.
    """
    if name == "alexnet":
        return _alexnet(image, full, dropout)
    return _resnet(image, full, RESNET_BLOCKS[name], width, stem_stride or (1 if full < 48 else 2))


def _alexnet(x: keras.KerasTensor, size: int, dropout: float) -> keras.KerasTensor:
    """Krizhevsky et al. 2012 up to its second 4096-d layer, without its two-GPU split and response normalization.

    From 128 px on, the first convolution is the original 11 x 11 / 4; below that it shrinks, so that the later layers
    still have an image to work on. The padding of 1 gives the original 55 x 55 at 225 px.
    """
    kernel, stride = (11, 4) if size >= 128 else (5, 2) if size >= 48 else (3, 1)
    x = layers.ZeroPadding2D(1, data_format=LAST)(x)
    x = _conv_relu(x, 96, kernel, stride, "conv1", padding="valid")  # (B, 55, 55, 96) at 225 px
    x = layers.MaxPooling2D(3, 2, data_format=LAST, name="pool1")(x)  # (B, 27, 27, 96)
    x = _conv_relu(x, 256, 5, 1, "conv2")
    x = layers.MaxPooling2D(3, 2, data_format=LAST, name="pool2")(x)  # (B, 13, 13, 256)
    x = _conv_relu(x, 384, 3, 1, "conv3")
    x = _conv_relu(x, 384, 3, 1, "conv4")
    x = _conv_relu(x, 256, 3, 1, "conv5")
    if x.shape[1] >= 3:
        x = layers.MaxPooling2D(3, 2, data_format=LAST, name="pool5")(x)  # (B, 6, 6, 256)
    x = layers.Flatten(LAST)(x)  # (B, 9216)
    for name in ("fc6", "fc7"):
        x = layers.Dense(4096, activation="relu", kernel_initializer="he_normal", name=name)(x)
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return x  # (B, 4096)


def _conv_relu(
    x: keras.KerasTensor, channels: int, kernel: int, stride: int, name: str, padding: str = "same"
) -> keras.KerasTensor:
    return layers.Conv2D(
        channels,
        kernel,
        stride,
        padding=padding,
        data_format=LAST,
        activation="relu",
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _resnet(
    x: keras.KerasTensor, size: int, blocks: tuple[int, ...], width: int, stem_stride: int
) -> keras.KerasTensor:
    """ResNet of basic blocks (He et al. 2015, table 1) with a stem that keeps the detail of small images.

    The stem is one 3 x 3 convolution, followed by max pooling from 128 px on. With stride 2 (1 below 48 px), the first
    stage works on about 32 x 32.
    """
    x = _conv_norm(x, width, 3, stem_stride, "stem")
    x = layers.Activation("relu", name="stem_relu")(x)
    if size >= 128:
        x = layers.MaxPooling2D(3, 2, padding="same", data_format=LAST, name="stem_pool")(x)
    for stage, count in enumerate(blocks):
        for block in range(count):
            x = _basic_block(x, width * 2**stage, 2 if stage and not block else 1, f"stage{stage + 1}_block{block + 1}")
    return layers.GlobalAveragePooling2D(data_format=LAST, name="pool")(x)  # (B, 8 * width)


def _basic_block(x: keras.KerasTensor, channels: int, stride: int, name: str) -> keras.KerasTensor:
    y = _conv_norm(x, channels, 3, stride, f"{name}_a")
    y = layers.Activation("relu", name=f"{name}_a_relu")(y)
    y = _conv_norm(y, channels, 3, 1, f"{name}_b")
    if stride > 1 or x.shape[-1] != channels:
        x = _conv_norm(x, channels, 1, stride, f"{name}_shortcut")
    x = layers.Add(name=f"{name}_add")([x, y])
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _conv_norm(x: keras.KerasTensor, channels: int, kernel: int, stride: int, name: str) -> keras.KerasTensor:
    x = Convolution(
        channels,
        kernel,
        stride,
        padding="same",
        data_format=LAST,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return FusedBatchNormalization(momentum=STEP_MOMENTUM ** (1 / CALLS_PER_STEP), name=f"{name}_norm")(x)
