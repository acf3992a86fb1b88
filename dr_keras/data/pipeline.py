"""Feeds training: global steps in, one dict of named inputs a batch out, by tf.data.

The dict holds `query`, `positive`, `negative`, (B, H, W, 3) uint8, and `classes`, (B, 2) int32: the query's class and
the negative's. A dict and not a tuple, because `fit` takes a tuple of three for inputs, targets and weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dr_keras.data.augment import gather
from dr_keras.data.pixels import Images
from dr_keras.data.triplets import TripletSampler

if TYPE_CHECKING:
    import tensorflow as tf

BRANCHES = ("query", "positive", "negative")


@dataclass(frozen=True)
class TripletSource:
    """Makes the batch of any global step: the indices from the sampler, the pixels from the store, augmented.

    Attributes:
        pixels: (N, H, W, 3) uint8, the images of all splits.
        rows: (n,) which of them are training images.
        sampler: draws among those n.
        flip, shift: the augmentation, see `dr_keras.data.augment.gather`.
        host, hosts: where several hosts share a global batch, which part of it this one makes.
        multiple: the global batch is filled up to a multiple of this with its own first triplets, so that it can be
            shared out over as many devices.
    """

    pixels: Images
    rows: np.ndarray
    sampler: TripletSampler
    flip: bool = False
    shift: int = 0
    host: int = 0
    hosts: int = 1
    multiple: int = 1

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The named inputs of global step `step`; a pure function of the sampler's seed and of `step`."""
        triplets = self.sampler.batch(step)
        count = len(triplets.query)
        chosen = np.arange(-(-count // self.multiple) * self.multiple) % count
        share = len(chosen) // self.hosts
        part = slice(self.host * share, (self.host + 1) * share)
        batch = {
            name: gather(
                self.pixels,
                self.rows[getattr(triplets, name)[chosen]],
                part=part,
                flip=self.flip,
                shift=self.shift,
                seed=(self.sampler.seed, 2 + branch, step),  # the sampler itself uses the streams 0 and 1
            )
            for branch, name in enumerate(BRANCHES)
        }
        return batch | {"classes": triplets.classes[chosen[part]]}


def triplet_dataset(source: TripletSource, first_step: int, last_step: int) -> "tf.data.Dataset":
    """The batches of the steps from `first_step` up to, not including, `last_step`, made ahead of their use."""
    import tensorflow as tf

    height, width = source.pixels.shape[1:3]
    shapes = dict.fromkeys(BRANCHES, (None, height, width, 3)) | {"classes": (None, 2)}
    types = [tf.uint8] * 3 + [tf.int32]

    def make(step: np.ndarray) -> list[np.ndarray]:
        batch = source.batch(int(step))
        return [batch[name] for name in shapes]

    def load(step: "tf.Tensor") -> dict[str, "tf.Tensor"]:
        tensors = tf.numpy_function(make, [step], types, stateful=False)
        return {
            name: tf.ensure_shape(tensor, shape) for (name, shape), tensor in zip(shapes.items(), tensors, strict=True)
        }

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # one thread keeps up; more would take turns with the network's
    options.autotune.enabled = False  # there is nothing to tune
    return tf.data.Dataset.range(first_step, last_step).map(load).prefetch(2).with_options(options)
