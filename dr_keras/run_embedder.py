"""Embeds images with a run, by the runtime that suits their number."""

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dr_keras.errors import InputError
from dr_keras.heads import FITTED, TRAINED, GeneralHead
from dr_keras.index.index import HEAD_FILE, Index
from dr_keras.index.reader import Reader
from dr_keras.runs import Run
from dr_keras.runtimes import RUNTIMES

if TYPE_CHECKING:  # what a search by name need not import
    from dr_keras.data.images import ImageInput
    from dr_keras.embedders import Embedder

# OpenVINO's faster inference makes up for its slower start once LiteRT would have taken this long in all
# (docs/decisions/009), as far as a few images tell.
OPENVINO_MIN_SECONDS = 1.5
TIMED_IMAGES = 4

Images: TypeAlias = "np.ndarray | Iterable[ImageInput]"


class RunEmbedder:
    """Decodes and embeds images as a run does. Threads may share it; each network embeds for one caller at a time.

    Args:
        run: The run.
        runtime: One of `RUNTIMES`; 'auto' uses LiteRT, or OpenVINO if it is installed and LiteRT would take more than a
            second or two for all images until now, or Keras if the run is not exported.

    Raises:
        InputError: There is no such runtime.
    """

    def __init__(self, run: Run, runtime: str = "auto") -> None:
        if runtime not in RUNTIMES:
            raise InputError(f"runtime is {runtime!r}; choose one of {', '.join(RUNTIMES)}")
        self.run = run
        self.runtime = runtime
        self._embedders: dict[tuple[str, str], Embedder] = {}
        self._fingerprints: dict[str, str] = {}
        self._guard = threading.Lock()  # guards the two above
        self._seconds = 0.0  # that LiteRT takes for an image; 0 until it is known
        self._spent = 0.0  # seconds of LiteRT until now

    @cached_property
    def _square(self) -> tuple[int, str]:
        """The size of images, and how they are resized; without the other settings, which take a while to check."""
        settings = self.run.settings()
        if isinstance(settings.get("image_size"), int) and isinstance(settings.get("resize"), str):
            return settings["image_size"], settings["resize"]
        config = self.run.config()
        return config.image_size, config.resize

    def fingerprint(self, head: str) -> str:
        """Returns `Run.fingerprint` of a head, computed once."""
        with self._guard:
            if head not in self._fingerprints:
                self._fingerprints[head] = self.run.fingerprint(head)
            return self._fingerprints[head]

    def fingerprint_of(self, index: Index) -> str:
        """Returns what the vectors of an index would depend on, if this run made them with the head of the index."""
        if index.head != FITTED:
            return self.fingerprint(index.head)
        return f"{self.fingerprint(TRAINED)} {FITTED} {GeneralHead.of_index(index.read_file(HEAD_FILE)).checksum}"

    def reader(self, head: str, after: GeneralHead | None = None) -> Reader:
        """Returns how files become vectors of a head; `after` is applied to those."""

        def embed(pixels: np.ndarray) -> np.ndarray:
            vectors = self.vectors(pixels, head)
            return vectors if after is None else after(vectors)

        return Reader(embed, *self._square)

    def reader_for(self, index: Index) -> Reader:
        """Returns how files become the vectors of an index."""
        own = index.head != FITTED
        reader = (
            self.reader(index.head) if own else self.reader(TRAINED, GeneralHead.of_index(index.read_file(HEAD_FILE)))
        )
        return replace(reader, parts=index.parts)

    def vector_runtime(self) -> str:
        """Returns what tells the vectors of the runtimes apart, which differ a little.

        OpenVINO runs the same file as LiteRT; its vectors differ in the last digit.
        """
        if self.runtime == "openvino" or (self.runtime == "auto" and self.run.litert_file.is_file()):
            return "litert"
        return self.runtime

    def vectors(self, pixels: np.ndarray, head: str) -> np.ndarray:
        """Embeds decoded images by a head.

        Args:
            pixels: (N, H, W, 3) uint8 of the run's image size.
            head: TRAINED or GENERAL, see `dr_keras.heads`.

        Returns:
            (N, D) float32 of unit length.

        Raises:
            RunError: The run has no such head.
        """
        if self.runtime != "auto":
            return self._embedder(self.runtime, head)(pixels)
        if not self.run.litert_file.is_file():
            return self._embedder("keras", head)(pixels)
        if find_spec("openvino") is None:
            return self._embedder("litert", head)(pixels)
        done = 2 * TIMED_IMAGES
        if not self._seconds and len(pixels) > done:
            return np.concatenate([self._timed(pixels[:done], head), self._sooner(pixels[done:], head)])
        return self._sooner(pixels, head)

    def _sooner(self, pixels: np.ndarray, head: str) -> np.ndarray:
        """Embeds with LiteRT or OpenVINO, whichever is likely to finish first."""
        # Once loaded, OpenVINO also embeds the last few images. Many small batches are as good a reason as a large one.
        long = self._spent + len(pixels) * self._seconds >= OPENVINO_MIN_SECONDS
        if len(pixels) > 1 and (long or ("openvino", head) in self._embedders):  # a single one has a single stream
            return self._embedder("openvino", head)(pixels)
        started = time.perf_counter()
        vectors = self._embedder("litert", head)(pixels)
        self._spent += time.perf_counter() - started
        return vectors

    def _timed(self, pixels: np.ndarray, head: str) -> np.ndarray:
        """Embeds twice `TIMED_IMAGES` with LiteRT, and keeps how long it takes once it has allocated its memory."""
        embedder = self._embedder("litert", head)
        first = embedder(pixels[:TIMED_IMAGES])
        started = time.perf_counter()
        second = embedder(pixels[TIMED_IMAGES:])
        self._seconds = (time.perf_counter() - started) / TIMED_IMAGES
        return np.concatenate([first, second])

    def _embedder(self, runtime: str, head: str) -> "Embedder":
        with self._guard:
            if (runtime, head) not in self._embedders:
                self._embedders[runtime, head] = self._make(runtime, head)
            return self._embedders[runtime, head]

    def pixels(self, images: Images) -> np.ndarray:
        """Decodes images.

        Args:
            images: A list of paths, encoded bytes or PIL images, or an (N, H, W, 3) uint8 array.

        Returns:
            (N, size, size, 3) uint8, resized as in training.

        Raises:
            InputError: An image cannot be decoded (the message names it), or an array is not (N, H, W, 3) uint8.
        """
        from PIL import Image

        from dr_keras.data.images import decode

        size, resize = self._square
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
                decoded.append(decode(image, size, resize))
            except InputError as error:
                name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
                raise InputError(f"{name!s} {error}") from error
        return np.stack(decoded) if decoded else np.empty((0, size, size, 3), np.uint8)

    def _make(self, runtime: str, head: str) -> "Embedder":
        from dr_keras.embedders import LiteRTEmbedder, NetworkEmbedder, OpenVINOEmbedder, SavedModelEmbedder

        if runtime == "saved_model":
            return SavedModelEmbedder(self.run.saved_model, head)
        if runtime == "keras":
            return NetworkEmbedder(self.run, head)
        if runtime in ("openvino", "openvino_bfloat16"):
            return OpenVINOEmbedder(self.run.litert_file, head, "bf16" if runtime.endswith("bfloat16") else "f32")
        return LiteRTEmbedder(self.run.litert_file, head)
