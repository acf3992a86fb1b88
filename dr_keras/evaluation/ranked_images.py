"""The images that an evaluation ranks: with their vectors, labels and splits."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dr_keras.data.catalog import Catalog
from dr_keras.data.held_out import among_themselves
from dr_keras.data.image_ids import image_path
from dr_keras.data.splits import GALLERY, MONITOR, SPLIT_NAMES, VALIDATION
from dr_keras.index.index import Index


@dataclass(frozen=True)
class RankedImages:
    """M images, and which of them are queries.

    Attributes:
        vectors: (M, D).
        labels: (M,) numbers of classes.
        monitor: (M,) bool, the monitor images.
        held: (M,) bool, the held-out images, which are the queries.
        apart: (M,) bool, the images of the gallery split, which most data sets do not have.
        classes: (C,) the labels.
        class_names: (C,) their names.
        paths: (M,) the files.
    """

    vectors: np.ndarray
    labels: np.ndarray
    monitor: np.ndarray
    held: np.ndarray
    apart: np.ndarray
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    paths: list[str]

    @cached_property
    def among_themselves(self) -> bool:
        """Whether whole classes were held out, so that held-out images are ranked against each other."""
        return not self.apart.any() and among_themselves(self.labels, self.held, ~self.held)

    @property
    def gallery(self) -> np.ndarray:
        """The mask (M,) of the images that are ranked for each held-out image."""
        if self.apart.any():
            return self.apart
        return self.held if self.among_themselves else ~self.held

    @classmethod
    def of_index(cls, index: Index) -> "RankedImages":
        """Returns the images of an index.

        Args:
            index: The index of a run.
        """
        entries = index.records.listing()
        names = index.records.class_names()
        classes = tuple(sorted(names))
        number = {label: n for n, label in enumerate(classes)}
        rows = np.array([row for row, *_ in entries], np.int64)
        splits = np.array([split for *_, split in entries])
        vectors = index.vectors
        # Nearly every run's index has no gaps, so its vectors are not copied.
        if not (isinstance(vectors, np.ndarray) and len(rows) == len(vectors)):
            vectors = vectors[rows]
        return cls(
            vectors=vectors,
            labels=np.array([number[label] for _, _, label, _ in entries], np.int32),
            monitor=splits == SPLIT_NAMES[MONITOR],
            held=splits == SPLIT_NAMES[VALIDATION],
            apart=splits == SPLIT_NAMES[GALLERY],
            classes=classes,
            class_names=tuple(names[label] for label in classes),
            paths=[image_path(id, index.root) for _, id, *_ in entries],
        )

    @classmethod
    def of_catalog(cls, catalog: Catalog, vectors: np.ndarray) -> "RankedImages":
        """Returns the images of a catalog.

        Args:
            catalog: M images.
            vectors: (M, D).
        """
        return cls(
            vectors=vectors,
            labels=catalog.labels,
            monitor=catalog.splits == MONITOR,
            held=catalog.splits == VALIDATION,
            apart=catalog.splits == GALLERY,
            classes=catalog.classes,
            class_names=catalog.class_names,
            paths=catalog.paths(),
        )
