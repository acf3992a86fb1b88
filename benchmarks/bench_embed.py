#!/usr/bin/env python3
"""How fast are files embedded? The product against each runtime alone on the decoded pixels of the same files.

    pip install -e .[bench]
    python benchmarks/bench_embed.py [--data tiny-imagenet-200/val/images] [--run tiny-imagenet-64] [--images 2048]

First, every way to run each runtime (TensorFlow, LiteRT, ONNX Runtime, OpenVINO) is tried briefly with every batch
size; then each runtime at its best and the product take turns for `--rounds` rounds. Each runs in its own process with
all cores; its startup (until the first vector) is reported separately and its first call is not counted. A runtime
whose vectors differ from the Keras network's by more than 1e-4 is never reported as the fastest.

Decoding counts toward the product's time, so images much larger than the network's input measure the decoder: as with
`--photos`. Large networks need few images: `--images 32 --batches 1 4 16`.

Above 400 lines because a contender is this script as a child process: what it runs and what is measured stay together.
"""

import argparse
import importlib.metadata
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from machine import machine, record, spread
from PIL import Image

from dr_keras.data.decoding import decode_files
from dr_keras.data.folders import all_pictures
from dr_keras.data.images import decode
from dr_keras.errors import ImageError, InputError
from dr_keras.runs import Run, open_run

TOLERANCE = 1e-4  # same as dr_keras.export.write.TOLERANCE, whose module imports TensorFlow
THREADS = os.cpu_count() or 1  # what the product uses
BATCHES = (1, 8, 32, 64, 256)  # each divides the next, so a multiple of the last never leaves a partial batch
PHOTO = (1600, 1200)
TRIES = 2  # the better one counts; trials only select
PRODUCT = "dr_keras"

# Ways to run each: one call on all threads, or a call on each thread ("side by side").
WAYS = {
    "TensorFlow": ("SavedModel", "frozen", "frozen, side by side"),
    "LiteRT": ("one", "side by side"),
    "ONNX Runtime": ("one", "side by side"),
    "OpenVINO": ("one", "side by side", "side by side, SavedModel"),  # reads the LiteRT file unless stated
}
PACKAGES = {
    "TensorFlow": ("tensorflow",),
    "LiteRT": ("ai-edge-litert",),
    "ONNX Runtime": ("onnxruntime", "onnx", "tf2onnx"),  # the last two create the file
    "OpenVINO": ("openvino",),
}

Embed = Callable[[np.ndarray], np.ndarray]  # (B, H, W, 3) uint8 -> (B, D) float32
EmbedAll = Callable[[np.ndarray, int], np.ndarray]  # pixels and a batch size -> vectors


class Failed(Exception):
    """Raised when a contender cannot run; the message says why."""


class Place:
    """The temporary folder shared by the contenders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path / "files"
        self.pixels = path / "pixels.npy"
        self.expected = path / "expected.npy"
        self.saved_model = path / "saved_model"
        self.litert = path / "embedding.tflite"
        self.onnx = path / "embedding.onnx"
        self.cache = path / "cache"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of images, at any depth (default: generated ones)")
    parser.add_argument("--run", default="tiny-imagenet-64")
    parser.add_argument("--photos", action="store_true", help="embed enlarged copies, JPEGs of 1600 x 1200")
    parser.add_argument("--images", type=int, default=2048, help="how many, a multiple of the largest batch")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="each divides the next")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runtimes", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)  # in the child process: name, way, place
    options = parser.parse_args()
    if options.contender:
        name, way, place = options.contender
        answer(name, way, Place(Path(place)), options.run)
        return
    largest = options.batches[-1]
    if options.images < 2 * largest or options.images % largest:
        parser.error(f"--images is {options.images}; give a multiple of {largest}, at least {2 * largest}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            compare(Place(Path(folder)), options)
        except (Failed, InputError) as error:
            sys.exit(f"bench_embed: {error}")


def compare(place: Place, options: argparse.Namespace) -> None:
    """Writes the files, picks each runtime's best way, runs all of them in turns, and prints the results."""
    run = open_run(options.run)
    about = write_files(place, options.data, options.images, run, photos=options.photos)
    with Contender("prepare", "", place, options.run) as child:
        made = child.ask()
    print(f"{machine()}; {THREADS} threads each")
    print("; ".join(f"{name} {version(PACKAGES[name][0])}" for name in options.runtimes if version(PACKAGES[name][0])))
    size = run.config().image_size
    print(f"{run.path.name}: {made['weights']:,} weights, {size} px, vectors of {made['length']}; {about}")
    tried = 2 * options.batches[-1]
    print(f"\nways tried, images/s of the better of {TRIES} passes over {tried} images, by batch size:")
    starts: dict[str, list[float]] = {}
    best = {}
    for name in options.runtimes:
        chosen = best_way(name, place, options, made, starts)
        if chosen:
            best[name] = chosen
    if not best:
        raise Failed("no runtime is left to compare with")
    print(f"\nat their best, {options.rounds} rounds in turns over {options.images:,} images:")
    turns(best, place, options, starts)


def best_way(
    name: str, place: Place, options: argparse.Namespace, made: dict[str, Any], starts: dict[str, list[float]]
) -> tuple[str, int] | None:
    """The fastest way and batch size of a runtime, or None; prints everything tried, or why nothing was."""
    missing = [package for package in PACKAGES[name] if version(package) is None]
    if missing:
        print(f"  {name} is left out: {', '.join(missing)} not installed; pip install {' '.join(missing)}")
        return None
    if made["failed"].get(name):
        print(f"  {name} is left out: {made['failed'][name]}")
        return None
    rates: dict[tuple[str, int], float] = {}
    images = 2 * options.batches[-1]
    for way in WAYS[name]:
        try:
            with Contender(name, way, place, options.run) as child:
                starts.setdefault(name, []).append(child.start)
                for batch in options.batches:
                    took = [child.ask(batch=batch, images=images)["seconds"] for _ in range(TRIES)]
                    rates[way, batch] = images / min(took)
        except Failed as error:
            print(f"  {name}, {way}: {error}")
        tried = ", ".join(f"{batch}: {rates[way, batch]:.0f}" for batch in options.batches if (way, batch) in rates)
        if tried:
            print(f"  {name}, {way}: {tried}", flush=True)
    return max(rates, key=lambda key: rates[key]) if rates else None


def turns(
    best: dict[str, tuple[str, int]], place: Place, options: argparse.Namespace, starts: dict[str, list[float]]
) -> None:
    """Runs the rounds and prints the results."""
    names = [*best, PRODUCT]
    rates: dict[str, list[float]] = {name: [] for name in names}
    differences = {}
    expected = np.load(place.expected)
    with ExitStack() as stack:
        children = {}
        for name in names:
            way = best[name][0] if name in best else ""
            children[name] = stack.enter_context(Contender(name, way, place, options.run))
            starts.setdefault(name, []).append(children[name].start)
            saved = place.path / "vectors.npy"
            children[name].ask(batch=best.get(name, ("", 0))[1], images=options.images, save=str(saved))  # warms up
            differences[name] = float(np.abs(np.load(saved) - expected).max())
        for number in range(options.rounds):
            for name in names if number % 2 else reversed(names):
                batch = best.get(name, ("", 0))[1]
                rates[name].append(options.images / children[name].ask(batch=batch, images=options.images)["seconds"])
    exact = [name for name in best if differences[name] <= TOLERANCE]
    if not exact:
        raise Failed(f"no runtime keeps within {TOLERANCE:g} of the network")
    fastest = max(exact, key=lambda name: statistics.median(rates[name]))
    for name in names:
        title = f"{name}, {best[name][0]}, batches of {best[name][1]}" if name in best else f"{name}, files to vectors"
        ratios = [one / other for one, other in zip(rates[name], rates[fastest], strict=True)]
        print(f"  {title}: {spread(rates[name], 'images/s', 0)}")
        if name == PRODUCT:
            what = f"{options.run}, files to index"
            record(what, rates[name], "images/s", ratio=statistics.median(ratios), to=f"{fastest} alone")
        print(
            f"    / {fastest}: {spread(ratios, '')}; start: {spread(starts[name], 's', 2)}; "
            f"greatest difference from Keras: {differences[name]:.1e}"
            + ("" if differences[name] <= TOLERANCE else f", MORE THAN {TOLERANCE:g}")
        )


class Contender:
    """A child process that waits for its turn; a context manager. `start` is the seconds until its first vector."""

    def __init__(self, name: str, way: str, place: Place, run: str) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--run", run, "--contender", name, way, str(place.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ
            | {
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "CUDA_VISIBLE_DEVICES": "-1",  # this compares CPUs
                "KERAS_BACKEND": "tensorflow",  # the source of all files
                "DR_KERAS_CACHE": str(place.cache),  # leaves the user's own cache alone
            },
        )
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        self.start = time.perf_counter() - started

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, **question: Any) -> dict[str, Any]:
        """The reply of `answer` to that question. Raises `Failed` if the child has died."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading reports why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        raise Failed(f"exit status {status}: {said[-1] if said else 'it said nothing'}")


def answer(name: str, way: str, place: Place, run: str) -> None:
    """The child process: reports its first vector, then answers each input line with one line.

    A question has `batch`, `images` (how many to embed) and optionally `save`, a file for the vectors.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps library output from being read as an answer

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    if name == "prepare":
        say()
        sys.stdin.readline()
        say(**prepare(open_run(run), place))
        return
    work = product(place, run) if name == PRODUCT else alone(runner(name, way, place), place)
    say()
    for line in sys.stdin:
        question = json.loads(line)
        seconds, vectors = work(question["images"], question["batch"])
        if "save" in question:
            np.save(question["save"], vectors)
        say(seconds=seconds)


def alone(embed: EmbedAll, place: Place) -> Callable[[int, int], tuple[float, np.ndarray]]:
    """The work of a runtime: embeds the decoded pixels."""
    pixels = np.load(place.pixels, mmap_mode="r")
    embed(np.array(pixels[:1]), 1)
    held: list[np.ndarray] = []  # read after startup, which should not include them

    def work(images: int, batch: int) -> tuple[float, np.ndarray]:
        if not held:
            held.append(np.array(pixels))
        started = time.perf_counter()
        vectors = embed(held[0][:images], batch)
        return time.perf_counter() - started, vectors

    return work


def product(place: Place, run: str) -> Callable[[int, int], tuple[float, np.ndarray]]:
    """The work of the product: embeds all files and stores the vectors; ignores `images` and `batch`."""
    from dr_keras.loading import load

    model = load(run)
    names = sorted(file.name for file in place.files.iterdir())
    model.embed([place.files / names[0]])

    def work(_images: int, _batch: int) -> tuple[float, np.ndarray]:
        shutil.rmtree(place.cache, ignore_errors=True)
        started = time.perf_counter()
        index = add(model, place.files)
        seconds = time.perf_counter() - started
        return seconds, np.asarray(index.vectors)[[index.records.row(name) for name in names]]

    return work


def add(model: Any, folder: Path) -> Any:
    """`index.py add` of a folder of new files to a new index: THE CALL BEING MEASURED."""
    from rich.console import Console

    from dr_keras.index.index import Index
    from dr_keras.index.sync import add_files

    place = Path(tempfile.mkdtemp(dir=folder.parent))
    index = Index.create(place / "index", model.run.embedding_dim(), root=folder, model=model.run.fingerprint())
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        add_files(index, [folder], model.reader_for(index), console=Console(file=nowhere))
    return index


def prepare(run: Run, place: Place) -> dict[str, Any]:
    """Writes the network of a run as float32 SavedModel, LiteRT and ONNX files, along with its own vectors."""
    import tensorflow as tf

    from dr_keras.embedders import embed_with_network
    from dr_keras.model.released import run_network

    network = run_network(run)
    np.save(place.expected, embed_with_network(network, np.load(place.pixels)))
    network.export(str(place.saved_model), format="tf_saved_model", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(place.saved_model))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    place.litert.write_bytes(converter.convert())
    failed = {}
    if all(version(package) for package in PACKAGES["ONNX Runtime"]):
        try:
            network.export(str(place.onnx), format="onnx", verbose=False)
        except Exception as error:  # another converter version may fail in any way; the other runtimes still run
            failed["ONNX Runtime"] = f"the network cannot be exported: {error}"
    return {"weights": network.count_params(), "length": network.output_shape[-1], "failed": failed}


def runner(name: str, way: str, place: Place) -> EmbedAll:
    """A runtime in one of its `WAYS`."""
    side_by_side = "side by side" in way
    if name == "TensorFlow":
        return tensorflow_runner(place, frozen="frozen" in way, side_by_side=side_by_side)
    if name == "OpenVINO":
        file = place.saved_model if way.endswith("SavedModel") else place.litert
        return openvino_runner(file, streams=THREADS if side_by_side else 1)
    make = {"LiteRT": litert_embed, "ONNX Runtime": onnx_embed}[name]
    if side_by_side:
        return in_threads([make(place, 1) for _ in range(THREADS)])
    return in_turn(make(place, THREADS))


def in_turn(embed: Embed) -> EmbedAll:
    """Runs one batch after another."""

    def run(pixels: np.ndarray, batch: int) -> np.ndarray:
        return np.concatenate([embed(pixels[start : start + batch]) for start in range(0, len(pixels), batch)])

    return run


def in_threads(embeds: Sequence[Embed]) -> EmbedAll:
    """Runs each of `embeds` in its own thread, which takes the next batch when it finishes one."""
    pool = ThreadPoolExecutor(len(embeds))

    def run(pixels: np.ndarray, batch: int) -> np.ndarray:
        starts = iter(range(0, len(pixels), batch))  # its next() holds the GIL
        done: dict[int, np.ndarray] = {}

        def by_one(embed: Embed) -> None:
            for start in starts:
                done[start] = embed(pixels[start : start + batch])

        list(pool.map(by_one, embeds))  # list() reraises a thread's exception
        return np.concatenate([done[start] for start in sorted(done)])

    return run


def tensorflow_runner(place: Place, *, frozen: bool, side_by_side: bool) -> EmbedAll:
    """The SavedModel's signature, optionally with its variables frozen, which folds the normalizations."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tf.config.threading.set_intra_op_parallelism_threads(1 if side_by_side else THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    model = tf.saved_model.load(str(place.saved_model))  # the functions below keep it alive
    signature = model.signatures["serving_default"]
    (key,) = signature.structured_input_signature[1]
    constant = convert_variables_to_constants_v2(signature) if frozen else None

    def embed(pixels: np.ndarray, _model: Any = model) -> np.ndarray:
        if constant is not None:
            return constant(tf.constant(pixels))[0].numpy()
        return next(iter(signature(**{key: tf.constant(pixels)}).values())).numpy()

    return in_threads([embed] * THREADS) if side_by_side else in_turn(embed)


def litert_embed(place: Place, threads: int) -> Embed:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(place.litert), num_threads=threads)
    source = interpreter.get_input_details()[0]["index"]
    outputs = interpreter.get_signature_runner().get_output_details()
    target = outputs["trained" if "trained" in outputs else next(iter(outputs))]["index"]
    shape: tuple[int, ...] = ()

    def embed(pixels: np.ndarray) -> np.ndarray:
        nonlocal shape
        if pixels.shape != shape:
            interpreter.resize_tensor_input(source, pixels.shape)
            interpreter.allocate_tensors()
            shape = pixels.shape
        interpreter.set_tensor(source, pixels)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return embed


def onnx_embed(place: Place, threads: int) -> Embed:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(place.onnx), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


def openvino_runner(file: Path, *, streams: int) -> EmbedAll:
    """OpenVINO with `streams` streams that split the threads evenly."""
    import openvino

    core = openvino.Core()
    compiled: dict[int, Any] = {}  # by batch size: compiling for a fixed size is slightly faster

    def queue_of(batch: int) -> Any:
        if batch not in compiled:
            model = core.read_model(file)
            model.reshape([batch, *list(model.inputs[0].partial_shape)[1:]])
            settings = {
                "INFERENCE_NUM_THREADS": THREADS,
                "NUM_STREAMS": streams,
                "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 on CPUs that have it, a different network
            }
            # Two requests per stream, so one is always queued while another is computed.
            compiled[batch] = openvino.AsyncInferQueue(core.compile_model(model, "CPU", settings), 2 * streams)
        return compiled[batch]

    def run(pixels: np.ndarray, batch: int) -> np.ndarray:
        queue = queue_of(batch)
        done: dict[int, np.ndarray] = {}
        queue.set_callback(lambda request, start: done.update({start: request.get_output_tensor(0).data.copy()}))
        for start in range(0, len(pixels), batch):
            queue.start_async({0: pixels[start : start + batch]}, start)
        queue.wait_all()
        return np.concatenate([done[start] for start in sorted(done)])

    return run


def write_files(place: Place, data: Path | None, count: int, run: Run, *, photos: bool) -> str:
    """Writes the files and their pixels; returns a description of them."""
    config = run.config()
    place.files.mkdir()
    sizes, total = set(), 0
    sources = drawn(count, config.image_size) if data is None else readable(data, config.image_size)
    for number in range(count):
        ending, content, size = next(sources, ("", b"", (0, 0)))
        if not content:
            raise Failed(f"{data} holds {number} images that can be read; {count} are wanted (--images)")
        if photos:
            ending, content, size = ".jpg", enlarged(content), PHOTO
        (place.files / f"{number:07d}{ending}").write_bytes(content)
        sizes.add(size)
        total += len(content)
    pixels, failures = decode_files(sorted(place.files.iterdir()), config.image_size, config.resize)
    if failures:
        raise Failed(f"{len(failures)} files could not be decoded")
    np.save(place.pixels, pixels)
    low, high = min(sizes), max(sizes)
    of = f"{low[0]} x {low[1]}" + (f" to {high[0]} x {high[1]}" if low != high else "")
    return f"{count:,} {'drawn JPEGs' if data is None else 'files'} of {of}, {total / count / 1024:.1f} KiB each"


def enlarged(content: bytes) -> bytes:
    """An image as a JPEG of a photo's size."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").resize(PHOTO, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def readable(data: Path, size: int) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """The readable images below a folder, in a fixed shuffled order: extension, content, (width, height)."""
    paths, _ = all_pictures([data])
    for row in np.random.default_rng(0).permutation(len(paths)):
        content = Path(paths[row]).read_bytes()
        try:
            decode(content, size)
        except ImageError:
            continue
        with Image.open(paths[row]) as image:
            yield Path(paths[row]).suffix, content, image.size


def drawn(count: int, size: int) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """JPEGs at the network's input size: soft colors under fine noise, with file sizes similar to photos."""
    random = np.random.default_rng(0)
    for _ in range(count):
        soft = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        image = np.asarray(soft.resize((size, size), Image.Resampling.BICUBIC)) + random.normal(0, 6, (size, size, 3))
        buffer = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        yield ".jpg", buffer.getvalue(), (size, size)


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
