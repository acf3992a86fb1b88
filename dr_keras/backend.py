"""Imports Keras only when it is needed, and makes it compute with fixed settings rather than those of the machine."""

import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from dr_keras.errors import InputError, MissingPackage
from dr_keras.extras import how_to_install

BACKENDS = ("tensorflow", "jax", "torch")
# Networks are built and run with these settings, whatever keras.json, the environment, or the process has set.
SHARED_SETTINGS = {
    "floatx": "float32",
    "epsilon": 1e-7,
    "image_data_format": "channels_last",
    "max_epochs": None,
    "max_steps_per_epoch": None,
}
# Log lines of the C++ code that TensorFlow and JAX run while they are imported.
LOG_LINE = re.compile(
    rb"[IWE]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IWE] |WARNING: All log messages before absl|To enable the following instr"
)

_importing = threading.Lock()
_settings = threading.Lock()
_inside = 0  # the number of active `keras_defaults` blocks, in all threads
_outside: dict[str, Any] = {}  # the shared settings before the first of them


class _Thread(threading.local):
    inside = 0  # the number of active blocks of this thread


_thread = _Thread()


def import_framework(backend: str | None = None) -> None:
    """Imports Keras and its backend, without the log lines of TensorFlow's C++ code.

    The environment is not changed. If Keras is already imported, only its backend is checked. Safe to call from several
    threads.

    Args:
        backend: The backend to use if KERAS_BACKEND is not set.

    Raises:
        InputError: The configured backend is unknown or cannot train, or another setting of Keras is invalid.
        MissingPackage: Keras or its backend is not installed.
    """
    with nullcontext() if _imported() else _importing:
        if not _imported():
            with _environment(backend):
                _check(*_wanted_backend())
                with _quiet():
                    _import_keras()
    import keras

    if keras.config.backend() not in BACKENDS:
        raise InputError(f"Keras runs on {keras.config.backend()}, which cannot train; {_working()}")


@contextmanager
def unavailable(module: str) -> Iterator[None]:
    """Hides a module from what is imported inside the `with` block, which can do without it."""
    before = {module: sys.modules[module]} if module in sys.modules else {}
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        sys.modules.update(before)


@contextmanager
def keras_defaults() -> Iterator[None]:
    """Makes Keras use its own defaults inside the block, whatever keras.json, the environment, or the process has set.

    `SHARED_SETTINGS` apply to the whole process, and are restored when the last thread leaves its block. The dtype
    policy and flash attention apply only to the current thread. A nested block keeps the policy of the outer one,
    such as that of a training run.
    """
    import_framework()
    import keras
    from keras.src.backend.common import global_state  # unlike keras.config, it tells whether they were ever set

    own = {name: global_state.get_global_attribute(name) for name in ("dtype_policy", "flash_attention")}
    _enter()
    try:
        if not _thread.inside:
            keras.config.set_dtype_policy("float32")
            keras.config.enable_flash_attention()
        _thread.inside += 1
        try:
            yield
        finally:
            _thread.inside -= 1
            for name, value in own.items():
                global_state.set_global_attribute(name, value)
    finally:
        _leave()


def _enter() -> None:
    global _inside, _outside
    with _settings:
        if not _inside:
            _outside = _read()
            _set(SHARED_SETTINGS)
        _inside += 1


def _leave() -> None:
    global _inside
    with _settings:
        _inside -= 1
        if not _inside:  # keeps what others have set in the meantime
            _set({name: _outside[name] for name, value in _read().items() if value == SHARED_SETTINGS[name]})


def _read() -> dict[str, Any]:
    import keras

    return {name: getattr(keras.config, name)() for name in SHARED_SETTINGS}


def _set(values: Mapping[str, Any]) -> None:
    import keras

    for name, value in values.items():
        getattr(keras.config, f"set_{name}")(value)


def _imported() -> bool:
    """Whether Keras is imported completely."""
    spec = getattr(sys.modules.get("keras"), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


@contextmanager
def _environment(backend: str | None) -> Iterator[None]:
    """Sets variables that the import reads, unless the user has set them."""
    before = {name: os.environ.get(name) for name in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")}
    if backend and not before["KERAS_BACKEND"]:
        os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reports a missing GPU as an error
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _config_file() -> Path:
    """The keras.json that Keras reads."""
    home = os.path.expanduser("~")
    folder = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", folder))) / "keras.json"


def _wanted_backend() -> tuple[str, str]:
    """The backend that Keras will use, and a phrase that says where it is set."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name, f"KERAS_BACKEND is {name!r}"
    try:
        settings = json.loads(_config_file().read_text())
    except (OSError, ValueError):  # Keras also falls back to its default
        settings = {}
    if not isinstance(settings, dict) or "backend" not in settings:
        return BACKENDS[0], "KERAS_BACKEND is not set"
    name = settings["backend"]
    return name, f'"backend" in {_config_file()} is {name!r}'


def _working() -> str:
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    return f"set KERAS_BACKEND to one of {', '.join(BACKENDS)} (installed here: {', '.join(installed) or 'none'})"


def _check(name: str, said: str) -> None:
    """Raises an error if Keras cannot be imported with this backend, or cannot train with it."""
    if name not in BACKENDS:
        raise InputError(f"{said}, with which nothing can be trained; {_working()}")
    for package in ("keras", name):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(f"{said}, and {package} is not installed; {how_to_install(package)}, or {_working()}")


def _import_keras() -> None:
    before = set(sys.modules)
    try:
        import keras  # noqa: F401
    except Exception as error:
        # Otherwise a second attempt would find a partial import, with the setting that made it fail.
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "keras":
                del sys.modules[name]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        read = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("KERAS_")]
        read += [str(_config_file())] if _config_file().is_file() else []
        kind = MissingPackage if isinstance(error, ImportError) else InputError
        raise kind(
            f"Keras cannot be imported: {reason}; its settings are {', '.join(read) or 'its defaults'}; {_working()}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Filters C++ log lines, which ignore TF_CPP_MIN_LOG_LEVEL, out of standard error.

    All other output appears when the block ends. If the block fails, everything appears.
    """
    import tempfile

    if sys.stderr:
        sys.stderr.flush()
    try:
        shown = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    failed = True
    try:
        with tempfile.TemporaryFile() as hidden:
            os.dup2(hidden.fileno(), 2)
            try:
                yield
                failed = False
            finally:
                os.dup2(shown, 2)
                hidden.seek(0)
                os.write(shown, b"".join(line for line in hidden if failed or not LOG_LINE.match(line)))
    finally:
        os.close(shown)
