"""People's judgments of similarity: is a query more like its positive or its negative?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_keras.data.samplers import Triplets
from dr_keras.data.sources.table import read_table
from dr_keras.errors import InputError

_JUDGMENTS = 10  # a random stream


@dataclass(frozen=True)
class Judgments:
    """M judgments, each with the votes of one or more people.

    Attributes:
        images: (M, 3) int64, the query, the positive and the negative; numbers that `read_judgments` was given.
        votes: (M,) float64, how many people found the positive more like the query.
        against: (M,) float64, how many found the negative more like it.
    """

    images: np.ndarray
    votes: np.ndarray
    against: np.ndarray

    def __len__(self) -> int:
        return len(self.votes)

    def take(self, chosen: np.ndarray) -> "Judgments":
        """Returns some of the judgments, by a mask or by numbers."""
        return Judgments(self.images[chosen], self.votes[chosen], self.against[chosen])

    def decided(self) -> "Judgments":
        """Returns the judgments that have a majority, with the image that it found more alike as the positive."""
        turned = self.against > self.votes
        images = np.where(turned[:, None], self.images[:, [0, 2, 1]], self.images)
        votes, against = np.maximum(self.votes, self.against), np.minimum(self.votes, self.against)
        return Judgments(images, votes, against).take(votes > against)

    @property
    def agreement(self) -> np.ndarray:
        """How much the voters agree, (M,) from 1, if all voted for the positive, to -1."""
        return (self.votes - self.against) / (self.votes + self.against)


def read_judgments(file: Path, find: Callable[[str, str], int]) -> Judgments:
    """Reads a CSV file with the columns query, positive, negative, and perhaps votes and votes_against.

    Lines about the same three images with the same query are one judgment, whose votes are added up.

    Args:
        file: The file. Without votes, each line is one vote for its positive.
        find: Returns the number of an image by its name in the file and the line, for messages.

    Raises:
        InputError: The file cannot be read, or a line cannot be used; the message names it.
    """
    votes: dict[tuple[int, int, int], np.ndarray] = {}  # of a query, positive and negative: those for and against
    for line in read_table(file, "query", "positive", "negative"):
        query, positive, negative = (find(line.values[name], line.where) for name in ("query", "positive", "negative"))
        if len({query, positive, negative}) < 3:
            raise InputError(f"{line.where}: a judgment is about three different images")
        given = line.number("votes", 1.0), line.number("votes_against", 0.0)
        if not all(0 <= number < float("inf") for number in given) or not sum(given):
            raise InputError(
                f"{line.where}: votes are {given[0]:g} and {given[1]:g}; expected 0 or more, and one at least"
            )
        if (query, negative, positive) in votes:
            votes[query, negative, positive] += given[::-1]
        else:
            votes[query, positive, negative] = votes.get((query, positive, negative), 0) + np.array(given)
    if not votes:
        raise InputError(f"{file} lists no judgments")
    table = np.array(list(votes.values()))
    return Judgments(np.array(list(votes), np.int64), table[:, 0], table[:, 1])


class JudgmentSampler:
    """Samples the judged triplets of any step, in any order of steps: a pure function of the seed and the step.

    In an epoch, each judgment that has a majority is drawn once, in a new random order; the last batch of an epoch may
    be smaller. Its weight is how much the voters agree, divided by the mean of all judgments.

    Args:
        judgments: M judgments about N images, numbered from 0.
        labels: (N,) integers, the classes of the images, which have no part in this.
        batch_size: The number of triplets per step, at most.
        seed: Seeds the order.

    Raises:
        InputError: No judgment has a majority.

    Example:
        >>> judgments = Judgments(np.array([[0, 1, 2]]), votes=np.array([1.0]), against=np.array([3.0]))
        >>> batch = JudgmentSampler(judgments, np.zeros(3), batch_size=8, seed=0).batch(0)
        >>> batch.positive, batch.negative, batch.weights
        (array([2]), array([1]), array([1.], dtype=float32))
    """

    def __init__(self, judgments: Judgments, labels: np.ndarray, batch_size: int, seed: int) -> None:
        self._judgments = judgments.decided()
        if not len(self._judgments):
            raise InputError("no judgment has a majority, so there is nothing to train on")
        agreement = self._judgments.agreement
        self._weights = (agreement / agreement.mean()).astype(np.float32)
        self._labels = labels
        self.batch_size, self.seed = batch_size, seed
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))  # the latest epoch and its order

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in which every judgment is drawn once."""
        return -(-len(self._judgments) // self.batch_size)

    def batch(self, step: int) -> Triplets:
        """Returns the triplets of global step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        drawn, order = self._order
        if drawn != epoch:
            order = np.random.default_rng((self.seed, _JUDGMENTS, epoch)).permutation(len(self._judgments))
            self._order = (epoch, order)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        query, positive, negative = self._judgments.images[chosen].T
        classes = np.stack([self._labels[query], self._labels[negative]], axis=1).astype(np.int32)
        return Triplets(query, positive, negative, classes, self._weights[chosen])
