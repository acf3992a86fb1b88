"""Feeds training where there is no tf.data: the same batches by `keras.utils.PyDataset`, made ahead by threads."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras

from dr_keras.data.pipeline import Source

AHEAD = 3  # batches that are made before they are asked for
THREADS = 2


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
        from dr_keras.data.pipeline import dataset

        return dataset(source, first_step, last_step)
    return BatchSequence(source, first_step, last_step)
