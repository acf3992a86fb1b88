"""The devices that a run computes on: one, all of this machine, or those of several machines (JAX).

Data parallelism uses `keras.distribution`, which Keras supports only on JAX: each device takes a part of the global
batch, and the losses are those of a single device with the whole batch. On other backends a run uses one device.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import keras

from dr_keras.atomic_files import cache_folder
from dr_keras.config import RunConfig
from dr_keras.errors import InputError


@dataclass(frozen=True)
class Devices:
    """The place of this process among the hosts.

    Attributes:
        host: Index of this host.
        hosts: Number of hosts.
        count: Number of devices across all hosts.
    """

    host: int = 0
    hosts: int = 1
    count: int = 1


def set_up_devices(config: RunConfig, *, batch_size: int, store: str = "auto") -> Devices:
    """Joins the other hosts, if there are any, and spreads the batch over all devices.

    Call it before any network is built.

    Args:
        config: The hosts.
        batch_size: Triplets per step, of all devices together.
        store: Where the images are kept, one of `dr_keras.config.STORES`.

    Raises:
        InputError: Several hosts, or images on the device, with a backend other than JAX; the batch cannot be divided
            among the devices; the hosts cannot reach each other.
    """
    backend = keras.backend.backend()
    if config.hosts > 1:
        if backend != "jax":
            raise InputError(f"--hosts {config.hosts} needs JAX, and Keras runs on {backend}; set KERAS_BACKEND=jax")
        try:
            keras.distribution.initialize(config.coordinator, config.hosts, config.host_index)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"the {config.hosts} hosts did not meet at {config.coordinator}: {reason}") from error
    if store == "device" and backend != "jax":
        raise InputError(f"--store device needs JAX, and Keras runs on {backend}; set KERAS_BACKEND=jax")
    if backend == "jax" and on_gpu():
        _cache_compilation()
    devices = keras.distribution.list_devices() if backend == "jax" else []
    if len(devices) <= 1:
        keras.distribution.set_distribution(None)
        return Devices()
    if store == "device":
        raise InputError(f"--store device keeps the images on one device, and there are {len(devices)}; choose another")
    if batch_size % len(devices):
        raise InputError(f"--batch-size is {batch_size}; it must be a multiple of the {len(devices)} devices")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False))
    return Devices(config.host_index, config.hosts, len(devices))


@contextmanager
def devices_for(config: RunConfig, *, batch_size: int, store: str, deterministic: bool) -> Iterator[Devices]:
    """Sets up the devices for a training run, and restores the process afterward.

    Args:
        config: The hosts.
        batch_size: Triplets per step, of all devices together.
        store: Where the images are kept, one of `dr_keras.config.STORES`.
        deterministic: Whether TensorFlow computes deterministically in the meantime.

    Raises:
        InputError: See `set_up_devices`.
    """
    with on_one_device(), _deterministic() if deterministic else nullcontext(), _restored_compilation_cache():
        yield set_up_devices(config, batch_size=batch_size, store=store)


@contextmanager
def _deterministic() -> Iterator[None]:
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from tensorflow.python.framework import config as tensorflow_config  # there is no public way to turn it off

    before = tensorflow_config.is_op_determinism_enabled()
    tensorflow_config.enable_op_determinism()
    try:
        yield
    finally:
        if not before:
            tensorflow_config.disable_op_determinism()


@contextmanager
def _restored_compilation_cache() -> Iterator[None]:
    """Restores the location of JAX's compilation cache afterward."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    before = jax.config.jax_compilation_cache_dir
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def _cache_compilation() -> None:
    """Makes JAX cache what it compiles: on a GPU that takes minutes, and a resumed run needs the same programs."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # otherwise the user has chosen a folder
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))


@contextmanager
def on_one_device() -> Iterator[None]:
    """Makes networks run on a single device of this process inside the `with` block."""
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def fast_bfloat16() -> bool:
    """Returns whether the CPU has bfloat16 instructions (x86: AVX-512 BF16 or AMX) that the backend uses."""
    if keras.backend.backend() != "tensorflow":
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return False  # not Linux
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def on_gpu() -> bool:
    """Returns whether the backend computes on a GPU."""
    if keras.backend.backend() == "torch":  # Keras lists no devices for it
        import torch

        return torch.cuda.is_available()
    return any(device.startswith(("gpu", "cuda")) for device in keras.distribution.list_devices())
