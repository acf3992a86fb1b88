"""A gallery laid out in two dimensions by UMAP (McInnes et al. 2018), so that images that are near lie near.

`index.py map` makes it, which takes a minute, and keeps it in the index's folder; `serve.py` shows it. It is fitted on
some of the images. All others, later ones and queries among them, lie where their nearest fitted ones do.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.errors import InputError, MissingPackage, RunError
from dr_keras.index.exact_search import distances, nearest

if TYPE_CHECKING:
    from dr_keras.index.index import Index

FILE = "map.npz"
FIT_ROWS = 20_000  # images that are fitted: a minute on two cores
FEWEST = 30  # images; fewer have no neighbourhoods to be laid out by
NEIGHBOURS = 15  # of an image that are to lie near it: UMAP's default
LEAST, SPREAD = 0.8, 2.0  # how near points may lie, and how far clusters spread: they are to be looked at one by one
ANCHORS = 4  # fitted images between which another one lies
KEPT = 0.998  # of the images are within -1 and 1 on the longer side


@dataclass(frozen=True)
class Layout:
    """Where some vectors lie.

    Attributes:
        vectors: (F, D) float32.
        points: (F, 2) float32, nearly all within -1 and 1.
        model: what the vectors depend on, as the index says it.
    """

    vectors: np.ndarray
    points: np.ndarray
    model: str

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Where vectors (N, D) lie, (N, 2) float32: between their nearest fitted ones, nearer to nearer ones."""
        vectors = np.asarray(vectors, np.float32)
        rows, _ = nearest(vectors, self.vectors, ANCHORS)
        weights = 1 / (distances(vectors, self.vectors, rows) + 1e-6)  # one that is fitted lies where it was put
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("nk,nkc->nc", weights, self.points[rows]).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Writes it into an index's folder.

        Raises:
            RunError: it cannot be written.
        """
        try:
            with new_file(folder / FILE) as temporary, temporary.open("wb") as file:
                np.savez(file, vectors=self.vectors, points=self.points, model=np.array(self.model))
        except OSError as error:
            raise RunError(f"{folder / FILE} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, index: "Index") -> "Layout | None":
        """The one of an index, or None where there is none, or where it is of another model.

        Raises:
            RunError: it is damaged.
        """
        file = index.folder / FILE
        try:
            with np.load(file, allow_pickle=False) as kept:
                made = cls(kept["vectors"], kept["points"], str(kept["model"]))
        except FileNotFoundError:
            return None
        except Exception as error:  # zipfile, zlib and NumPy raise what they like on bytes that are none of theirs
            raise RunError(f"{file} is damaged: {error}; make it again with index.py map") from None
        if made.model != index.model or made.vectors.shape[1:] != (index.dim,):
            return None
        return made


def fit_umap(index: "Index", seed: int = 0) -> Layout:
    """Lays out the images that a search may find.

    Args:
        index: at least 30 images.
        seed: the same seed gives the same map.

    Raises:
        InputError: there are too few.
        MissingPackage: umap-learn is not installed.
    """
    rows = index.searched_rows()
    if len(rows) < FEWEST:
        raise InputError(f"{len(rows)} images are too few for a map by UMAP; at least {FEWEST} are needed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TensorFlow, which its parametric variant would want
            from umap import UMAP
    except ImportError as error:
        raise MissingPackage(
            f"a map by UMAP needs umap-learn ({error}); install it with pip install 'dr_keras[map]'"
        ) from None
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:FIT_ROWS])
    vectors = np.array(index.vectors[chosen])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed takes one thread
        made = UMAP(n_neighbors=min(NEIGHBOURS, len(rows) - 1), min_dist=LEAST, spread=SPREAD, random_state=seed)
        points = made.fit_transform(vectors)
    points = np.nan_to_num(np.asarray(points, np.float32))
    middle = np.median(points, axis=0)
    reach = float(np.quantile(np.abs(points - middle).max(axis=1), KEPT)) or 1.0
    return Layout(vectors, (points - middle) / reach, index.model)
