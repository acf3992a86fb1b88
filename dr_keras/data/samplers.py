"""Draws indices, (query, positive, negative) or single images: pure NumPy, deterministic in (seed, global step).

The paper's triplet sampling (section 5.1) with uniform relevance and out-of-class negatives, as the assignment asks.
"""

from dataclasses import dataclass

import numpy as np

from dr_keras.errors import InputError

_ORDER, _PARTNERS, _IMAGES = 0, 1, 5  # which of the independent random streams


@dataclass(frozen=True)
class Triplets:
    """One batch: (B,) int64 rows, and the classes of query and negative side by side, (B, 2) int32."""

    query: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    classes: np.ndarray


class TripletSampler:
    """Draws the batch of any step, in any order, always the same.

    In an epoch each image whose class has a second one is the query once, in a fresh order; the last batch of an epoch
    is the smaller for it. Queries of one class stand together in groups, P classes x K images, where mining wants that;
    a class whose count is no multiple of K ends in a smaller group. The positive is uniform over the query's class
    without the query, the negative uniform over the images of all other classes. Each draw takes constant time.

    Args:
        labels: (N,) integers, the class of each training image.
        batch_size: triplets a step, at most.
        seed: seeds everything.
        images_per_class: K, the size of a group.

    Raises:
        InputError: fewer than two classes, or no class with two images.
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
        self._by_class = np.argsort(self._class, kind="stable")  # rows, class after class
        self._count = count
        self._start = np.cumsum(count) - count
        self._rank = np.empty_like(self._by_class)  # place of each row within its class
        self._rank[self._by_class] = np.arange(len(self.labels)) - np.repeat(self._start, count)
        self._queries = np.flatnonzero(count[self._class] > 1)
        self._order: tuple[int, np.ndarray] = (-1, self._queries)  # the epoch whose order was drawn last

    @property
    def steps_per_epoch(self) -> int:
        """The steps in which every query is drawn once."""
        return -(-len(self._queries) // self.batch_size)

    def batch(self, step: int) -> Triplets:
        """The triplets of global step `step`, counted from 0."""
        query = self._query_rows(step)  # (B,)
        own = self._class[query]  # (B,)
        random = np.random.default_rng((self.seed, _PARTNERS, step))

        place = random.integers(0, self._count[own] - 1)
        place += place >= self._rank[query]  # steps over the query
        positive = self._by_class[self._start[own] + place]

        place = random.integers(0, len(self.labels) - self._count[own])
        place += np.where(place >= self._start[own], self._count[own], 0)  # steps over the query's class
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
        """Puts queries of one class together in groups, and shuffles the groups."""
        order = order[np.argsort(self._class[order], kind="stable")]  # class after class, each in random order
        own = self._class[order]
        starts = np.flatnonzero(np.diff(own, prepend=-1))  # where each class begins
        counts = np.diff(np.append(starts, len(own)))
        place = np.arange(len(own)) - np.repeat(starts, counts)
        group = np.cumsum(place % self.images_per_class == 0) - 1
        return order[np.argsort(random.permutation(group[-1] + 1)[group], kind="stable")]


class ImageSampler:
    """Draws the batch of any step, each image once an epoch, in a fresh order; the last batch is the smaller for it.

    Args:
        count: how many images there are.
        batch_size: images a step, at most.
        seed: seeds everything.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        self._count = count
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))  # the epoch whose order was drawn last

    @property
    def steps_per_epoch(self) -> int:
        """The steps in which every image is drawn once."""
        return -(-self._count // self.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """(B,) int64: the images of global step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        drawn, order = self._order
        if drawn != epoch:
            order = np.random.default_rng((self.seed, _IMAGES, epoch)).permutation(self._count)
            self._order = (epoch, order)
        return order[place * self.batch_size : (place + 1) * self.batch_size]
