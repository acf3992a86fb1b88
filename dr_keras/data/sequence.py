"""Feeds training where there is no tf.data: the same batches by `keras.utils.PyDataset`, made ahead by threads."""

from typing import Any

import keras
import numpy as np

from dr_keras.data.pipeline import Source

THREADS = 2  # Keras makes batches ahead of their use from two on


class BatchSequence(keras.utils.PyDataset):
    """The batches of the steps from `first_step` up to, not including, `last_step`, in order."""

    def __init__(self, source: Source, first_step: int, last_step: int) -> None:
        super().__init__(workers=THREADS, use_multiprocessing=False, max_queue_size=2 * THREADS)
        self._source, self._first, self._count = source, first_step, last_step - first_step

    @property
    def num_batches(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source.batch(self._first + index)


def batches(source: Source, first_step: int, last_step: int) -> Any:
    """What `fit` takes for these steps: a tf.data dataset on TensorFlow, a `BatchSequence` on JAX and torch."""
    if keras.backend.backend() == "tensorflow":
        from dr_keras.data.pipeline import dataset

        return dataset(source, first_step, last_step)
    return BatchSequence(source, first_step, last_step)
