"""The model that `dr_keras.load` returns: it embeds images and searches its gallery."""

import os
import threading
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dr_keras.calibrated import calibrated_distance
from dr_keras.data.crop import Crop
from dr_keras.errors import InputError, RunError
from dr_keras.heads import FITTED, GENERAL, HEADS, TRAINED, GeneralHead
from dr_keras.image_names import file_named
from dr_keras.index.index import HEAD_FILE, Index
from dr_keras.index.reader import Reader
from dr_keras.index_results import describe, neighbors
from dr_keras.progress import stderr
from dr_keras.retrieval import check_cutoff, retrieve
from dr_keras.run_embedder import Images, RunEmbedder
from dr_keras.runs import Run
from dr_keras.search_results import Answer, Result
from dr_keras.variety import Variety

if TYPE_CHECKING:  # what a search by name need not import
    from rich.console import Console

    from dr_keras.config import Config
    from dr_keras.data.images import ImageInput
    from dr_keras.explanation import Explainer, Explanation
    from dr_keras.index.cutoff import Cutoff


class Model:
    """A finished run: embeds images and searches its gallery. Made by `load` and `train`.

    Threads may share a model. The network embeds for one caller at a time, on all cores. `use_index` and
    `use_gallery` change the gallery for all threads.

    Args:
        run: The run folder.
        runtime: One of `dr_keras.runtimes.RUNTIMES`. 'auto' uses LiteRT, or OpenVINO if it is installed and LiteRT
            would take more than a second or two, or Keras if the run is not exported. 'openvino_bfloat16' is faster
            on processors with bfloat16 arithmetic, and rounds more.
        head: Which vectors: 'trained', the embedding; 'general', which is better for classes that the run was not
            trained on (`dr_keras.heads`); or 'auto', that of the gallery. In 'auto', a folder is searched by the
            general head unless all its classes were trained on.

    Example:
        >>> from dr_keras import load
        >>> model = load("tiny-imagenet-64")
        >>> images = np.zeros((2, 64, 64, 3), np.uint8)
        >>> model.embed(images).shape
        (2, 256)
    """

    def __init__(self, run: Run, runtime: str = "auto", head: str = "auto") -> None:
        if head not in HEADS:
            raise InputError(f"head is {head!r}; choose one of {', '.join(HEADS)}")
        self.run = run
        run.settings()  # so that it is known at once whether they can be read
        self.runtime = runtime
        self._embedder = RunEmbedder(run, runtime)
        self._asked = head
        self._index: Index | None = None
        self._guard = threading.Lock()  # guards the index

    @cached_property
    def config(self) -> "Config":
        """The settings of the run."""
        return self.run.config()

    @cached_property
    def _explainer(self) -> "Explainer":
        from dr_keras.explanation import Explainer

        return Explainer(self.run, self._embedder.vectors)

    @property
    def index(self) -> Index:
        """The gallery: the run's own index, opened on first use, or what `use_index` or `use_gallery` set.

        Raises:
            RunError: The index is damaged, or this is a released model, which has none of its own.
        """
        with self._guard:
            if self._index is None:
                self._index = self._own_index()
            return self._index

    @index.setter
    def index(self, index: Index) -> None:
        with self._guard:
            self._index = index

    def _own_index(self) -> Index:
        path = self.run.path
        if not self.run.has_gallery():
            kind = "a released model" if self.run.weights_file.is_file() else "a network as it is"
            raise RunError(
                f"{path.name} is {kind} and has no gallery of its own; search your own folder with "
                "--gallery FOLDER or --index PATH, or evaluate on a data set with --data"
            )
        if self._asked == GENERAL:
            raise RunError(
                f"the index of {path.name} is of the trained head; search by the general one with --gallery FOLDER, "
                "or in an index of its own"
            )
        return Index.open(self.run.index)

    @property
    def head(self) -> str:
        """The head in use: that of the gallery, or before there is one, what was asked for, the trained one in 'auto'.

        'fitted' is a general head that belongs to the index, see `index.py add --fit-head`.
        """
        with self._guard:
            if self._index is not None:
                return self._index.head
        return TRAINED if self._asked == "auto" else self._asked

    def head_for(self, *folders: str | os.PathLike[str]) -> str:
        """Chooses the head to search folders by; without any, single files.

        Returns:
            The head that was asked for; in 'auto', the general head unless the run has none, or was trained on all the
            classes that the folders have.
        """
        if self._asked != "auto":
            return self._asked
        from dr_keras.index.sync import folder_classes

        return self.auto_head(frozenset[str]().union(*map(folder_classes, folders)))

    def auto_head(self, classes: Collection[str]) -> str:
        """Chooses the head for images of these classes, which are none where they are not known."""
        if self.config.triplets or not self.run.general_file.is_file():  # judgments are about any picture
            return TRAINED
        return TRAINED if classes and set(classes) <= self.run.classes() else GENERAL

    def use_index(self, folder: str | os.PathLike[str]) -> "Model":
        """Makes an index the gallery.

        Args:
            folder: The index, made by `index.py`: its folder, or milvus://HOST:PORT/COLLECTION.

        Returns:
            The model itself.

        Raises:
            RunError: There is no index, it is damaged, or its vectors come from another model or head.
        """
        index = Index.open(folder)
        try:
            self.check(index)
        except BaseException:
            index.close()
            raise
        self.index = index
        return self

    def check(self, index: Index) -> None:
        """Checks that the vectors of an index come from this model, and from the head that was asked for.

        Raises:
            RunError: They do not.
        """
        if self._asked not in ("auto", index.head):
            raise RunError(f"the vectors in {index.place} are of the {index.head} head, not of the {self._asked} one")
        if index.model and index.model != self._embedder.fingerprint_of(index):
            maker = f": from {index.run}" if index.run else ""
            raise RunError(
                f"the vectors in {index.place} come from another model than {self.run.path}{maker}"
                "; name that model with --run, or make another index"
            )

    @property
    def fingerprint(self) -> str:
        """What the vectors of the head in use depend on: the weights, and how images are resized."""
        return self._embedder.fingerprint(self.head)

    @property
    def reader(self) -> Reader:
        """How this model turns files into vectors of the head in use, for `dr_keras.index.sync`."""
        return self._embedder.reader(self.head)

    def reader_for(self, index: Index) -> Reader:
        """How this model turns files into the vectors of an index."""
        return self._embedder.reader_for(index)

    def use_gallery(self, folder: str | os.PathLike[str], *, console: "Console | None" = None) -> "Model":
        """Makes all images below a folder the gallery. An image's class is the subfolder that it is in.

        The vectors are cached; later calls read only files that have changed.

        Args:
            folder: The folder.
            console: Where progress is shown; standard error by default.

        Returns:
            The model itself.

        Raises:
            InputError: The folder does not exist or holds no readable image, or the run has no network.

        Example:
            >>> from dr_keras import load
            >>> model = load("tiny-imagenet-64").use_gallery("my-pictures")
            >>> len(model.index)
            4
        """
        from dr_keras.index.folder_cache import gallery_index

        head = self.head_for(folder) if Path(folder).is_dir() else TRAINED
        self.index = gallery_index(
            Path(folder),
            f"{self._embedder.fingerprint(head)} {self._embedder.vector_runtime()}",
            self.run.embedding_dim(head),
            self._embedder.reader(head),
            head=head,
            console=console or stderr(),
        )
        return self

    def vectors(self, pixels: np.ndarray, head: str) -> np.ndarray:
        """Embeds decoded images by one of the run's own heads; see `dr_keras.run_embedder.RunEmbedder`."""
        return self._embedder.vectors(pixels, head)

    def embed(self, images: Images) -> np.ndarray:
        """Embeds images.

        Args:
            images: A list of paths, encoded bytes or PIL images, or an (N, H, W, 3) uint8 array; they are resized as
                in training.

        Returns:
            (N, D) float32 vectors of unit length, of the head in use.

        Raises:
            InputError: An image cannot be decoded (the message names it), or an array is not (N, H, W, 3) uint8.

        Example:
            >>> from PIL import Image
            >>> from dr_keras import load
            >>> model = load("tiny-imagenet-64")
            >>> model.embed([Image.new("RGB", (320, 240), "red")]).shape
            (1, 256)
        """
        with self._guard:
            index = self._index
        reader = self.reader if index is None else self.reader_for(index)
        return reader.embed(self._embedder.pixels(images))

    def search(self, images: Images, k: int = 30) -> list[list[Result]]:
        """Finds the nearest gallery images of each image.

        Args:
            images: As in `embed`.
            k: How many for each image.

        Returns:
            For each image its results, nearest first.

        Example:
            >>> from dr_keras import load
            >>> model = load("tiny-imagenet-64").use_gallery("my-pictures")
            >>> neighbors = model.search(["my-pictures/apples/red.png"], k=4)[0]
            >>> neighbors[0].id, round(neighbors[0].distance, 3)
            ('apples/red.png', 0.0)
        """
        return self.neighbors(self.embed(images), k)

    def retrieve(
        self,
        query: str | Sequence[str],
        k: int = 30,
        *,
        include_self: bool = False,
        negatives: Sequence[str] = (),
        where: str | None = None,
        max_distance: float | str | None = None,
        crop: Crop | Sequence[float] | str | None = None,
        distinct: bool = False,
        diverse: float | None = None,
        whole: bool = False,
    ) -> Answer:
        """Finds the nearest gallery images of one image, or of several images together.

        Args:
            query: An image of the index (held-out images included) by its id, its path or its unique base name; or any
                other image file. A path that starts with '.', '/' or '~' always means a file. Several images are
                searched for by their mean.
            k: How many results.
            include_self: Whether a query may find itself.
            negatives: Images that the results should be unlike, named in the same way.
            where: Search only images that meet this condition, such as `label = cats`; see `dr_keras.index.filters`.
            max_distance: Leave out results farther than this; 'auto': than `index.py calibrate` says for this query, or
                else than `calibrated_distance`.
            crop: Search for this part of the query, which is a single image: left, top, width and height in pixels of
                the upright picture, or in shares of it from 0 to 1.
            distinct: Fold copies of a result into it, as its `copies`: images that `index.py duplicates` would find.
            diverse: The weight of nearness, from 0 to 1, against being unlike the results before it (maximal marginal
                relevance); the results are then no longer in the order of their distances.
            whole: Search by whole images alone, if the index also keeps parts of them (`index.py add --parts`).

        Returns:
            The answer, with its results nearest first.

        Raises:
            InputError: No image has this name, or several have; the file is not a usable image; `where` is not a
                condition; the crop is not inside the picture; or the run is not calibrated.

        Example:
            >>> from dr_keras import load
            >>> model = load("tiny-imagenet-64").use_gallery("my-pictures")
            >>> answer = model.retrieve("red.png", where="label = apples")
            >>> answer.label, [result.name for result in answer.results]
            ('apples', ['maroon.png'])
        """
        index = self.index  # another thread may replace it
        if max_distance == "auto":
            check_cutoff(index, whole=whole)
        limit = self._cutoff(index) if max_distance == "auto" else max_distance
        if isinstance(limit, str):
            raise InputError(f"max_distance is {limit!r}; give a number or 'auto'")
        return retrieve(
            index,
            self.embed,
            [query] if isinstance(query, str) else list(query),
            k,
            include_self=include_self,
            negatives=negatives,
            where=where,
            max_distance=limit,
            crop=None if crop is None else Crop.of(crop),
            variety=Variety(distinct, diverse),
            whole=whole,
        )

    def explain(self, query: "ImageInput", neighbor: "ImageInput") -> "Explanation":
        """Explains why two pictures are alike: how much each part of one adds to the cosine of their embeddings.

        For networks that end in global average pooling, as the built-in ResNets do, the parts are the cells of the last
        map, and their sum is the cosine exactly; for others, parts are covered one by one.

        Args:
            query, neighbor: Images of the gallery by name, as in `retrieve`; or paths, encoded bytes, or PIL images.

        Raises:
            InputError: No image has this name, or it is not a usable image.

        Example:
            >>> from dr_keras import load
            >>> model = load("tiny-imagenet-64").use_gallery("my-pictures")
            >>> found = model.explain("red.png", "maroon.png")
            >>> found.query_map.shape, bool(abs(found.query_map.sum() + found.bias - found.cosine) < 1e-4)
            ((4, 4), True)
        """
        with self._guard:
            index = self._index
        files = [file_named(index, image) if isinstance(image, str) else image for image in (query, neighbor)]
        return self.explain_pixels(*self._embedder.pixels(files))

    def explain_pixels(self, query: np.ndarray, neighbor: np.ndarray, head: str | None = None) -> "Explanation":
        """Explains why two decoded images are alike; (H, W, 3) uint8 of the run's size, see `explain`."""
        with self._guard:
            index = self._index
        if head is None and index is not None and index.head == FITTED:
            return self._explainer(query, neighbor, TRAINED, GeneralHead.of_index(index.read_file(HEAD_FILE)))
        return self._explainer(query, neighbor, head or self.head)

    def _cutoff(self, index: Index) -> "Cutoff | float":
        from dr_keras.index.cutoff import Cutoff

        return Cutoff.of(index) or self.calibrated_distance()

    def calibrated_distance(self) -> float:
        """Returns the distance that `evaluate.py --calibrate` found for the head in use.

        Raises:
            RunError: The run is not calibrated for this head.
        """
        return calibrated_distance(self.run, self.head)

    def neighbors(
        self,
        vectors: np.ndarray,
        k: int = 30,
        *,
        exclude: Sequence[int] | np.ndarray = (),
        where: str | None = None,
        whole: bool = False,
    ) -> list[list[Result]]:
        """Finds the nearest gallery images of each vector.

        Args:
            vectors: (Q, D) float32.
            k: How many for each vector.
            exclude: Rows to leave out: the same ones for all vectors, or (Q, X), those of each vector, padded with -1.
            where, whole: As in `retrieve`.

        Returns:
            For each vector its results, nearest first.
        """
        return neighbors(self.index, vectors, k, exclude, where, whole=whole)

    def result(self, row: int) -> Result:
        """Returns what the index knows about the image in a row."""
        return describe(self.index, row)
