"""Which devices a run computes on: one, all of this machine's, or those of several machines (JAX).

Data parallelism by `keras.distribution`, which Keras has on JAX only: each device takes a part of the global batch, and
the losses are those of one device with the whole batch. On the other backends a run takes one device.
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
    """This process's place among the hosts, and the devices of all hosts together."""

    host: int = 0
    hosts: int = 1
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process keeps the run folder and talks to the person."""
        return self.host == 0


def set_up_devices(config: RunConfig, *, batch_size: int, store: str = "auto") -> Devices:
    """Joins the other hosts, if there are any, and spreads the batch over all devices. To be called before any network.

    Args:
        config: the hosts.
        batch_size: triplets a step, of all devices together.
        store: where the images are kept, one of `dr_keras.config.STORES`.

    Raises:
        InputError: several hosts, or images on the device, on another backend than JAX; a batch that cannot be shared
            out; hosts that do not find each other.
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
        _keep_programs()
    devices = keras.distribution.list_devices() if backend == "jax" else []
    if len(devices) <= 1:
        keras.distribution.set_distribution(None)
        return Devices()
    if store == "device":
        raise InputError(f"--store device keeps the images on one device, and there are {len(devices)}; take another")
    if batch_size % len(devices):
        raise InputError(f"--batch-size is {batch_size}; it must be a multiple of the {len(devices)} devices")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False))
    return Devices(config.host_index, config.hosts, len(devices))


@contextmanager
def devices_for(config: RunConfig, *, batch_size: int, store: str, deterministic: bool) -> Iterator[Devices]:
    """What `set_up_devices` sets up, for the time of a training; the process is afterwards as it was before.

    With `deterministic`, TensorFlow computes deterministically meanwhile.
    """
    with on_one_device(), _deterministic() if deterministic else nullcontext(), _own_programs():
        yield set_up_devices(config, batch_size=batch_size, store=store)


@contextmanager
def _deterministic() -> Iterator[None]:
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from tensorflow.python.framework import config as tensorflow_config  # the way back is not public

    before = tensorflow_config.is_op_determinism_enabled()
    tensorflow_config.enable_op_determinism()
    try:
        yield
    finally:
        if not before:
            tensorflow_config.disable_op_determinism()


@contextmanager
def _own_programs() -> Iterator[None]:
    """Sets back where JAX keeps what it compiles."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    before = jax.config.jax_compilation_cache_dir
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def _keep_programs() -> None:
    """Has JAX keep what it compiles in the cache: for a GPU that takes minutes, and a resumed run needs the same."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # else the person has said where
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))


@contextmanager
def on_one_device() -> Iterator[None]:
    """Inside, networks are built and run on one device of this process alone."""
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def quick_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 (x86: AVX-512 BF16 or AMX) that the backend makes use of."""
    if keras.backend.backend() != "tensorflow":
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return False  # not Linux
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def on_gpu() -> bool:
    """Whether the backend computes on a GPU."""
    if keras.backend.backend() == "torch":  # for which Keras lists no devices
        import torch

        return torch.cuda.is_available()
    return any(device.startswith(("gpu", "cuda")) for device in keras.distribution.list_devices())
