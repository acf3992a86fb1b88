"""Generated test pictures, and one small run that many tests share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core; more threads would compete for them
    for _library in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(_library, "1")

import fcntl
import importlib
import io
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dr_keras.index.index import Index
from dr_keras.runs import Run

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

pytest_plugins = ["browsing"]  # the fixtures of the tests of the page

ROOT = Path(__file__).parent.parent
CLASSES = ("bars", "disc", "plain", "rings")
LONG = [  # the slowest files, slowest first
    f"test_{name}"
    for name in [
        "resume",
        "resume_anyway",
        "milvus",
        "page_access",
        "machine_settings",
        "judgments",
        "applications",
        "released",
        "ray_cluster",
        "tuning",
        "sources",
        "cli_errors",
        "main_line",
        "install",
        "phases",
        "classifier",
        "serve_workers",
        "pack",
        "deploy",
        "monitoring",
        "heads",
        "on_device",
        "parts",
        "migrate",
        "milvus_conditions",
        "serve_crowd",
        "relevance",
        "fuzz_pictures",
        "hub",
        "imports",
        "explanation",
        "page",
        "page_more",
        "threads",
        "board",
        "held_out",
        "duplicates",
    ]
]


_left_out = False  # whether slow tests are deselected


def pytest_configure(config: pytest.Config) -> None:
    global _left_out
    _left_out = "not slow" in config.option.markexpr


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the slowest files first: each stays in one process, which should not be left running alone at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def examples(count: int) -> int:
    """`count` examples, requests or changes, or a quarter of that when slow tests are deselected."""
    return count // 4 if _left_out else count


def draw(name: str, random: np.random.Generator, size: int = 32) -> Image.Image:
    """A picture of one of `CLASSES` in random colors, with some noise."""
    back, ink = (tuple(int(v) for v in random.integers(0, 256, 3)) for _ in range(2))
    image = Image.new("RGB", (size, size), back)
    pen = ImageDraw.Draw(image)
    x, y = (int(v) for v in random.integers(size // 4, 3 * size // 4, 2))
    if name == "bars":
        for left in range(x % 8, size, 8):
            pen.rectangle((left, 0, left + 3, size), fill=ink)
    elif name == "disc":
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=ink)
    elif name == "rings":
        for radius in (4, 9, 14):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=2)
    noise = random.integers(-12, 13, (size, size, 3))
    return Image.fromarray((np.asarray(image).astype(int) + noise).clip(0, 255).astype(np.uint8))


def draw_encoded(seed: int = 1, name: str = "disc", kind: str = "PNG", size: int = 32) -> bytes:
    """A drawn picture, encoded as a file."""
    buffer = io.BytesIO()
    draw(name, np.random.default_rng(seed), size).save(buffer, kind)
    return buffer.getvalue()


def write_folders(root: Path, *, each: int, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """Writes class folders of `each` drawn pictures."""
    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            draw(name, random).save(root / name / f"{name}_{number}.png")
    return root


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shared by the processes of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def one_at_a_time(shared: Path, name: str) -> Iterator[None]:
    """Lets one process in at a time."""
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def folders(shared: Path) -> Path:
    """Four classes of 24 pictures."""
    root = shared / "data" / "drawn"
    with one_at_a_time(shared, "folders"):
        return root if root.is_dir() else write_folders(root, each=24)


@pytest.fixture(scope="session")
def workplace(shared: Path, folders: Path) -> Path:
    """A working folder with a finished run `small`, trained by train.py itself."""
    place = shared / "work"
    with one_at_a_time(shared, "workplace"):
        if not place.is_dir():
            place.mkdir()
            result = script(
                place,
                "train.py",
                *("--data", folders, "--run", "small", "--image-size", 32, "--backbone", "resnet10", "--width", 8),
                *("--embedding-dim", 32, "--epochs", 2, "--steps-per-epoch", 6, "--batch-size", 16, "--shift", 2),
                *("--monitor", 0.1, "--validation", 0.2),
                process=True,
            )
            assert result.returncode == 0, result.stderr
    return place


@pytest.fixture(scope="session")
def milvus_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address, without a collection, of a Milvus server: of a running one if $DR_KERAS_TEST_MILVUS names it."""
    if given := os.environ.get("DR_KERAS_TEST_MILVUS"):
        yield given
        return
    needs_milvus()
    from milvus_server import MilvusProcess

    with MilvusProcess(tmp_path_factory.mktemp("milvus")) as server:
        yield server.address


def needs_milvus() -> None:
    """Skips a test where the packages pymilvus and milvus are not installed."""
    for package in ("pymilvus", "milvus"):
        if find_spec(package) is None:
            pytest.skip(f"needs the package {package}")


def needs_openvino() -> None:
    """Skips a test where OpenVINO is not installed, without importing it: by itself it sends telemetry, in a fork."""
    if find_spec("openvino") is None:
        pytest.skip("needs the package openvino")


def indexed(place: Path, workplace: Path, each: int = 4) -> Path:
    """Puts a copy of the run `small`, class folders `mine` and their index, `my-index`, into a working folder."""
    shutil.copytree(workplace / "runs" / "small", place / "runs" / "small")
    write_folders(place / "mine", each=each, seed=5)
    result = script(place, "index.py", "add", "mine", "--run", "small", "--index", "my-index")
    assert result.returncode == 0, result.stderr
    return place


@pytest.fixture
def place(workplace: Path, tmp_path: Path) -> Path:
    """A working folder with an index of 16 pictures."""
    return indexed(tmp_path, workplace)


@pytest.fixture
def page(place: Path) -> Iterator["TestClient"]:
    """A client of a server that serves `place`."""
    from served import client

    with client(place) as made:
        yield made


@pytest.fixture
def writable(place: Path) -> Iterator["TestClient"]:
    """A client of a server that serves `place` and accepts changes with `served.TOKEN`."""
    from served import TOKEN, client

    with client(place, writable=True, token=TOKEN, uploads=place / "uploads") as made:
        yield made


@contextmanager
def serving(
    place: Path, *arguments: object, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Runs serve.py as a process; yields it and its address."""
    with open(place / "serve.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "serve.py"), "--port", "0", *map(str, arguments)],
            cwd=place,
            stdout=log,
            stderr=log,
            env=os.environ | (env or {}),
        )
    try:
        for _ in range(300):
            said = (place / "serve.log").read_text()
            if found := re.search(r"running on (http://\S+)", said):
                yield process, found[1]
                break
            assert process.poll() is None, said
            time.sleep(0.1)
        else:
            raise AssertionError(said)
    finally:
        process.kill()
        process.wait()


def ids_of(index: Index) -> list[str]:
    """The ids of all images of an index, by row."""
    return [id for _, id, *_ in index.records.listing()]


def vectors_of(run: Run) -> np.ndarray:
    """All vectors of a run's index, by row."""
    with Index.open(run.index) as index:
        return np.array(index.vectors)


def script(
    place: Path, name: str, *arguments: object, env: dict[str, str] | None = None, process: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs one of the scripts in a folder, as a user would.

    Args:
        place: the working folder.
        name: name of the script.
        *arguments: command-line arguments.
        env: extra environment variables; implies `process`.
        process: run it in a new process. Few tests need one, and importing TensorFlow alone takes 5 s.
    """
    command = [str(ROOT / name), *map(str, arguments)]
    if env is None and not process:
        return _script_here(place, command)
    return subprocess.run(
        [sys.executable, *command],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | (env or {}),
    )


def _script_here(place: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a script in this process and captures its output and that of its child processes."""
    streams = {1: sys.stdout, 2: sys.stderr}
    sys.stdout.flush()
    sys.stderr.flush()
    with ExitStack() as stack:
        files = {number: stack.enter_context(tempfile.TemporaryFile()) for number in streams}
        for number, file in files.items():
            stack.callback(os.close, kept := os.dup(number))
            stack.callback(os.dup2, kept, number)
            os.dup2(file.fileno(), number)
        for name, number in (("stdout", 1), ("stderr", 2)):
            stream = stack.enter_context(open(number, "w", buffering=1, encoding="utf-8", closefd=False))
            stack.enter_context(mock.patch.object(sys, name, stream))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(mock.patch.object(sys, "argv", command))
        stack.enter_context(chdir(place))
        stack.callback(_forget_the_script)
        status: object = 0
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        said = []
        for file in files.values():
            file.seek(0)
            said.append(file.read().decode(errors="backslashreplace"))
    assert isinstance(status, int), status
    return subprocess.CompletedProcess(command, status, *said)


def _forget_the_script() -> None:
    """Makes messages recommend `dr-keras train` again, as in library use, rather than the script that ran here."""
    if invocation := sys.modules.get("dr_keras.invocation"):
        vars(invocation)["_by_script"] = False


@pytest.fixture
def export_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes training in this process export here too, for tests that are not about the child process."""
    from dr_keras.export.write import export

    def export_by_graphs(run: Run) -> dict[str, float]:
        with running_eagerly(False):
            return export(run)

    for name in ("dr_keras.export", "dr_keras.cli.train"):
        with suppress(ModuleNotFoundError):
            monkeypatch.setattr(importlib.import_module(name), "export_in_child", export_by_graphs, raising=False)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Runs TensorFlow without graphs, for tests of a few steps: tracing takes longer than the steps."""
    with running_eagerly(True):
        yield


@contextmanager
def running_eagerly(eager: bool) -> Iterator[None]:
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(eager)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


@pytest.fixture
def jax_programs(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes JAX compile fast, and once for all processes of the session: compilation dominates a small run."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Creates an environment for a child process in which importing the named packages fails."""

    def make(*packages: str) -> dict[str, str]:
        hook = tmp_path / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(
            "import sys\n"
            "from importlib.machinery import ModuleSpec\n"
            "class Refuse:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.partition('.')[0] in {packages!r}:\n"
            "            return ModuleSpec(name, self)  # found, as TensorFlow looks for Keras, and never loaded\n"
            "    def create_module(self, spec):\n"
            "        raise ImportError(f'{spec.name} is refused')\n"
            "    def exec_module(self, module): ...\n"
            "sys.meta_path.insert(0, Refuse())\n"
        )
        return {"PYTHONPATH": str(hook)}

    return make
