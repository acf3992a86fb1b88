"""The index of a run: vectors, names and labels of all its images; the gallery is searched, held-out images are known.

On disk, in one folder:

    vectors.npy    (M, D) float32, the gallery's N rows first, then the images that the run held out
    labels.npy     (M,) int32
    index.json     format version, ids, classes, N, the data root, and the checksums of the two arrays

Needs NumPy and no framework: a search for an image that is indexed takes the time of reading the index.
"""

import difflib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dr_keras.data import VALIDATION
from dr_keras.errors import InputError, RunError
from dr_keras.files import new_folder
from dr_keras.retrieval.search import distances, nearest

if TYPE_CHECKING:
    from dr_keras.data.catalog import Catalog

INDEX_FORMAT = 1
SUGGESTIONS = 5


@dataclass(frozen=True)
class Index:
    """Vectors with their names and labels.

    Attributes:
        vectors: (M, D) float32 of unit length; the first `gallery` rows are searched.
        labels: (M,) int32, indices into `classes`.
        ids: M paths relative to `root`, with forward slashes.
        classes: C folder names; class_names: the same for people.
        gallery: N, how many rows are searched.
        root: the folder that the ids are relative to.
    """

    vectors: np.ndarray
    labels: np.ndarray
    ids: Sequence[str]
    classes: Sequence[str]
    class_names: Sequence[str]
    gallery: int
    root: Path

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32 or len(self.vectors) != rows:
            raise RunError(f"vectors are {self.vectors.dtype} {self.vectors.shape}; expected float32 ({rows}, D)")
        if self.labels.shape != (rows,) or not np.issubdtype(self.labels.dtype, np.integer):
            raise RunError(f"labels are {self.labels.dtype} {self.labels.shape}; expected integers ({rows},)")
        if rows and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise RunError(f"labels run from {self.labels.min()} to {self.labels.max()}; {len(self.classes)} classes")
        if not 0 < self.gallery <= rows:
            raise RunError(f"the gallery has {self.gallery} of {rows} rows; it needs at least one")

    @classmethod
    def of(cls, catalog: "Catalog", vectors: np.ndarray) -> "Index":
        """The index of a catalog's images: train and monitor are its gallery, validation images are only known.

        Args:
            catalog: M images.
            vectors: (M, D) float32, their embeddings, row by row.
        """
        order = np.argsort(catalog.splits == VALIDATION, kind="stable")
        return cls(
            vectors=np.ascontiguousarray(vectors[order]),
            labels=catalog.labels[order],
            ids=[catalog.ids[row] for row in order],
            classes=catalog.classes,
            class_names=catalog.class_names,
            gallery=int((catalog.splits != VALIDATION).sum()),
            root=catalog.root,
        )

    def search(
        self, vectors: np.ndarray, k: int = 30, *, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest gallery images of each vector.

        Args:
            vectors: (Q, D).
            k: at least 1; more than the gallery holds means all of it.
            exclude: (Q,) a row to leave out for each query, its own for one; -1 for none.

        Returns:
            rows (Q, K) int64, nearest first and by row where distances are equal; Euclidean distances (Q, K) float32.

        Raises:
            InputError: the vectors' length is not the index's, or `k` is below 1.
        """
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors.shape[1]:
            raise InputError(f"vectors are {vectors.shape}; this index takes (Q, {self.vectors.shape[1]})")
        if k < 1:
            raise InputError(f"{k} neighbours were asked for; ask for at least 1")
        gallery = self.vectors[: self.gallery]
        rows, _ = nearest(vectors, gallery, k + (exclude is not None))
        exact = distances(vectors, gallery, rows)
        order = np.lexsort((rows, exact))
        if exclude is not None:
            own = np.take_along_axis(rows, order, axis=1) == np.asarray(exclude)[:, None]
            order = np.take_along_axis(order, np.argsort(own, axis=1, kind="stable"), axis=1)
            keep = min(k, int(rows.shape[1] - own.any(axis=1).max()))
            order = order[:, :keep]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(exact, order, axis=1)

    def row(self, name: str) -> int | None:
        """The row of an id, or None."""
        return next((row for row, known in enumerate(self.ids) if known == name), None)

    def find(self, name: str) -> int:
        """The row of an image by its id, its path, or its base name where that is unique.

        Raises:
            InputError: no image has that name (the nearest names are suggested), or several have (they are listed).
        """
        wanted = PurePosixPath(name).as_posix()
        if wanted.startswith("/"):
            wanted = wanted.removeprefix(self.root.as_posix() + "/")
        tail = "/" + wanted
        rows = [row for row, known in enumerate(self.ids) if known.endswith(tail) or known == wanted]
        exact = [row for row in rows if self.ids[row] == wanted]
        if exact or len(rows) == 1:
            return (exact or rows)[0]
        if rows:
            some = ", ".join(self.ids[row] for row in rows[:SUGGESTIONS])
            more = f" and {len(rows) - SUGGESTIONS} more" if len(rows) > SUGGESTIONS else ""
            raise InputError(f"{name!r} is the name of {len(rows)} images: {some}{more}. Give one of these paths")
        near = ", ".join(self._similar_names(PurePosixPath(wanted).name))
        raise InputError(
            f"no image is called {name!r}, and there is no such file" + (f". Near it: {near}" if near else "")
        )

    def _similar_names(self, wanted: str) -> list[str]:
        names = {known.rpartition("/")[2] for known in self.ids}
        for length in range(len(wanted), -1, -1):  # difflib is slow: let it look only at names that begin alike
            alike = [name for name in names if name.startswith(wanted[:length])]
            if len(alike) >= 4 * SUGGESTIONS or not length:
                alike = sorted(alike)[:5000]
                return difflib.get_close_matches(wanted, alike, n=SUGGESTIONS, cutoff=0.5)
        return []

    def save(self, folder: Path) -> None:
        """Writes the index; it appears complete or not at all."""
        with new_folder(folder) as temporary:
            np.save(temporary / "vectors.npy", self.vectors, allow_pickle=False)
            np.save(temporary / "labels.npy", self.labels, allow_pickle=False)
            description = {
                "format": INDEX_FORMAT,
                "root": str(self.root),
                "gallery": self.gallery,
                "classes": list(self.classes),
                "class_names": list(self.class_names),
                "checksums": {name: _checksum(getattr(self, name)) for name in ("vectors", "labels")},
                "ids": list(self.ids),
            }
            (temporary / "index.json").write_text(json.dumps(description), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Opens a saved index; the vectors are memory-mapped and compared with their checksum.

        Raises:
            RunError: the folder holds no index, one of another format, or a damaged one.
        """
        try:
            description = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            if description["format"] != INDEX_FORMAT:
                raise RunError(
                    f"{folder} has index format {description['format']}, this version reads {INDEX_FORMAT}; "
                    "make the index again with train.py --export-only"
                )
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("vectors", "labels")
            }
            for name, array in arrays.items():
                if _checksum(array) != description["checksums"][name]:
                    raise RunError(f"{folder / name}.npy was altered or damaged: its checksum differs")
            return cls(
                ids=description["ids"],
                classes=description["classes"],
                class_names=description["class_names"],
                gallery=description["gallery"],
                root=Path(description["root"]),
                **arrays,
            )
        except FileNotFoundError as error:
            raise RunError(f"{folder} is no index: {error.filename} does not exist") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{folder} cannot be read as an index: {error}") from error


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
