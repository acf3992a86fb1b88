"""dr_keras as a library: train, load, embed, search."""

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from dr_keras.config import Config
from dr_keras.console import stderr
from dr_keras.data.images import Source, decode
from dr_keras.errors import InputError, RunError
from dr_keras.files import new_file
from dr_keras.retrieval.embed import Embedder, LiteRTEmbedder, NetworkEmbedder, SavedModelEmbedder
from dr_keras.retrieval.index import Index
from dr_keras.runs import RUNS, Run, open_run

RUNTIMES = ("auto", "litert", "saved_model", "keras")

Images = np.ndarray | Iterable[Source]


@dataclass(frozen=True)
class Result:
    """One neighbour: its rank from 1, id, file, class folder, class name, and Euclidean distance to the query."""

    rank: int
    id: str
    path: Path
    label: str
    class_name: str
    distance: float

    @property
    def name(self) -> str:
        """The base name of the file."""
        return self.id.rpartition("/")[2]


@dataclass(frozen=True)
class Answer:
    """What `Model.retrieve` found for one query.

    Attributes:
        query: the query as it was asked.
        path: its file.
        label, class_name: its class where the run knows it, else None.
        results: the neighbours, nearest first.
    """

    query: str
    path: Path
    label: str | None
    class_name: str | None
    results: list[Result]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "query": self.query,
            "label": self.label,
            "results": [
                {
                    "rank": result.rank,
                    "name": result.name,
                    "id": result.id,
                    "path": str(result.path),
                    "label": result.label,
                    "class_name": result.class_name,
                    "distance": result.distance,
                }
                for result in self.results
            ],
        }

    def save(self, file: Path) -> None:
        """Saves a picture of the query and its neighbours, framed green where they have its class.

        Raises:
            InputError: the picture cannot be written there or has an ending that Pillow does not know.
        """
        from dr_keras import pictures

        neighbours = [
            pictures.Neighbour(
                pictures.open_or_missing(result.path),
                result.class_name,
                result.distance,
                None if self.label is None else result.label == self.label,
            )
            for result in self.results
        ]
        tiles = pictures.neighbour_tiles(pictures.open_or_missing(self.path), self.class_name, neighbours)
        width = min(8, len(tiles))
        picture = pictures.grid([tiles[start : start + width] for start in range(0, len(tiles), width)])
        try:
            with new_file(file) as temporary:
                picture.save(temporary)
        except (OSError, ValueError) as error:
            raise InputError(f"the picture {file} cannot be saved: {error}") from error


class Model:
    """A finished run: embeds images and searches its gallery. Made by `load` and `train`.

    Args:
        run: the run folder.
        runtime: 'litert', 'saved_model', 'keras', or 'auto': LiteRT, and Keras where the run is not exported.
    """

    def __init__(self, run: Run, runtime: str = "auto") -> None:
        if runtime not in RUNTIMES:
            raise InputError(f"runtime is {runtime!r}; choose one of {', '.join(RUNTIMES)}")
        self.run = run
        self.config = run.config()
        if not run.weights_file.is_file():  # a damaged index shall be known at once
            self.index = Index.open(run.index)
        self._runtime = runtime
        self._embedder: Embedder | None = None

    @cached_property
    def index(self) -> Index:
        """The gallery; raises `RunError` for a released model, which has none until `use_gallery` gives it one."""
        raise RunError(
            f"{self.run.path.name} is a released model and has no gallery of its own; search your own folder with "
            "--gallery FOLDER, or evaluate on a data set with --data"
        )

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
        from dr_keras.retrieval.gallery import gallery_index

        files = [self.run.weights_file, self.run.network_file]
        if self._runtime in ("auto", "litert"):  # vectors of another runtime are a little different, and are kept apart
            files.insert(0, self.run.litert_file)
        weights = next((file for file in files if file.is_file()), None)
        if weights is None:
            raise RunError(f"{self.run.path} holds no network to embed with; export it with train.py --export-only")
        self.index = gallery_index(
            Path(folder),
            f"{zlib.crc32(weights.read_bytes()):08x} {self.config.image_size} {self.config.resize}",
            self._vectors,
            size=self.config.image_size,
            resize=self.config.resize,
            console=console or stderr(),
        )
        return self

    def _vectors(self, pixels: np.ndarray) -> np.ndarray:
        if self._embedder is None:
            self._embedder = self._make_embedder()
        return self._embedder(pixels)

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

    def retrieve(self, query: str, k: int = 30, *, include_self: bool = False) -> Answer:
        """The `k` nearest gallery images of one image, named as a person would.

        Args:
            query: an image of the run by its id, its path or its unique base name, held-out images included; or any
                other image file. A path that starts with '.', '/' or '~' is always taken for a file.
            k: how many.
            include_self: whether an image of the gallery may find itself.

        Raises:
            InputError: nothing has that name, several images have, or the file is no usable image.
        """
        file = Path(os.path.expanduser(query))
        row = self._row(query, file)
        if row is None:
            return Answer(query, file, None, None, self.search([file], k)[0])
        found = self.neighbours(self.index.vectors[row : row + 1], k, exclude=None if include_self else row)[0]
        own = self.result(row)
        return Answer(query, own.path, own.label, own.class_name, found)

    def _row(self, query: str, file: Path) -> int | None:
        """The row of an indexed query, or None where the query is another file."""
        exists = os.path.isfile(file)  # pathlib's raises where a name is too long
        if exists and query.startswith((".", "/", "~")):
            paths = (Path(os.path.abspath(file)), file.resolve())  # class folders may be symbolic links
            inside = (path.relative_to(self.index.root) for path in paths if path.is_relative_to(self.index.root))
            return next((row for path in inside if (row := self.index.row(path.as_posix())) is not None), None)
        try:
            return self.index.find(query)
        except InputError:
            if exists:
                return None
            raise

    def neighbours(self, vectors: np.ndarray, k: int = 30, *, exclude: int | None = None) -> list[list[Result]]:
        """The `k` nearest gallery images of each vector (Q, D), leaving out row `exclude` of the index."""
        rows, distances = self.index.search(
            vectors, k, exclude=None if exclude is None else np.full(len(vectors), exclude)
        )
        return [
            [self.result(int(row), rank, float(d)) for rank, (row, d) in enumerate(zip(*found, strict=True), start=1)]
            for found in zip(rows, distances, strict=True)
        ]

    def result(self, row: int, rank: int = 0, distance: float = 0.0) -> Result:
        """What the index knows of one of its rows."""
        label = int(self.index.labels[row])
        name = self.index.ids[row]
        return Result(
            rank, name, self.index.root / name, self.index.classes[label], self.index.class_names[label], distance
        )

    def _make_embedder(self) -> Embedder:
        runtime = self._runtime
        if runtime == "auto":
            runtime = "litert" if self.run.litert_file.is_file() else "keras"
        if runtime == "saved_model":
            return SavedModelEmbedder(self.run.saved_model)
        if runtime == "keras":
            return NetworkEmbedder(self.run)
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


def load(run: str | os.PathLike[str] | None = None, *, runtime: str = "auto") -> Model:
    """Loads a finished run by name or folder; the latest one in runs/ by default.

    Raises:
        RunError: there is no such run, or it is unfinished or damaged.
    """
    return Model(open_run(None if run is None else os.fspath(run)), runtime)


def train(
    config: Config, *, runs: str | os.PathLike[str] = RUNS, overwrite: bool = False, resume: bool = False
) -> Model:
    """Trains as `config` says and returns the finished model; its run folder is made in `runs`.

    Args:
        config: the settings.
        runs: the folder that run folders lie in.
        overwrite: replace an earlier run of the same name.
        resume: go on with the unfinished run of that name.

    Raises:
        InputError: the data cannot be used, or a run of that name exists and `overwrite` is off.
        Interrupted: Ctrl-C or SIGTERM; the run is saved and can be resumed.
    """
    from dr_keras.training.run import run_training

    return Model(run_training(config, runs=Path(runs), overwrite=overwrite, resume=resume))
