"""What an index says of itself and of its vectors."""

from pathlib import Path

import numpy as np

from dr_keras.index.store import CUTOFF_FILE, HEAD_FILE, Store


class IndexMeta:
    """The values that an index keeps besides its images, in its current state.

    Args:
        store: The index's files.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def folder(self) -> Path:
        """The folder of the index."""
        return self._store.folder

    @property
    def root(self) -> Path:
        """The folder that ids are relative to."""
        return Path(self._store.meta["root"])

    @property
    def run(self) -> str:
        """The run that computes the vectors; empty if none was named."""
        return self._store.meta["run"]

    @property
    def head(self) -> str:
        """The head of the run that computes the vectors."""
        return self._store.meta.get("head", "trained")

    @property
    def exif(self) -> bool:
        """Whether what files say of themselves becomes attributes."""
        return self._store.meta.get("exif", True)

    @property
    def parts(self) -> int:
        """Which parts of each image it keeps vectors of, see `dr_keras.data.parts.windows`; 0 for none."""
        return self._store.meta.get("parts", 0)

    @property
    def head_file(self) -> Path:
        """The general head that was fitted on this index's images, if `head` is "fitted"."""
        return self.folder / HEAD_FILE

    @property
    def cutoff_file(self) -> Path:
        """How near is near enough, if the index is calibrated; see `dr_keras.index.cutoff`."""
        return self.folder / CUTOFF_FILE

    @property
    def model(self) -> str:
        """What the vectors depend on."""
        return self._store.meta["model"]

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self._store.meta["dim"]

    @property
    def vectors(self) -> np.ndarray:
        """(R, D) float32, memory-mapped, by row, including the rows of removed images."""
        return self._store.vectors

    @property
    def part_vectors(self) -> np.ndarray | None:
        """(R, P, D) float32, memory-mapped: the vectors of the parts of each image; None if it keeps none."""
        return self._store.parts

    @property
    def version(self) -> int:
        """How many changes have been made to the index."""
        return self._store.meta["version"]

    @property
    def generation(self) -> int:
        """How often the vectors have been compacted; within a generation, images keep their rows."""
        return self._store.meta["generation"]
