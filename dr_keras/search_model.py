"""dr_keras as a library: train, load, embed, search."""

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
from dr_keras.data.images import Source, decode
from dr_keras.embedders import Embedder, LiteRTEmbedder, NetworkEmbedder, OpenVINOEmbedder, SavedModelEmbedder
from dr_keras.errors import InputError, RunError
from dr_keras.filenames import existing
from dr_keras.index.index import Entry, Index
from dr_keras.index.sync import Reader
from dr_keras.invocation import command
from dr_keras.progress import stderr
from dr_keras.runs import Run, open_run
from dr_keras.search_results import Answer, Result, answered, refined_query

RUNTIMES = ("auto", "litert", "openvino", "saved_model", "keras")
MANY = 1000  # images from which on OpenVINO's faster computing makes up for its slower start (docs/decisions/009)

Images = np.ndarray | Iterable[Source]


class Model:
    """A finished run: embeds images and searches its gallery. Made by `load` and `train`.

    Threads may share it: `embed`, `search`, `retrieve` and all others give each caller what is its own. The network
    embeds for one caller at a time, on all cores. `use_index` and `use_gallery` change what all of them search.

    Args:
        run: the run folder.
        runtime: 'litert', 'openvino', 'saved_model', 'keras', or 'auto': LiteRT, for many images OpenVINO where it is
            installed, and Keras where the run is not exported.
    """

    def __init__(self, run: Run, runtime: str = "auto") -> None:
        if runtime not in RUNTIMES:
            raise InputError(f"runtime is {runtime!r}; choose one of {', '.join(RUNTIMES)}")
        self.run = run
        self.config = run.config()
        self._runtime = runtime
        self._embedders: dict[str, Embedder] = {}
        self._index: Index | None = None
        self._guard = threading.Lock()  # of the two above

    @property
    def index(self) -> Index:
        """The gallery: the run's own index, opened when it is first wanted, or what `use_index` or `use_gallery` set.

        Raises:
            RunError: it is damaged, or this is a released model, which has none until it is given one.
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
        """Makes an index, as `index.py` keeps them, the gallery; returns the model itself.

        Raises:
            RunError: there is none, it is damaged, or its vectors are another model's.
        """
        index = Index.open(folder)
        if index.model and index.model != self.fingerprint:
            maker = f": of {index.run}" if index.run else ""
            index.close()
            raise RunError(
                f"the vectors in {folder} are of another model than {self.run.path}{maker}"
                + "; name that with --run, or make another index"
            )
        self.index = index
        return self

    @cached_property
    def fingerprint(self) -> str:
        """What vectors of this model depend on: its weights, and how images are brought to its size."""
        return self.run.fingerprint()

    @property
    def reader(self) -> Reader:
        """How files become vectors of this model, for `dr_keras.index.sync`."""
        return Reader(self._vectors, self.config.image_size, self.config.resize)

    def use_gallery(self, folder: str | os.PathLike[str], *, console: Console | None = None) -> "Model":
        """Makes all images below a folder the gallery; a picture's class is the subfolder that it lies in.

        They are embedded the first time and kept in the cache; later only files that changed are read again.

        Args:
            folder: the folder.
            console: where progress is shown; standard error by default.

        Returns:
            The model itself.

        Raises:
            InputError: the folder is absent or holds no readable image, or the run has no network.
        """
        from dr_keras.index.folder_cache import gallery_index

        # Vectors of another runtime are a little different, and are kept apart.
        runtime = self._runtime
        if runtime == "openvino" or (runtime == "auto" and self.run.litert_file.is_file()):
            runtime = "litert"  # the same file, and a few units of the last digit apart
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
            # Once it is there it is used for the last few images too.
            fast = "openvino" in self._embedders or (len(pixels) >= MANY and find_spec("openvino") is not None)
            if runtime == "litert" and fast:
                runtime = "openvino"
        with self._guard:
            if runtime not in self._embedders:
                self._embedders[runtime] = self._make_embedder(runtime)
            embedder = self._embedders[runtime]
        return embedder(pixels)

    def embed(self, images: Images) -> np.ndarray:
        """Embeds images.

        Args:
            images: a list of paths, encoded bytes or PIL images, or an (N, H, W, 3) uint8 array; they are resized as
                in training.

        Returns:
            (N, D) float32 vectors of unit length.

        Raises:
            InputError: an image cannot be decoded (the message names it), or an array is not (N, H, W, 3) uint8.
        """
        return self._vectors(self._pixels(images))

    def search(self, images: Images, k: int = 30) -> list[list[Result]]:
        """The `k` nearest gallery images of each image, nearest first; `images` as in `embed`."""
        return self.neighbours(self.embed(images), k)

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
        """The `k` nearest gallery images of one image, named as a person would, or of several together.

        Args:
            query: an image of the index by its id, its path or its unique base name, held-out images included; or any
                other image file. A path that starts with '.', '/' or '~' is always taken for a file. Of several, the
                mean is searched for.
            k: how many.
            include_self: whether images of the gallery may find themselves.
            negatives: images, named likewise, that the results should be unlike.
            where: search only images of which this is true, such as `label = cats`; see `dr_keras.index.filters`.
            max_distance: leave out what is farther; 'auto' takes what `evaluate.py --calibrate` found.

        Raises:
            InputError: nothing has that name, several images have, or the file is no usable image; `where` is no
                condition; or the run is not calibrated.
        """
        names = [query] if isinstance(query, str) else list(query)
        if not names:
            raise InputError("no query was given")
        limit = self.calibrated_distance() if max_distance == "auto" else max_distance
        if isinstance(limit, str):
            raise InputError(f"max_distance is {limit!r}; give a number or 'auto'")
        asked = (*names, *negatives)
        index = self.index  # another thread may put another one in its place
        # Other files are embedded first: meanwhile other threads may search, and the index may be refreshed.
        files = {name: Path(_file(name)) for name in asked if _row(index, name) is None}
        fresh = dict(zip(files, self.embed(list(files.values())), strict=True)) if files else {}
        with index.held():
            rows = [None if name in files else _row(index, name) for name in asked]
            vectors = np.stack(
                [fresh[name] if row is None else index.vectors[row] for name, row in zip(asked, rows, strict=True)]
            )
            vector = refined_query(vectors[: len(names)], vectors[len(names) :])
            never = rows[len(names) :] if include_self else rows  # what results should be unlike is never a result
            own = [row for row in never if row is not None]
            found = _neighbours(index, vector[None], k, own, where)[0]
            known = [_known(index, row) if row is not None else None for row in rows[: len(names)]]
        path = known[0].path if known[0] else files[names[0]]
        return answered(names, path, known, found, negatives=negatives, max_distance=limit)

    def calibrated_distance(self) -> float:
        """The distance that `evaluate.py --calibrate` found.

        Raises:
            RunError: the run is not calibrated.
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

    def neighbours(
        self, vectors: np.ndarray, k: int = 30, *, exclude: Sequence[int] | np.ndarray = (), where: str | None = None
    ) -> list[list[Result]]:
        """The `k` nearest images of each vector (Q, D), without the rows `exclude`, of all or (Q, X) of each, filled up
        with -1; `where` as in `retrieve`."""
        return _neighbours(self.index, vectors, k, exclude, where)

    def result(self, row: int) -> Result:
        """What the index knows of one of its rows."""
        return _known(self.index, row)

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
            raise InputError("a list of images was expected, and one image was given; put it in a list")
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


def _file(query: str) -> str:
    """The path that a query may be, in the form of Unicode in which it exists."""
    return existing(os.path.expanduser(query))


def _row(index: Index, query: str) -> int | None:
    """The row of an image that is named as a person would, or None where it is a file that the index lacks."""
    file = _file(query)
    exists = os.path.lexists(file)  # what is no image is refused when it is read
    if exists and query.startswith((".", "/", "~")):
        root = os.path.join(index.root, "")
        paths = (os.path.abspath(file), os.path.realpath(file))  # class folders may be symbolic links
        ids = (path.removeprefix(root).replace(os.sep, "/") for path in paths)
        return next((row for id in ids if (row := index.row(id)) is not None), None)
    try:
        return index.find(query)
    except InputError:
        if exists and not os.path.isdir(file):
            return None
        raise


def _neighbours(
    index: Index, vectors: np.ndarray, k: int, exclude: Sequence[int] | np.ndarray, where: str | None
) -> list[list[Result]]:
    others = np.broadcast_to(np.asarray(exclude, np.int64), (len(vectors), np.shape(exclude)[-1]))
    with index.held():
        rows, distances = index.search(vectors, k, where=where, exclude=others)
        good = rows >= 0
        entries = dict(zip(rows[good].tolist(), index.entries(rows[good]), strict=True))
        names, root = index.class_names(), index.root
    return [
        [
            _result(root, entries[row], names, rank, distance)
            for rank, (row, distance) in enumerate(zip(*found, strict=True), start=1)
            if row >= 0
        ]
        for found in zip(rows.tolist(), distances.tolist(), strict=True)
    ]


def _known(index: Index, row: int) -> Result:
    with index.held():
        return _result(index.root, index.entries([row])[0], index.class_names())


def _result(root: Path, entry: Entry, names: Mapping[str, str], rank: int = 0, distance: float = 0.0) -> Result:
    return Result(rank, entry.id, root / entry.id, entry.label, names[entry.label], distance, entry.attributes)


def load(
    run: str | os.PathLike[str] | None = None,
    *,
    runtime: str = "auto",
    index: str | os.PathLike[str] | None = None,
) -> Model:
    """Loads a finished run.

    Args:
        run: its name or folder; by default the one that made `index`, else the latest one in runs/.
        runtime: see `Model`.
        index: the index to search; the run's own by default.

    Raises:
        RunError: there is no such run, or it is unfinished or damaged.
    """
    if run is None and index is not None:
        with Index.open(index) as opened:
            run = opened.run or None
    model = Model(open_run(None if run is None else os.fspath(run)), runtime)
    if index is not None:
        return model.use_index(index)
    if not model.run.weights_file.is_file():
        _ = model.index  # a damaged index shall be known at once
    return model
