"""The triplet sampling layer of Wang et al. 2014, section 5.1: triplets drawn by the relevance of their images."""

from dataclasses import dataclass

import numpy as np

from dr_keras.data.relevance import Relevance
from dr_keras.data.samplers import Triplets
from dr_keras.errors import InputError

_DRAWS, _KEYS = 8, 9  # random streams


@dataclass(frozen=True)
class _Buffers:
    """The images of each class among which queries, positives and in-class negatives are drawn.

    Attributes:
        number: The number of the round in which they are used.
        rows: (n,) the images, class by class, ascending within each.
        start: (C + 1,) where the images of each class begin.
        chance: (n,) float64, the cumulative probability of each image to be the query.
        weight: (n,) float64, by what the relevance to a query is multiplied to draw an image as its partner.
    """

    number: int
    rows: np.ndarray
    start: np.ndarray
    chance: np.ndarray
    weight: np.ndarray


class RelevanceSampler:
    """Samples triplets by relevance, in any order of steps: a pure function of the seed and the step.

    - A query is drawn with a probability proportional to its total relevance r_i (eq. 6).
    - A positive is drawn with a probability proportional to min(T_p, r_ij) (eq. 7).
    - A negative is, with probability `out_of_class`, any image of another class. Otherwise it is drawn like a positive,
      and both are drawn again until r_i+ - r_i- >= T_r (eq. 8). That is done without a loop, by drawing from the
      distribution that is left. If no pair of images satisfies the bound, the negative is of another class.

    Classes of up to `buffer` images are drawn from exactly. Of larger ones, as many as that are kept at a time, in
    the online form of the paper: image j has the key u^(1/r_j) with u uniform, and those of the largest keys are what
    a weighted reservoir that sees all images once would hold. From it, queries are uniform, and positives are accepted
    with a probability proportional to min(T_p, r_ij) / r_j. The keys are drawn anew for each round, which has about as
    many queries as all buffers have images.

    Args:
        labels: (N,) integers, the class of each training image.
        relevance: The relevance of these images.
        batch_size: The number of triplets per step.
        seed: Seeds everything.
        out_of_class: The share of negatives of other classes, from 0 to 1.
        positive_bound: T_p, above 0.
        gap: T_r, above 0.
        buffer: The number of images that are kept of each class, at least 2.

    Raises:
        InputError: There are fewer than two classes, or no two images of a class are relevant to each other.
    """

    def __init__(
        self,
        labels: np.ndarray,
        relevance: Relevance,
        batch_size: int,
        seed: int,
        *,
        out_of_class: float = 1.0,
        positive_bound: float = 1.0,
        gap: float = 0.1,
        buffer: int = 1024,
    ) -> None:
        self.labels = np.asarray(labels)
        self.batch_size = batch_size
        self.seed = seed
        self._relevance = relevance
        self._out_of_class, self._bound, self._gap, self._capacity = out_of_class, positive_bound, gap, buffer
        classes, self._class, count = np.unique(self.labels, return_inverse=True, return_counts=True)
        if len(classes) < 2:
            raise InputError(
                f"the training images have {len(classes)} class; a negative needs a second one, so add a class folder"
            )
        totals = relevance.totals
        self._usable = np.flatnonzero(totals > 0)
        if not len(self._usable):
            raise InputError("no two training images of a class are relevant to each other, so there are no positives")
        self._by_class = np.argsort(self._class, kind="stable")  # rows, class by class
        self._count = count
        self._start = np.cumsum(count) - count
        usable = np.bincount(self._class[self._usable], minlength=len(classes))
        self._whole = usable <= buffer  # classes that are drawn from exactly
        self._share = np.bincount(self._class, totals, minlength=len(classes)) / totals.sum()
        kept = int(np.minimum(usable, buffer).sum())
        self._steps_per_round = max(1, kept // batch_size)
        self._buffers: _Buffers | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps that draw as many queries as there are images with relevant partners."""
        return -(-len(self._usable) // self.batch_size)

    def batch(self, step: int) -> Triplets:
        """Returns the triplets of global step `step`, counted from 0."""
        buffers = self._round(step)
        random = np.random.default_rng((self.seed, _DRAWS, step))
        # u < 1 and the last cumulative probability is 1, up to rounding.
        place = np.searchsorted(buffers.chance, random.random(self.batch_size), side="right")
        query = buffers.rows[np.minimum(place, len(buffers.rows) - 1)]
        outside = random.random(self.batch_size) < self._out_of_class
        draws = random.random((self.batch_size, 2))
        other = self._of_other_classes(query, random)
        positive, negative = np.empty_like(query), np.empty_like(query)
        for number, row in enumerate(query.tolist()):
            found = None if outside[number] else self._pair(row, draws[number], buffers)
            positive[number], negative[number] = found or (self._positive(row, draws[number], buffers), other[number])
        classes = np.stack([self.labels[query], self.labels[negative]], axis=1).astype(np.int32)
        return Triplets(query, positive, negative, classes)

    def _round(self, step: int) -> _Buffers:
        number = 0 if self._whole.all() else step // self._steps_per_round
        buffers = self._buffers
        if buffers is None or buffers.number != number:
            buffers = self._drawn(number)
            self._buffers = buffers
        return buffers

    def _drawn(self, number: int) -> _Buffers:
        totals = self._relevance.totals
        rows = self._usable
        if not self._whole.all():
            uniform = 1 - np.random.default_rng((self.seed, _KEYS, number)).random(len(self.labels))  # in (0, 1]
            keys = np.log(uniform)
            rows = largest_keys(rows, self._class[rows], keys[rows] / totals[rows], self._capacity)  # log u^(1/r)
        rows = rows[np.argsort(self._class[rows], kind="stable")]
        own = self._class[rows]
        whole = self._whole[own]
        held = np.bincount(own, minlength=len(self._count))
        chance = np.where(whole, totals[rows] / totals.sum(), self._share[own] / held[own])
        return _Buffers(
            number=number,
            rows=rows,
            start=np.concatenate([[0], np.cumsum(held)]),
            chance=np.cumsum(chance),
            weight=np.where(whole, 1.0, 1 / totals[rows]),
        )

    def _partners(self, query: int, buffers: _Buffers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The images to draw partners of a query from, their relevance, and their weights."""
        own = self._class[query]
        part = slice(buffers.start[own], buffers.start[own + 1])
        rows = buffers.rows[part]
        relevance = self._relevance.row(query, rows)
        return rows, relevance, np.minimum(self._bound, relevance) * buffers.weight[part]

    def _positive(self, query: int, draws: np.ndarray, buffers: _Buffers) -> int:
        rows, _, weights = self._partners(query, buffers)
        if not weights.any():  # the partners of the query are not in the buffer, but there are some
            own = self._class[query]
            rows = self._by_class[self._start[own] : self._start[own] + self._count[own]]
            weights = np.minimum(self._bound, self._relevance.row(query, rows))
        return int(rows[_choice(weights, draws[0])])

    def _pair(self, query: int, draws: np.ndarray, buffers: _Buffers) -> tuple[int, int] | None:
        """A positive and an in-class negative that keep the bound; None if there are none."""
        rows, relevance, weights = self._partners(query, buffers)
        order = np.argsort(relevance, kind="stable")
        rows, relevance, weights = rows[order], relevance[order], weights[order]
        below = np.searchsorted(relevance, relevance - self._gap, side="right")  # negatives for each positive
        accepted = weights * np.concatenate([[0.0], np.cumsum(weights)])[below]
        if not accepted.any():
            return None
        positive = _choice(accepted, draws[0])
        return int(rows[positive]), int(rows[_choice(weights[: below[positive]], draws[1])])

    def _of_other_classes(self, query: np.ndarray, random: np.random.Generator) -> np.ndarray:
        own = self._class[query]
        place = random.integers(0, len(self.labels) - self._count[own])
        place += np.where(place >= self._start[own], self._count[own], 0)  # skips the query's class
        return self._by_class[place]


def largest_keys(rows: np.ndarray, classes: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """Returns the rows that have the `count` largest keys of their class: what a weighted reservoir ends with.

    Args:
        rows: (n,) rows.
        classes: (n,) the class of each.
        keys: (n,) the key of each.
        count: How many to keep of each class, at most.

    Returns:
        Rows, ascending.

    Example:
        >>> largest_keys(np.array([4, 5, 6, 7]), np.array([0, 0, 0, 1]), np.array([0.1, 0.3, 0.2, 0.5]), 2)
        array([5, 6, 7])
    """
    order = np.lexsort((-keys, classes))
    ordered = classes[order]
    rank = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return np.sort(rows[order[rank < count]])


def _choice(weights: np.ndarray, draw: float) -> int:
    """The place whose share of the weights a uniform draw falls into."""
    total = np.cumsum(weights)
    place = int(np.searchsorted(total, draw * total[-1], side="right"))
    return min(place, int(np.flatnonzero(weights)[-1]))  # where rounding has led past the last one
