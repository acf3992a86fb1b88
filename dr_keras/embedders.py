"""Embeds images: with the Keras network after training; with LiteRT, OpenVINO, the SavedModel or Keras later.

Threads may share an embedder. It takes one call at a time: each call uses all cores, and interpreters and queues hold
the images of the call.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dr_keras.backend import import_framework, keras_defaults, unavailable
from dr_keras.errors import MissingPackage, NotNumbers, RunError
from dr_keras.extras import how_to_install
from dr_keras.heads import GENERAL, TRAINED
from dr_keras.invocation import command
from dr_keras.runtimes import threads

if TYPE_CHECKING:
    import keras

    from dr_keras.cells import Maps
    from dr_keras.data.pixel_store import Pixels
    from dr_keras.runs import Run

BATCH_IMAGES = 256
STREAM_IMAGES = 16  # in each batch of an OpenVINO stream,
LARGE_STREAM_IMAGES, LARGE = 4, 128  # and of this many pixels per side and more
ANY_SIZE = -1  # of a batch: OpenVINO prepares for each size when it first comes

Advance = Callable[[int], None]


class Embedder(Protocol):
    """Maps (N, H, W, 3) uint8 images of the model's size to (N, D) float32 vectors of unit length, in any thread."""

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


def check_finite(vectors: np.ndarray) -> np.ndarray:
    """Checks that embeddings are finite.

    Args:
        vectors: (N, D).

    Returns:
        The same vectors.

    Raises:
        NotNumbers: A component is NaN or infinite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        bad = int((~np.isfinite(vectors.sum(axis=1, dtype=np.float64))).sum())
    if bad:
        raise NotNumbers(
            f"{bad:,} of {len(vectors):,} embeddings are not numbers: the training of this network diverged, or its "
            "file is damaged; train it again, with a lower --learning-rate or --precision float32"
        )
    return vectors


@keras_defaults()
def embed_with_network(
    network: "keras.Model", images: "Pixels", rows: np.ndarray | None = None, *, advance: Advance | None = None
) -> np.ndarray:
    """Embeds decoded images with a Keras network, on its own backend and device.

    Args:
        network: (B, H, W, 3) uint8 -> (B, D).
        images: (M, H, W, 3) uint8, an array or streamed; they are shrunk if the network takes smaller ones.
        rows: (N,) the images to embed; by default all.
        advance: Called after each batch, with the number of its images.

    Returns:
        (N, D) float32.

    Raises:
        NotNumbers: An embedding is not finite.
    """
    from dr_keras.data.augment_pillow import augmented
    from dr_keras.data.augmentation_draws import Augmentation

    count = len(images) if rows is None else len(rows)
    rows = np.arange(count) if rows is None else rows
    vectors = np.empty((count, network.output_shape[-1]), np.float32)
    batch, size = min(BATCH_IMAGES, max(count, 1)), network.input_shape[1]
    for start in range(0, count, batch):
        part = augmented(images, rows[start : start + batch], Augmentation(), size=size)
        padded = np.zeros((batch, size, size, 3), np.uint8)  # one shape, so that the network is compiled only once
        padded[: len(part)] = part
        vectors[start : start + len(part)] = np.asarray(network.predict_on_batch(padded), np.float32)[: len(part)]
        if advance:
            advance(len(part))
    return check_finite(vectors)


MAP = "map_"  # before the name of a map, in the names of the outputs of an exported file


def _output(outputs: Sequence[tuple[str, int]], head: str, file: Path) -> int:
    """The number of the output of a head.

    Args:
        outputs: The name and the rank of each output of a LiteRT file. Vectors have rank 2, maps have rank 4. With
            maps, the names end in the alphabetical place of what they are; without, the trained head comes first.
        head: TRAINED or GENERAL.
        file: The file, for messages.
    """
    vectors = [number for number, (_, rank) in enumerate(outputs) if rank == 2]
    if len(vectors) < len(outputs):
        vectors.sort(key=lambda number: int(outputs[number][0].rpartition(":")[2]), reverse=True)  # "trained" is last
    if head == GENERAL and len(vectors) < 2:
        raise RunError(f"{file} has no general head; export it again: {command('train')} --export-only")
    return vectors[0 if head == TRAINED else 1]


def _litert_interpreter(file: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    if not file.is_file():
        raise RunError(f"{file} does not exist; make it with {command('train')} --export-only")
    try:
        return Interpreter(str(file), num_threads=threads())
    except ValueError as error:
        raise RunError(f"{file} cannot be read by LiteRT: {error}") from error


class LiteRTEmbedder:
    """Embeds with the LiteRT file of a run; starts in a tenth of a second and does not import TensorFlow.

    Args:
        file: The LiteRT file.
        head: TRAINED or GENERAL, see `dr_keras.heads`.

    Raises:
        RunError: The file does not exist, cannot be read, or has no such head.
    """

    def __init__(self, file: Path, head: str = TRAINED) -> None:
        self._interpreter = _litert_interpreter(file)
        self._input = self._interpreter.get_input_details()[0]
        outputs = self._interpreter.get_output_details()
        named = [(output["name"], len(output["shape"])) for output in outputs]
        self._output = outputs[_output(named, head, file)]
        self._batch = 0
        self._guard = threading.Lock()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with self._guard:
            vectors = [self._run(images[start : start + BATCH_IMAGES]) for start in range(0, len(images), BATCH_IMAGES)]
        return (
            check_finite(np.concatenate(vectors))
            if vectors
            else np.empty((0, int(self._output["shape"][-1])), np.float32)
        )

    def _run(self, images: np.ndarray) -> np.ndarray:
        if len(images) != self._batch:
            self._interpreter.resize_tensor_input(self._input["index"], images.shape)
            self._interpreter.allocate_tensors()
            self._batch = len(images)
        self._interpreter.set_tensor(self._input["index"], images)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output["index"])


class LiteRTMaps:
    """Runs the LiteRT file of a run for the maps that explain its embeddings.

    Args:
        file: The LiteRT file.

    Raises:
        RunError: The file does not exist or cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._interpreter = _litert_interpreter(file)
        signatures = self._interpreter.get_signature_list().values()
        names = next(iter(signatures))["outputs"] if signatures else []
        self.available = any(name.startswith(MAP) for name in names)
        self._guard = threading.Lock()

    def __call__(self, images: np.ndarray) -> "tuple[dict[str, np.ndarray], list[Maps]]":
        """Returns the vectors and the maps of images.

        Args:
            images: (N, H, W, 3) uint8 of the model's size.

        Returns:
            By head, (N, D) float32; and for each image its maps.
        """
        with self._guard:
            runner = self._interpreter.get_signature_runner()
            (name,) = runner.get_input_details()
            found = runner(**{name: images})
        maps = {name.removeprefix(MAP): values for name, values in found.items() if name.startswith(MAP)}
        vectors = {name: values for name, values in found.items() if not name.startswith(MAP)}
        return vectors, [{name: values[row] for name, values in maps.items()} for row in range(len(images))]


def _import_openvino() -> Any:
    """Imports OpenVINO without its telemetry, which would report each use from a fork of the user's process.

    Raises:
        MissingPackage: OpenVINO is not installed.
    """
    try:
        with unavailable("openvino_telemetry"):
            import openvino
    except ImportError as error:
        message = f"OpenVINO is not installed: {how_to_install('openvino')}, or choose another runtime"
        raise MissingPackage(message) from error
    return openvino


class OpenVINOEmbedder:
    """Embeds with the LiteRT file of a run on OpenVINO: faster than LiteRT for many images, slower to start.

    There are as many streams as cores, each with its own batch, so that none waits for another at the end of a layer.

    Args:
        file: The LiteRT file.
        head: TRAINED or GENERAL, see `dr_keras.heads`.
        precision: 'f32', or 'bf16': faster on processors with bfloat16 arithmetic, within about 5e-3 of float32.

    Raises:
        MissingPackage: OpenVINO is not installed.
        RunError: The file does not exist, cannot be read, or has no such head.
    """

    def __init__(self, file: Path, head: str = TRAINED, precision: str = "f32") -> None:
        openvino = _import_openvino()
        if not file.is_file():
            raise RunError(f"{file} does not exist; make it with {command('train')} --export-only")
        self._openvino = openvino
        self._streams = streams = threads()
        try:
            model = openvino.Core().read_model(file)
        except RuntimeError as error:
            raise RunError(f"{file} cannot be read by OpenVINO: {error}") from error
        self._shape = [side.get_length() for side in list(model.input(0).partial_shape)[1:]]
        self._images = STREAM_IMAGES if self._shape[0] < LARGE else LARGE_STREAM_IMAGES
        self._model = model
        named = [(output.any_name, len(output.partial_shape)) for output in model.outputs]
        self._output = _output(named, head, file)
        self._length = model.output(self._output).partial_shape[1].get_length()
        self._settings = {
            "INFERENCE_PRECISION_HINT": precision,  # OpenVINO's own default is bf16 on some processors
            "INFERENCE_NUM_THREADS": streams,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # the decoder needs its share of every core
        }
        self._any_size = precision == "f32"  # in bfloat16 a vector would differ by the size of its batch
        self._queues: dict[int, Any] = {}  # by the size of a batch
        self._guard = threading.Lock()  # a queue has one callback for the images of all callers

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with self._guard:
            return self._embed(images)

    def _embed(self, images: np.ndarray) -> np.ndarray:
        vectors = np.empty((len(images), self._length), np.float32)
        few = self._any_size and len(images) < self._images * self._streams
        size = -(-len(images) // self._streams) if few else self._images  # every stream has its share
        queue = self._queue(ANY_SIZE if few else size)

        def keep(request: Any, start: int) -> None:
            part = vectors[start : start + size]
            part[:] = request.get_output_tensor(self._output).data[: len(part)]

        queue.set_callback(keep)
        for start in range(0, len(images), max(size, 1)):
            block = images[start : start + size]
            if len(block) < size and not few:
                block = np.concatenate([block, np.zeros((size - len(block), *block.shape[1:]), np.uint8)])
            queue.start_async({0: block}, start)
        queue.wait_all()
        return check_finite(vectors)

    def _queue(self, size: int) -> Any:
        """The network, compiled for batches of one size, which is a few percent faster, or of `ANY_SIZE`."""
        if size not in self._queues:
            self._model.reshape([size, *self._shape])
            compiled = self._openvino.Core().compile_model(self._model, "CPU", self._settings)
            self._queues[size] = self._openvino.AsyncInferQueue(compiled, 2 * self._streams)
        return self._queues[size]


class NetworkEmbedder:
    """Embeds with the Keras network of a run, on Keras's backend; for runs that are not exported.

    Args:
        run: The run.
        head: TRAINED or GENERAL, see `dr_keras.heads`.
    """

    def __init__(self, run: "Run", head: str = TRAINED) -> None:
        import_framework()
        from dr_keras.model.released import run_network

        self._network = run_network(run, head)
        self._guard = threading.Lock()  # Keras builds its predict function in the first call

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with self._guard:
            return embed_with_network(self._network, images)


class SavedModelEmbedder:
    """Embeds with the SavedModel of a run, on a GPU if TensorFlow finds one.

    Args:
        folder: The SavedModel.
        head: TRAINED or GENERAL, see `dr_keras.heads`.

    Raises:
        RunError: The folder does not exist, or it has no such head.
    """

    def __init__(self, folder: Path, head: str = TRAINED) -> None:
        import_framework()
        try:
            import tensorflow as tf
        except ImportError as error:
            message = f"a SavedModel needs TensorFlow: {how_to_install('tensorflow')}, or choose another runtime"
            raise MissingPackage(message) from error

        if not folder.is_dir():
            raise RunError(f"{folder} does not exist; make it with {command('train')} --export-only")
        self._model = tf.saved_model.load(str(folder))
        signatures = self._model.signatures
        if head == GENERAL and "serve_heads" not in signatures:
            raise RunError(f"{folder} has no general head; export it again: {command('train')} --export-only")
        self._serve = signatures["serve_heads" if head == GENERAL else "serving_default"]
        outputs = self._serve.structured_outputs
        self._output = head if head in outputs else next(iter(outputs))
        self._length = int(outputs[self._output].shape[-1])
        self._guard = threading.Lock()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        with self._guard:
            parts = [
                self._serve(tf.constant(images[start : start + BATCH_IMAGES]))[self._output].numpy()
                for start in range(0, len(images), BATCH_IMAGES)
            ]
        return check_finite(np.concatenate(parts)) if parts else np.empty((0, self._length), np.float32)
