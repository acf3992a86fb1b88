"""Batches for training: a pure function of the global step, fed by tf.data or by `keras.utils.PyDataset`.

A batch is a dict of named inputs rather than a tuple, because `fit` would take a tuple of three for inputs, targets and
weights.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np

from dr_keras.data import augment_pillow as augment
from dr_keras.data.augmentation_draws import Augmentation
from dr_keras.data.pixel_store import Pixels
from dr_keras.data.samplers import ImageSampler, Sampler

if TYPE_CHECKING:
    import tensorflow as tf

PREFETCHED_BATCHES = 3  # prepared before they are requested
THREADS = 2

BRANCHES = ("query", "positive", "negative")

# Random streams; the samplers use 0, 1 and 5, the branches of triplets 2 to 4.
_BRANCH, _IMAGE, _MIX = 2, 6, 7

Signature = dict[str, tuple[tuple[int | None, ...], str]]
"""The shape and the dtype of each input, by name."""


@dataclass(frozen=True)
class Share:
    """The part of a global batch that this host makes, if several hosts share it.

    Attributes:
        host: The number of this host.
        hosts: The number of hosts.
        multiple: The global batch is padded to a multiple of this with its own first elements, so that it can be
            divided among that many devices.

    Example:
        >>> chosen, part = Share(host=1, hosts=2, multiple=4).of(6)
        >>> chosen[part]
        array([4, 5, 0, 1])
    """

    host: int = 0
    hosts: int = 1
    multiple: int = 1

    def of(self, count: int) -> tuple[np.ndarray, slice]:
        """Returns which of `count` elements make up the global batch, and the part of them for this host."""
        chosen = np.arange(-(-count // self.multiple) * self.multiple) % count
        share = len(chosen) // self.hosts
        return chosen, slice(self.host * share, (self.host + 1) * share)


class Augmenter(Protocol):
    """A module that gathers and augments images: `dr_keras.data.augment_pillow` or `dr_keras.data.augment_jax`."""

    def augmented(
        self,
        pixels: Any,
        rows: np.ndarray,
        how: Augmentation,
        *,
        size: int | None = None,
        seed: tuple[int, ...] = (),
        part: slice = ...,
    ) -> Any:
        """Gathers images from a store and augments them."""

    def mixed(
        self, images: Any, *, mixup: float, cutmix: float, seed: tuple[int, ...]
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Mixes some images of a batch with others."""


class Source(Protocol):
    """Makes the batch of any global step."""

    @property
    def signature(self) -> Signature:
        """The shape and dtype of each input."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in which every query or image is drawn once."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the named inputs of global step `step`."""


@dataclass(frozen=True)
class TripletSource:
    """Makes the batches of the triplet stage: augmented images of triplets that a sampler draws.

    A batch consists of `query`, `positive`, and `negative`, (B, S, S, 3) uint8, and `classes`, (B, 2) int32, the class
    of the query and that of the negative; with `weighted`, also of `weights`, (B,) float32.

    Attributes:
        pixels: (N, H, W, 3) uint8, the images of all splits.
        rows: (n,) the rows of the training images.
        sampler: Draws from these n images.
        augmentation: The augmentation of each image.
        size: The side S of the images in pixels; as in the store by default.
        share: The part of a batch that this host makes.
        begin: The first global step of the stage, from which the sampler's epochs are counted.
        augmenter: Gathers the images from `pixels` and augments them.
        weighted: Whether its triplets have weights.
    """

    pixels: Pixels
    rows: np.ndarray
    sampler: Sampler
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - frozen
    size: int | None = None
    share: Share = Share()
    begin: int = 0
    augmenter: Augmenter = augment
    weighted: bool = False

    @property
    def signature(self) -> Signature:
        """The shape and the dtype of each input."""
        side = self.size or self.pixels.shape[1]
        width = self.size or self.pixels.shape[2]
        images: Signature = dict.fromkeys(BRANCHES, ((None, side, width, 3), "uint8"))
        weights: Signature = {"weights": ((None,), "float32")} if self.weighted else {}
        return images | {"classes": ((None, 2), "int32")} | weights

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in which every query or image is drawn once."""
        return self.sampler.steps_per_epoch

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the named inputs of global step `step`, a pure function of the sampler's seed and of `step`."""
        triplets = self.sampler.batch(step - self.begin)
        chosen, part = self.share.of(len(triplets.query))
        batch = {
            name: self.augmenter.augmented(
                self.pixels,
                self.rows[getattr(triplets, name)[chosen]],
                self.augmentation,
                size=self.size,
                seed=(self.sampler.seed, _BRANCH + branch, step),
                part=part,
            )
            for branch, name in enumerate(BRANCHES)
        }
        if triplets.weights is not None:
            batch["weights"] = triplets.weights[chosen[part]]
        return batch | {"classes": triplets.classes[chosen[part]]}


@dataclass(frozen=True)
class ImageSource:
    """Makes the batches of the softmax stage: augmented single images, some of them mixed with each other.

    A batch consists of `image`, (B, S, S, 3) uint8; `label` and `other`, (B,) int32, its class and that of the image
    mixed into it; and `share`, (B,) float32, the share of its own class. Images are mixed only with others on the same
    host.

    Attributes:
        pixels: (N, H, W, 3) uint8, the images of all splits.
        rows: (n,) the rows of the training images.
        labels: (n,) their classes.
        sampler: Draws from these n images.
        augmentation: The augmentation of each image.
        mixup, cutmix: As for `dr_keras.data.augmentation_draws.draw_mixing`.
        plain_steps: The number of first steps without random operations, erasing and mixing.
        size: The side S of the images in pixels; as in the store by default.
        share: The part of a batch that this host makes.
        begin: The first global step of the stage, from which the sampler's epochs are counted.
        augmenter: Gathers the images from `pixels` and augments them.
    """

    pixels: Pixels
    rows: np.ndarray
    labels: np.ndarray
    sampler: ImageSampler
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - frozen
    mixup: float = 0.0
    cutmix: float = 0.0
    plain_steps: int = 0
    size: int | None = None
    share: Share = Share()
    begin: int = 0
    augmenter: Augmenter = augment

    @property
    def signature(self) -> Signature:
        """The shape and the dtype of each input."""
        side = self.size or self.pixels.shape[1]
        width = self.size or self.pixels.shape[2]
        return {
            "image": ((None, side, width, 3), "uint8"),
            "label": ((None,), "int32"),
            "other": ((None,), "int32"),
            "share": ((None,), "float32"),
        }

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in which every query or image is drawn once."""
        return self.sampler.steps_per_epoch

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the named inputs of global step `step`, a function of the sampler's seed, the step, and the host."""
        within, seed = step - self.begin, self.sampler.seed
        drawn = self.sampler.batch(within)
        plain = within < self.plain_steps
        augmentation = replace(self.augmentation, operations=0, erase=0.0) if plain else self.augmentation
        chosen, part = self.share.of(len(drawn))
        places = drawn[chosen]
        images = self.augmenter.augmented(
            self.pixels, self.rows[places], augmentation, size=self.size, seed=(seed, _IMAGE, step), part=part
        )
        labels = self.labels[places[part]].astype(np.int32)
        others, own = labels, np.ones(len(labels), np.float32)
        if not plain and (self.mixup or self.cutmix):
            mix_seed = (seed, _MIX, step, self.share.host)
            images, partner, own = self.augmenter.mixed(images, mixup=self.mixup, cutmix=self.cutmix, seed=mix_seed)
            others = labels[partner]
        return {"image": images, "label": labels, "other": others, "share": own}


def dataset(source: Source, first_step: int, last_step: int) -> "tf.data.Dataset":
    """Returns batches prefetched by tf.data.

    Args:
        source: Makes the batches.
        first_step: The first global step.
        last_step: The last global step, exclusive.
    """
    import tensorflow as tf

    signature = source.signature
    types = [tf.as_dtype(dtype) for _, dtype in signature.values()]

    def make(step: np.ndarray) -> list[np.ndarray]:
        batch = source.batch(int(step))
        return [batch[name] for name in signature]

    def load(step: "tf.Tensor") -> dict[str, "tf.Tensor"]:
        tensors = tf.numpy_function(make, [step], types, stateful=False)
        return {
            name: tf.ensure_shape(tensor, shape)
            for (name, (shape, _)), tensor in zip(signature.items(), tensors, strict=True)
        }

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # one thread keeps up; more would compete with the network's threads
    options.autotune.enabled = False  # there is nothing to tune
    return tf.data.Dataset.range(first_step, last_step).map(load).prefetch(2).with_options(options)


class BatchSequence(keras.utils.PyDataset):
    """The batches of consecutive steps, in order.

    It uses its own threads rather than those of Keras (`workers`), because Keras 3.15 requests a first batch before it
    starts its threads, which would then continue after that batch.

    Args:
        source: Makes the batches.
        first_step: The first global step.
        last_step: The last global step, exclusive.
    """

    def __init__(self, source: Source, first_step: int, last_step: int) -> None:
        super().__init__()
        self._source, self._first, self._count = source, first_step, last_step - first_step
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[int, Future[dict[str, Any]]] = {}

    @property
    def num_batches(self) -> int:
        """The number of batches."""
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, "batches")
        for number in range(index, min(index + 1 + PREFETCHED_BATCHES, self._count)):
            if number not in self._begun:
                self._begun[number] = self._pool.submit(self._source.batch, self._first + number)
        return self._begun.pop(index).result()

    def on_epoch_end(self) -> None:
        """Stops the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool, self._begun = None, {}


def batches(source: Source, first_step: int, last_step: int) -> Any:
    """Returns batches in the form that `fit` expects.

    Args:
        source: Makes the batches.
        first_step: The first global step.
        last_step: The last global step, exclusive.

    Returns:
        A tf.data dataset with TensorFlow, a `BatchSequence` with JAX and PyTorch.
    """
    if keras.backend.backend() == "tensorflow":
        return dataset(source, first_step, last_step)
    return BatchSequence(source, first_step, last_step)
