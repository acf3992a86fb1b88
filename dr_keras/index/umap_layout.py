"""A two-dimensional UMAP layout of an index (McInnes et al. 2018), in which similar images are close together.

`index.py map` computes it, which takes a minute, and saves it in the index's folder; `serve.py` shows it. It is fitted
on a sample of the images. All others, including later ones and queries, are placed between their nearest fitted images.
"""

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dr_keras.errors import InputError, MissingPackage, RunError
from dr_keras.index.exact_search import distances, nearest
from dr_keras.index.store import LAYOUT_FILE
from dr_keras.invocation import command
from dr_keras.number_files import packed_arrays

if TYPE_CHECKING:
    from dr_keras.index.index import Index

FIT_IMAGES = 20_000  # images that the map is fitted on: a minute on two cores
MIN_IMAGES = 30  # fewer have no neighborhoods to lay out
UMAP_NEIGHBORS = 15  # images that should be placed near an image: UMAP's default
MIN_DISTANCE, SPREAD = 0.8, 2.0  # of UMAP: wide, so that images can be viewed one by one
ANCHORS = 4  # fitted images between which any other is placed
CENTRAL_SHARE = 0.998  # of the images are within -1 and 1 on the longer side


@dataclass(frozen=True)
class Layout:
    """Positions of images on the map.

    Attributes:
        vectors: (F, D) float32, of the images that the layout was fitted on.
        points: (F, 2) float32, nearly all within -1 and 1.
        model: What the vectors depend on, as in `Index.model`.
    """

    vectors: np.ndarray
    points: np.ndarray
    model: str

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Places images between their nearest fitted images, closer to the more similar ones.

        Args:
            vectors: (N, D).

        Returns:
            (N, 2) float32.
        """
        vectors = np.asarray(vectors, np.float32)
        rows, _ = nearest(vectors, self.vectors, ANCHORS)
        weights = 1 / (distances(vectors, self.vectors, rows) + 1e-6)  # a fitted image keeps its position
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("nk,nkc->nc", weights, self.points[rows]).astype(np.float32)

    def save(self, index: "Index") -> None:
        """Keeps it with an index.

        Raises:
            RunError: It cannot be written.
        """
        index.write_file(
            LAYOUT_FILE, packed_arrays(vectors=self.vectors, points=self.points, model=np.array(self.model))
        )

    @classmethod
    def load(cls, index: "Index") -> "Layout | None":
        """Reads the layout of an index; None if there is none or it is from another model.

        Raises:
            RunError: It is damaged.
        """
        return cls.read(index.read_file(LAYOUT_FILE), index)

    @classmethod
    def read(cls, data: bytes | None, index: "Index") -> "Layout | None":
        """`load` from the content of the file, None if there is none."""
        if data is None:
            return None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                made = cls(kept["vectors"], kept["points"], str(kept["model"]))
        except Exception as error:  # zipfile, zlib and NumPy may raise anything on damaged files
            raise RunError(
                f"{LAYOUT_FILE} of {index.place} is damaged: {error}; make it again with {command('index')} map"
            ) from None
        if made.model != index.model or made.vectors.shape[1:] != (index.dim,):
            return None
        return made


def fit_umap(index: "Index", seed: int = 0) -> Layout:
    """Lays out the images that a search may return.

    Args:
        index: An index of at least `MIN_IMAGES` images.
        seed: The same seed gives the same layout.

    Returns:
        The layout; `Layout.save` keeps it.

    Raises:
        InputError: There are too few images.
        MissingPackage: Umap-learn is not installed.
    """
    rows = index.searched_rows()
    if len(rows) < MIN_IMAGES:
        raise InputError(f"{len(rows)} images are too few for a UMAP map; at least {MIN_IMAGES} are needed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TensorFlow, which only parametric UMAP needs
            from umap import UMAP
    except ImportError as error:
        raise MissingPackage(
            f"a UMAP map needs umap-learn ({error}); install it with pip install 'dr_keras[map]'"
        ) from None
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:FIT_IMAGES])
    vectors = np.array(index.vectors[chosen])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed makes it use one thread
        made = UMAP(
            n_neighbors=min(UMAP_NEIGHBORS, len(rows) - 1), min_dist=MIN_DISTANCE, spread=SPREAD, random_state=seed
        )
        points = made.fit_transform(vectors)
    points = np.nan_to_num(np.asarray(points, np.float32))
    middle = np.median(points, axis=0)
    reach = float(np.quantile(np.abs(points - middle).max(axis=1), CENTRAL_SHARE)) or 1.0
    return Layout(vectors, (points - middle) / reach, index.model)
