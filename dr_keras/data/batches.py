"""Feeds training: global steps in, one dict of named inputs a batch out, by tf.data.

A dict and not a tuple, because `fit` takes a tuple of three for inputs, targets and weights.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np

from dr_keras.data import augment_pillow as augment
from dr_keras.data.augmentation_draws import Augmentation
from dr_keras.data.pixel_store import Images
from dr_keras.data.samplers import ImageSampler, TripletSampler

if TYPE_CHECKING:
    import tensorflow as tf

AHEAD = 3  # batches that are made before they are asked for
THREADS = 2

BRANCHES = ("query", "positive", "negative")

# Streams of random numbers; the samplers use 0, 1 and 5, the branches of triplets 2 to 4.
_BRANCH, _IMAGE, _MIX = 2, 6, 7

Signature = dict[str, tuple[tuple[int | None, ...], str]]  # name: shape and dtype


@dataclass(frozen=True)
class Share:
    """Where several hosts share a global batch, which part of it this one makes.

    Attributes:
        host, hosts: this one, of how many.
        multiple: the global batch is filled up to a multiple of this with its own first elements, so that it can be
            shared out over as many devices.
    """

    host: int = 0
    hosts: int = 1
    multiple: int = 1

    def of(self, count: int) -> tuple[np.ndarray, slice]:
        """Which of `count` elements make up the global batch, and which part of those is this host's."""
        chosen = np.arange(-(-count // self.multiple) * self.multiple) % count
        share = len(chosen) // self.hosts
        return chosen, slice(self.host * share, (self.host + 1) * share)


class Augmenter(Protocol):
    """Takes images out of a store and changes them: `dr_keras.data.augment_pillow`, or `on_device` beside it."""

    def augmented(
        self,
        pixels: Any,
        rows: np.ndarray,
        how: Augmentation,
        *,
        size: int | None = None,
        seed: tuple[int, ...] = (),
        part: slice = ...,
    ) -> Any: ...

    def mixed(
        self, images: Any, *, mixup: float, cutmix: float, seed: tuple[int, ...]
    ) -> tuple[Any, np.ndarray, np.ndarray]: ...


class Source(Protocol):
    """Makes the batch of any global step."""

    @property
    def signature(self) -> Signature: ...

    @property
    def steps_per_epoch(self) -> int: ...

    def batch(self, step: int) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class TripletSource:
    """Batches of the triplet stage: indices from the sampler, pixels from the store, augmented.

    A batch holds `query`, `positive`, `negative`, (B, S, S, 3) uint8, and `classes`, (B, 2) int32: the query's class
    and the negative's.

    Attributes:
        pixels: (N, H, W, 3) uint8, the images of all splits.
        rows: (n,) which of them are training images.
        sampler: draws among those n.
        augmentation: what is done to each image.
        size: the side S of the images; as in the store by default.
        share: which part of a batch this host makes.
        begin: the global step that the stage begins with; the sampler's epochs are counted from there.
        augmenter: what takes the images out of `pixels` and augments them.
    """

    pixels: Images
    rows: np.ndarray
    sampler: TripletSampler
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - frozen
    size: int | None = None
    share: Share = Share()
    begin: int = 0
    augmenter: Augmenter = augment

    @property
    def signature(self) -> Signature:
        side = self.size or self.pixels.shape[1]
        width = self.size or self.pixels.shape[2]
        images: Signature = dict.fromkeys(BRANCHES, ((None, side, width, 3), "uint8"))
        return images | {"classes": ((None, 2), "int32")}

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.steps_per_epoch

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The named inputs of global step `step`; a pure function of the sampler's seed and of `step`."""
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
        return batch | {"classes": triplets.classes[chosen[part]]}


@dataclass(frozen=True)
class ImageSource:
    """Batches of the softmax stage.

    A batch holds `image`, (B, S, S, 3) uint8; `label` and `other`, (B,) int32, its class and the class of what is mixed
    into it; and `share`, (B,) float32, how much of it is of its own class. Images are mixed with others of the part of
    the batch that their own host makes.

    Attributes:
        pixels: (N, H, W, 3) uint8, the images of all splits.
        rows: (n,) which of them are training images.
        labels: (n,) their classes.
        sampler: draws among those n.
        augmentation: what is done to each image.
        mixup, cutmix: see `dr_keras.data.augment_pillow.mixed`.
        size: the side S of the images; as in the store by default.
        share: which part of a batch this host makes.
        begin: the global step that the stage begins with; the sampler's epochs are counted from there.
        augmenter: what takes the images out of `pixels` and augments them.
    """

    pixels: Images
    rows: np.ndarray
    labels: np.ndarray
    sampler: ImageSampler
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - frozen
    mixup: float = 0.0
    cutmix: float = 0.0
    size: int | None = None
    share: Share = Share()
    begin: int = 0
    augmenter: Augmenter = augment

    @property
    def signature(self) -> Signature:
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
        return self.sampler.steps_per_epoch

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The named inputs of global step `step`; a pure function of the sampler's seed, of `step` and of the host."""
        drawn, seed = self.sampler.batch(step - self.begin), self.sampler.seed
        chosen, part = self.share.of(len(drawn))
        places = drawn[chosen]
        images = self.augmenter.augmented(
            self.pixels, self.rows[places], self.augmentation, size=self.size, seed=(seed, _IMAGE, step), part=part
        )
        labels = self.labels[places[part]].astype(np.int32)
        others, own = labels, np.ones(len(labels), np.float32)
        if self.mixup or self.cutmix:
            mix_seed = (seed, _MIX, step, self.share.host)
            images, partner, own = self.augmenter.mixed(images, mixup=self.mixup, cutmix=self.cutmix, seed=mix_seed)
            others = labels[partner]
        return {"image": images, "label": labels, "other": others, "share": own}


def dataset(source: Source, first_step: int, last_step: int) -> "tf.data.Dataset":
    """The batches of the steps from `first_step` up to, not including, `last_step`, made ahead of their use."""
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
    options.threading.private_threadpool_size = 1  # one thread keeps up; more would take turns with the network's
    options.autotune.enabled = False  # there is nothing to tune
    return tf.data.Dataset.range(first_step, last_step).map(load).prefetch(2).with_options(options)


class BatchSequence(keras.utils.PyDataset):
    """The batches of the steps from `first_step` up to, not including, `last_step`, in order.

    The threads are its own and not those of Keras (`workers`): Keras 3.15 looks at a first batch before it begins, and
    its threads then go on behind that one.
    """

    def __init__(self, source: Source, first_step: int, last_step: int) -> None:
        super().__init__()
        self._source, self._first, self._count = source, first_step, last_step - first_step
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[int, Future[dict[str, Any]]] = {}

    @property
    def num_batches(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, "batches")
        for number in range(index, min(index + 1 + AHEAD, self._count)):
            if number not in self._begun:
                self._begun[number] = self._pool.submit(self._source.batch, self._first + number)
        return self._begun.pop(index).result()

    def on_epoch_end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool, self._begun = None, {}


def batches(source: Source, first_step: int, last_step: int) -> Any:
    """What `fit` takes for these steps: a tf.data dataset on TensorFlow, a `BatchSequence` on JAX and torch."""
    if keras.backend.backend() == "tensorflow":
        return dataset(source, first_step, last_step)
    return BatchSequence(source, first_step, last_step)
