"""The model that `dr_keras.load` returns: it embeds images and searches its gallery."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from dr_keras.atomic_files import read_json
from dr_keras.data.images import ImageInput, decode
from dr_keras.embedders import Embedder, LiteRTEmbedder, NetworkEmbedder, OpenVINOEmbedder, SavedModelEmbedder
from dr_keras.errors import InputError, RunError
from dr_keras.image_names import resolve
from dr_keras.index.index import Entry, Index
from dr_keras.index.sync import Reader
from dr_keras.invocation import command
from dr_keras.progress import stderr
from dr_keras.runs import Run, open_run
from dr_keras.search_results import Answer, Result, make_answer, refined_query

RUNTIMES = ("auto", "litert", "openvino", "saved_model", "keras")
OPENVINO_MIN_IMAGES = 1000  # from here on, its faster inference makes up for its slower start (docs/decisions/009)

Images = np.ndarray | Iterable[ImageInput]


class Model:
    """A finished run: embeds images and searches its gallery. Made by `load` and `train`.

    Threads may share a model. The network embeds for one caller at a time, on all cores. `use_index` and
    `use_gallery` change the gallery for all threads.

    Args:
        run: The run folder.
        runtime: 'litert', 'openvino', 'saved_model', 'keras' or 'auto'. 'auto' uses LiteRT, or OpenVINO for many
            images if it is installed, or Keras if the run is not exported.

    Example:
        >>> model = load("tiny-imagenet-64")
        >>> images = np.zeros((2, 64, 64, 3), np.uint8)
        >>> model.embed(images).shape
        (2, 256)
    """

    def __init__(self, run: Run, runtime: str = "auto") -> None:
        if runtime not in RUNTIMES:
            raise InputError(f"runtime is {runtime!r}; choose one of {', '.join(RUNTIMES)}")
        self.run = run
        self.config = run.config()
        self._runtime = runtime
        self._embedders: dict[str, Embedder] = {}
        self._index: Index | None = None
        self._guard = threading.Lock()  # guards the two above

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
        if not self.run.weights_file.is_file():
            return Index.open(self.run.index)
        raise RunError(
            f"{self.run.path.name} is a released model and has no gallery of its own; search your own folder with "
            "--gallery FOLDER or --index PATH, or evaluate on a data set with --data"
        )

    def use_index(self, folder: str | os.PathLike[str]) -> "Model":
        """Makes an index the gallery.

        Args:
            folder: The index, made by `index.py`.

        Returns:
            The model itself.

        Raises:
            RunError: There is no index, it is damaged, or its vectors come from another model.
        """
        index = Index.open(folder)
        if index.model and index.model != self.fingerprint:
            maker = f": from {index.run}" if index.run else ""
            index.close()
            raise RunError(
                f"the vectors in {folder} come from another model than {self.run.path}{maker}"
                + "; name that model with --run, or make another index"
            )
        self.index = index
        return self

    @cached_property
    def fingerprint(self) -> str:
        """What the vectors depend on: the weights, and how images are resized."""
        return self.run.fingerprint()

    @property
    def reader(self) -> Reader:
        """How this model turns files into vectors, for `dr_keras.index.sync`."""
        return Reader(self._vectors, self.config.image_size, self.config.resize)

    def use_gallery(self, folder: str | os.PathLike[str], *, console: Console | None = None) -> "Model":
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
            >>> model = load("tiny-imagenet-64").use_gallery("my-pictures")
            >>> len(model.index)
            4
        """
        from dr_keras.index.folder_cache import gallery_index

        # Each runtime's vectors differ a little, so they are cached separately.
        runtime = self._runtime
        if runtime == "openvino" or (runtime == "auto" and self.run.litert_file.is_file()):
            runtime = "litert"  # OpenVINO runs the same file; its vectors differ in the last digit
        self.index = gallery_index(
            Path(folder),
            f"{self.fingerprint} {runtime}",
            self.config.embedding_dim,
            self.reader,
            console=console or stderr(),
        )
        return self

    def _vectors(self, pixels: np.ndarray) -> np.ndarray:
        runtime = self._runtime
        if runtime == "auto":
            runtime = "litert" if self.run.litert_file.is_file() else "keras"
            many = len(pixels) >= OPENVINO_MIN_IMAGES and find_spec("openvino") is not None
            # Once loaded, OpenVINO also embeds the last few images.
            if runtime == "litert" and (many or "openvino" in self._embedders):
                runtime = "openvino"
        with self._guard:
            if runtime not in self._embedders:
                self._embedders[runtime] = self._make_embedder(runtime)
            embedder = self._embedders[runtime]
        return embedder(pixels)

    def embed(self, images: Images) -> np.ndarray:
        """Embeds images.

        Args:
            images: A list of paths, encoded bytes or PIL images, or an (N, H, W, 3) uint8 array; they are resized as
                in training.

        Returns:
            (N, D) float32 vectors of unit length.

        Raises:
            InputError: An image cannot be decoded (the message names it), or an array is not (N, H, W, 3) uint8.

        Example:
            >>> model = load("tiny-imagenet-64")
            >>> model.embed([Image.new("RGB", (320, 240), "red")]).shape
            (1, 256)
        """
        return self._vectors(self._pixels(images))

    def search(self, images: Images, k: int = 30) -> list[list[Result]]:
        """Finds the nearest gallery images of each image.

        Args:
            images: As in `embed`.
            k: How many for each image.

        Returns:
            For each image its results, nearest first.

        Example:
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
            max_distance: Leave out results farther than this; 'auto' is the distance that `evaluate.py --calibrate`
                found.

        Returns:
            The answer, with its results nearest first.

        Raises:
            InputError: No image has this name, or several have; the file is not a usable image; `where` is not a
                condition; or the run is not calibrated.

        Example:
            >>> model = load("tiny-imagenet-64").use_gallery("my-pictures")
            >>> answer = model.retrieve("red.png", where="label = apples")
            >>> answer.label, [result.name for result in answer.results]
            ('apples', ['maroon.png'])
        """
        names = [query] if isinstance(query, str) else list(query)
        if not names:
            raise InputError("no query was given")
        limit = self.calibrated_distance() if max_distance == "auto" else max_distance
        if isinstance(limit, str):
            raise InputError(f"max_distance is {limit!r}; give a number or 'auto'")
        asked = (*names, *negatives)
        index = self.index  # another thread may replace it
        # Files are embedded first, so that meanwhile other threads may search and refresh the index.
        files = {name: file for name in asked if isinstance(file := resolve(index, name), Path)}
        fresh = dict(zip(files, self.embed(list(files.values())), strict=True)) if files else {}
        with index.held():
            rows = [None if name in files else _row(index, name) for name in asked]
            vectors = np.stack(
                [fresh[name] if row is None else index.vectors[row] for name, row in zip(asked, rows, strict=True)]
            )
            vector = refined_query(vectors[: len(names)], vectors[len(names) :])
            excluded = [row for row in (rows[len(names) :] if include_self else rows) if row is not None]
            results = _neighbors(index, vector[None], k, excluded, where)[0]
            known = [_describe(index, row) if row is not None else None for row in rows[: len(names)]]
        path = known[0].path if known[0] else files[names[0]]
        return make_answer(names, path, known, results, negatives=negatives, max_distance=limit)

    def calibrated_distance(self) -> float:
        """Returns the distance that `evaluate.py --calibrate` found.

        Raises:
            RunError: The run is not calibrated.
        """
        try:
            return float(read_json(self.run.calibration_file)["max_distance"])
        except FileNotFoundError:
            raise RunError(
                f"{self.run.path} is not calibrated; run {command('evaluate')} --run {self.run.path.name} "
                "--calibrate 0.95"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.run.calibration_file} cannot be read: {error}") from error

    def neighbors(
        self, vectors: np.ndarray, k: int = 30, *, exclude: Sequence[int] | np.ndarray = (), where: str | None = None
    ) -> list[list[Result]]:
        """Finds the nearest gallery images of each vector.

        Args:
            vectors: (Q, D) float32.
            k: How many for each vector.
            exclude: Rows to leave out: the same ones for all vectors, or (Q, X), those of each vector, padded with -1.
            where: As in `retrieve`.

        Returns:
            For each vector its results, nearest first.
        """
        return _neighbors(self.index, vectors, k, exclude, where)

    def result(self, row: int) -> Result:
        """Returns what the index knows about the image in a row."""
        return _describe(self.index, row)

    def _make_embedder(self, runtime: str) -> Embedder:
        if runtime == "saved_model":
            return SavedModelEmbedder(self.run.saved_model)
        if runtime == "keras":
            return NetworkEmbedder(self.run)
        if runtime == "openvino":
            return OpenVINOEmbedder(self.run.litert_file)
        return LiteRTEmbedder(self.run.litert_file)

    def _pixels(self, images: Images) -> np.ndarray:
        size = self.config.image_size
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise InputError("a list of images was expected, but one image was given; put it in a list")
        if isinstance(images, np.ndarray):
            if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
                raise InputError(f"an array of {images.dtype} {images.shape} was given; expected uint8 (N, H, W, 3)")
            if images.shape[1:3] == (size, size):
                return images
            images = [Image.fromarray(image) for image in images]
        decoded = []
        for number, image in enumerate(images):
            try:
                decoded.append(decode(image, size, self.config.resize))
            except InputError as error:
                name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
                raise InputError(f"{name!s} {error}") from error
        return np.stack(decoded) if decoded else np.empty((0, size, size, 3), np.uint8)


def _row(index: Index, name: str) -> int:
    """The row of an image that `resolve` found in the index a moment ago."""
    found = resolve(index, name)
    if isinstance(found, Path):
        raise InputError(f"{name!r} was removed from the index during the search")
    return found


def _neighbors(
    index: Index, vectors: np.ndarray, k: int, exclude: Sequence[int] | np.ndarray, where: str | None
) -> list[list[Result]]:
    others = np.broadcast_to(np.asarray(exclude, np.int64), (len(vectors), np.shape(exclude)[-1]))
    with index.held():
        rows, distances = index.search(vectors, k, where=where, exclude=others)
        good = rows >= 0
        entries = dict(zip(rows[good].tolist(), index.records.entries(rows[good]), strict=True))
        names, root = index.records.class_names(), index.root
    return [
        [
            _result(root, entries[row], names, rank, distance)
            for rank, (row, distance) in enumerate(zip(*found, strict=True), start=1)
            if row >= 0
        ]
        for found in zip(rows.tolist(), distances.tolist(), strict=True)
    ]


def _describe(index: Index, row: int) -> Result:
    with index.held():
        return _result(index.root, index.records.entries([row])[0], index.records.class_names())


def _result(root: Path, entry: Entry, names: Mapping[str, str], rank: int = 0, distance: float = 0.0) -> Result:
    return Result(rank, entry.id, root / entry.id, entry.label, names[entry.label], distance, entry.attributes)


def load(
    run: str | os.PathLike[str] | None = None,
    *,
    runtime: str = "auto",
    index: str | os.PathLike[str] | None = None,
) -> Model:
    """Loads a finished run or a released model.

    Args:
        run: Its name or folder. By default the run that made `index`, or else the latest one in runs/.
        runtime: See `Model`.
        index: The index to search; the run's own by default.

    Returns:
        The model.

    Raises:
        RunError: There is no such run, or it is unfinished or damaged.

    Example:
        >>> model = load("tiny-imagenet-64")
        >>> model.config.embedding_dim
        256
    """
    if run is None and index is not None:
        with Index.open(index) as opened:
            run = opened.run or None
    model = Model(open_run(None if run is None else os.fspath(run)), runtime)
    if index is not None:
        return model.use_index(index)
    if not model.run.weights_file.is_file():
        _ = model.index  # so that a damaged index is reported at once
    return model
