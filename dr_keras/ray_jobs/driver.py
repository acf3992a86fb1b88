"""The process that drives Ray for a command: `python -m dr_keras.ray_jobs.driver`.

It reads messages from standard input and writes messages to standard output, see `dr_keras.ray_jobs.messages`. Whatever
Ray itself prints goes to standard error. It ends with its input, and what it started ends with it.
"""

import os
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import IO, Any

import ray
import ray.data

from dr_keras.errors import InputError, RunError
from dr_keras.ray_jobs.messages import Failed, Job, Ready, Result, Round, Status, Stop, receive, send
from dr_keras.ray_jobs.worker import Worker
from dr_keras.version import __version__

STATUS_SECONDS = 3.0
STORE_BYTES = 200 * 2**20  # of the object store of a cluster on this machine; blocks have a few MB
REACH_SECONDS = 10.0
END_SECONDS = 3.0
IN_FLIGHT = 2  # blocks that a worker has at a time, so that it need not wait for the next one


def main() -> None:
    """Serves one command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of the command
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    guard = threading.Lock()
    orders: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()

    def say(message: object) -> None:
        with guard:
            send(out, message)

    try:
        job = orders.get()
        with _connected(job):
            threading.Thread(target=_report, args=(say,), daemon=True).start()
            say(Ready(_Shares(job.work.gpu).workers))
            while isinstance(order := orders.get(), Round):
                for result in _results(order, job, _Shares(job.work.gpu)):
                    say(result)
                say(Ready(_Shares(job.work.gpu).workers))
    except OSError:  # the command is gone
        _end(None)
    except InputError as error:
        say(Failed(type(error).__name__, str(error)))
    except Exception:
        say(Failed("", traceback.format_exc()))


def _listen(stream: IO[bytes], orders: "SimpleQueue[Any]") -> None:
    """Puts messages into a queue; ends the process when the command is gone, even while it waits for Ray."""
    folder = None
    while (message := receive(stream)) is not None:
        if isinstance(message, Job):
            folder = message.folder
        orders.put(message)
        if isinstance(message, Stop):
            return
    threading.Timer(END_SECONDS, _end, [folder]).start()
    with suppress(Exception):  # whatever Ray raises in the middle of something
        ray.shutdown()
    _end(folder)


def _end(folder: str | None) -> None:
    """Ends this process, with those of a cluster on this machine, and removes the folder of that."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextmanager
def _connected(job: Job) -> Iterator[None]:
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if job.address is None:
        how |= {"num_cpus": os.cpu_count() or 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        how |= {"_temp_dir": job.folder}
    try:
        _check_reachable(job.address)
        ray.init(job.address or "local", **how)
    except Exception as error:
        what = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RunError(f"there is no Ray to use at {job.address or 'this machine'}: {what}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # the command does them again
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raises OSError if nothing listens at HOST:PORT; Ray itself would try for a minute or more."""
    host, _, port = (address or "").rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()


class _Shares:
    """What a worker takes of the machines that are there now.

    Args:
        gpu: Whether it takes a GPU where there is one, with a share of the cores beside it.

    Attributes:
        cores, gpus: Of one worker.
        workers: How many there are room for, at least one.
    """

    def __init__(self, gpu: bool) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1] if gpu else []
        self.gpus = 1 if with_gpu else 0
        self.cores, self.workers = 1, int(sum(node.get("CPU", 0) for node in nodes))
        if with_gpu:
            self.cores = max(1, int(min(node.get("CPU", 0) // node["GPU"] for node in with_gpu)))
            self.workers = int(sum(node["GPU"] for node in with_gpu))
        self.workers = max(1, self.workers)


def _results(order: Round, job: Job, shares: _Shares) -> Iterator[Result]:
    """Works on the blocks of a round. Nothing but the workers needs a core, so none need be kept free."""
    most = min(shares.workers, len(order.blocks))
    pool = ray.data.ActorPoolStrategy(
        min_size=1,  # and not fixed: a pool that waits for its full size waits for ever once a machine is gone
        max_size=most,
        initial_size=most,
        max_tasks_in_flight_per_actor=1 if order.singly else IN_FLIGHT,
    )
    rows = [{"number": number, "block": block} for number, block in order.blocks]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(job.work, shares.cores, __version__),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=shares.cores,
        num_gpus=shares.gpus,
        ray_remote_args_fn=_restarts,
    )
    for row in data.iter_rows():
        yield Result(row["number"], row["value"], row["seconds"])


def _restarts() -> dict[str, int]:
    """A worker that dies is started again and tries its blocks once more; then they are lost to this round."""
    return {"max_restarts": -1, "max_task_retries": 1}


def _report(say: Callable[[object], None]) -> None:
    """Says now and then how the cluster is."""
    pause = threading.Event()
    while not pause.wait(STATUS_SECONDS):
        try:
            say(Status(_status()))
        except OSError:  # the command is gone
            return


def _status() -> str:
    """The machines, their free cores, and the workers, in words."""
    try:
        nodes = ray.nodes()
        alive = sum(node["Alive"] for node in nodes)
        free, total = (each().get("CPU", 0) for each in (ray.available_resources, ray.cluster_resources))
    except Exception as error:  # whatever Ray raises while its head does not answer
        return f"the cluster does not answer ({type(error).__name__})"
    parts = [f"{alive} of {len(nodes)} machines", f"{free:g} of {total:g} cores free"]
    with suppress(Exception):  # the only source that needs no dashboard is not public
        from ray._private.state import actors

        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        ours = [actor for actor in actors(job_id=job).values() if Worker.__name__ in actor["ActorClassName"]]
        states = [actor["State"] for actor in ours]
        waiting = sum(state in ("PENDING_CREATION", "DEPENDENCIES_UNREADY", "RESTARTING") for state in states)
        parts.append(f"{states.count('ALIVE')} workers run, {waiting} wait for a place")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
