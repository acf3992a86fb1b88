"""What makes the batches of each stage of a run."""

from dataclasses import replace

import numpy as np

from dr_keras.config import Config
from dr_keras.data import augment_pillow as augment
from dr_keras.data.augmentation_draws import Augmentation
from dr_keras.data.batches import Augmenter, ImageSource, Share, TripletSource
from dr_keras.data.pixel_store import Pixels, StreamedImages
from dr_keras.data.samplers import ImageSampler, Sampler, TripletSampler
from dr_keras.errors import InputError
from dr_keras.training.phases import SOFTMAX, TRIPLETS


def training_sources(
    config: Config,
    pixels: Pixels,
    rows: np.ndarray,
    labels: np.ndarray,
    share: Share,
    sampler: Sampler | None = None,
) -> dict[str, TripletSource | ImageSource]:
    """Returns what makes the batches of each stage; a step of either passes equally many images through the network.

    On the device, incomplete batches are padded with their own first elements, because JAX compiles a network for each
    shape.

    Args:
        config: The settings.
        pixels: The pixels of all images.
        rows: (n,) rows of the training images in `pixels`.
        labels: (n,) classes of the training images.
        share: The part of each batch that this host computes.
        sampler: Draws the triplets; uniformly by default.

    Raises:
        InputError: There are too many images to store them on the device.
    """
    count, whole = config.batch_size, False
    augmenter: Augmenter = augment
    if config.store == "device":
        from dr_keras.data import augment_jax as on_device

        if isinstance(pixels, StreamedImages):
            raise InputError("--store device needs all images in memory, but they do not fit; use --store stream")
        pixels, augmenter, whole = on_device.to_device(pixels), on_device, True
    full = Augmentation(config.flip, config.shift, config.crop, config.color, config.operations, config.erase)
    gentle = Augmentation(config.flip, config.shift)  # the last epochs see images as search does (docs/quality.md)
    triplets = sampler or TripletSampler(labels, count, config.seed, config.images_per_class)
    images = ImageSampler(len(rows), 3 * count, config.seed)
    softmax_steps = config.softmax_epochs * (config.steps_per_epoch or images.steps_per_epoch)
    triplet_epochs = config.epochs - config.softmax_epochs
    all_steps = softmax_steps + triplet_epochs * (config.steps_per_epoch or triplets.steps_per_epoch)

    def part(batch: int) -> Share:
        return replace(share, multiple=batch) if whole else share

    return {
        TRIPLETS: TripletSource(
            pixels,
            rows,
            triplets,
            gentle,
            share=part(count),
            augmenter=augmenter,
            weighted=bool(config.triplets),
        ),
        SOFTMAX: ImageSource(
            pixels,
            rows,
            labels,
            images,
            full,
            mixup=config.mixup,
            cutmix=config.cutmix,
            plain_steps=round(config.strong_after * all_steps),
            share=part(3 * count),
            augmenter=augmenter,
        ),
    }
