"""Samples triplets (query, positive, negative) or single images: pure functions of the seed and the global step.

Triplets are sampled as in section 5.1 of Wang et al. 2014, with uniform relevance and negatives of other classes.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dr_keras.errors import InputError

_ORDER, _PARTNERS, _IMAGES = 0, 1, 5  # independent random streams


@dataclass(frozen=True)
class Triplets:
    """A batch of triplets.

    Attributes:
        query, positive, negative: (B,) int64, rows.
        classes: (B, 2) int32, the class of the query and that of the negative.
        weights: (B,) float32, by which their losses are multiplied; None if all are 1.
    """

    query: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    classes: np.ndarray
    weights: np.ndarray | None = None


class Sampler(Protocol):
    """Samples the triplets of any step, in any order of steps."""

    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of an epoch."""

    def batch(self, step: int) -> Triplets:
        """Returns the triplets of global step `step`, counted from 0."""


class TripletSampler:
    """Samples the triplets of any step, in any order of steps.

    In an epoch, each image whose class has a second image is the query once, in a new random order; the last batch of
    an epoch may be smaller. For mining, the queries can be grouped as P classes x K images; a class whose count is not
    a multiple of K ends in a smaller group. The positive is uniform over the other images of the query's class, and the
    negative is uniform over the images of all other classes. Each draw takes constant time.

    Args:
        labels: (N,) integers, the class of each training image.
        batch_size: The number of triplets per step, at most.
        seed: Seeds everything.
        images_per_class: K, the size of a group.

    Raises:
        InputError: There are fewer than two classes, or no class has two images.

    Example:
        >>> sampler = TripletSampler(np.array([0, 0, 1]), batch_size=2, seed=0)
        >>> sampler.batch(0).negative
        array([2, 2])
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int, images_per_class: int = 1) -> None:
        self.labels = np.asarray(labels)
        self.batch_size = batch_size
        self.seed = seed
        self.images_per_class = images_per_class
        classes, self._class, count = np.unique(self.labels, return_inverse=True, return_counts=True)
        if len(classes) < 2:
            raise InputError(
                f"the training images have {len(classes)} class; a negative needs a second one, so add a class folder"
            )
        if count.max() < 2:
            raise InputError(
                "no class has two training images; a positive needs a second one, so add images to a class folder"
            )
        self._by_class = np.argsort(self._class, kind="stable")  # rows, class by class
        self._count = count
        self._start = np.cumsum(count) - count
        self._rank = np.empty_like(self._by_class)  # position of each row within its class
        self._rank[self._by_class] = np.arange(len(self.labels)) - np.repeat(self._start, count)
        self._queries = np.flatnonzero(count[self._class] > 1)
        self._order: tuple[int, np.ndarray] = (-1, self._queries)  # the latest epoch and its order

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in which every query is drawn once."""
        return -(-len(self._queries) // self.batch_size)

    def batch(self, step: int) -> Triplets:
        """Returns the triplets of global step `step`, counted from 0."""
        query = self._query_rows(step)  # (B,)
        own = self._class[query]  # (B,)
        random = np.random.default_rng((self.seed, _PARTNERS, step))

        place = random.integers(0, self._count[own] - 1)
        place += place >= self._rank[query]  # skips the query
        positive = self._by_class[self._start[own] + place]

        place = random.integers(0, len(self.labels) - self._count[own])
        place += np.where(place >= self._start[own], self._count[own], 0)  # skips the query's class
        negative = self._by_class[place]

        classes = np.stack([self.labels[query], self.labels[negative]], axis=1).astype(np.int32)
        return Triplets(query, positive, negative, classes)

    def _query_rows(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch_order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def _epoch_order(self, number: int) -> np.ndarray:
        drawn, order = self._order
        if drawn != number:
            random = np.random.default_rng((self.seed, _ORDER, number))
            order = random.permutation(self._queries)
            if self.images_per_class > 1:
                order = self._grouped(order, random)
            self._order = (number, order)
        return order

    def _grouped(self, order: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Groups queries of the same class, and shuffles the groups."""
        order = order[np.argsort(self._class[order], kind="stable")]  # class by class, each in random order
        own = self._class[order]
        starts = np.flatnonzero(np.diff(own, prepend=-1))  # where each class begins
        counts = np.diff(np.append(starts, len(own)))
        place = np.arange(len(own)) - np.repeat(starts, counts)
        group = np.cumsum(place % self.images_per_class == 0) - 1
        return order[np.argsort(random.permutation(group[-1] + 1)[group], kind="stable")]


class ImageSampler:
    """Samples the images of any step, in any order of steps.

    In an epoch, each image is drawn once, in a new random order; the last batch of an epoch may be smaller.

    Args:
        count: The number of images.
        batch_size: The number of images per step, at most.
        seed: Seeds everything.

    Example:
        >>> sorted(ImageSampler(count=3, batch_size=3, seed=0).batch(0).tolist())
        [0, 1, 2]
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        self._count = count
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))  # the latest epoch and its order

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in which every image is drawn once."""
        return -(-self._count // self.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """Returns the rows (B,) int64 of global step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        drawn, order = self._order
        if drawn != epoch:
            order = np.random.default_rng((self.seed, _IMAGES, epoch)).permutation(self._count)
            self._order = (epoch, order)
        return order[place * self.batch_size : (place + 1) * self.batch_size]
