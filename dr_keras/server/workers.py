"""Several processes that serve one index on the same sockets.

The parent starts them afresh, replaces those that die, and stops all together; it answers no request itself.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from dr_keras import runtimes
from dr_keras.errors import InputError, RunError
from dr_keras.invocation import as_script, command
from dr_keras.server import http_protocol as protocol
from dr_keras.server.peers import Peers
from dr_keras.server.prometheus import forget_worker
from dr_keras.server.settings import Settings

if TYPE_CHECKING:
    from dr_keras.search_model import Model

log = logging.getLogger("uvicorn.error")

SPAWN = multiprocessing.get_context("spawn")
PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 30.0  # before a worker is replaced; doubled each time that it dies soon
SOON_SECONDS = 60.0
END_SECONDS = protocol.SHUTDOWN_SECONDS + 15.0  # for a worker to end after it was asked to
LISTEN_SECONDS = 0.5  # the parent looks around at least this often
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Job:
    """What each worker does.

    Attributes:
        host: The name to show in the log.
        settings: The settings of the server.
        run: The run's name or folder; by default the index's.
        head: The head, as for `dr_keras.search_model.Model`.
        index: Where the index is; by default the run's own.
        gallery: Whether `index` is the cached one of a folder.
    """

    host: str
    settings: Settings
    run: str | None
    head: str
    index: str | None
    gallery: bool = False

    def load(self, *, again: bool) -> "Model":
        """Loads the model and the index; `again` in the place of another worker."""
        from dr_keras.index.index import Index
        from dr_keras.loading import load

        if self.gallery:
            model = load(self.run, head=self.head)
            assert self.index is not None
            model.index = Index.open(self.index)
            return model
        try:
            return load(self.run, head=self.head, index=self.index)
        except RunError:
            if not again or self.index is None:
                raise
            return load(index=self.index)  # it was moved to another model, which the others follow


def serve(job: Job, count: int, sockets: list[socket.socket]) -> None:
    """Serves with several workers until SIGTERM or Ctrl-C, then lets them finish the requests in progress.

    Args:
        job: What they do.
        count: How many workers.
        sockets: From `dr_keras.server.http_protocol.bound`; they are closed in the end.

    Raises:
        InputError: A worker could not start; or whatever else kept it from that.
    """
    uvicorn.Config("", log_level="info")  # sets up the log
    cores = max(1, runtimes.threads() // count)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # read by NumPy and FAISS when they are imported
        os.environ.setdefault(name, str(cores))
    # Workers that end by force may still use the folder while it is removed.
    own_folder = tempfile.TemporaryDirectory(prefix="dr_keras-", ignore_cleanup_errors=True)
    with _stop_signals() as stops, own_folder as folder:
        shared = SPAWN.RawArray("l", count), SPAWN.RawArray("l", count), SPAWN.RawArray("d", count)
        workers = [_Worker(job, Peers(number, *shared, Path(folder)), sockets) for number in range(count)]
        try:
            _watch(workers, stops, partial(protocol.log_address, job.host, sockets, f"with {count} workers "))
            for one in sockets:
                one.close()  # so that clients are refused at once
            _finish(workers, stops)
        finally:
            for worker in workers:
                worker.ask(signal.SIGTERM)
            for worker in workers:
                worker.end()


@contextmanager
def _stop_signals() -> Iterator["Connection[int, int]"]:
    """Yields a connection on which signals to stop arrive, instead of ending this process."""
    stops, told = SPAWN.Pipe(duplex=False)

    def tell(number: int, _: FrameType | None) -> None:
        told.send(number)

    before = {number: signal.signal(number, tell) for number in STOP_SIGNALS}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Holds signals back, also in a process that is started meanwhile, until that can handle them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _watch(workers: "list[_Worker]", stops: "Connection[int, int]", on_start: "partial[None]") -> None:
    """Replaces workers that die, until a signal arrives.

    Raises:
        Exception: What kept a worker from starting for the first time.
    """
    waiting = True
    while True:
        for worker in workers:
            worker.start_if_due()
        due = [worker.due for worker in workers if worker.due is not None]
        handles = [stops, *(handle for worker in workers for handle in worker.handles())]
        # A signal that arrives just before it waits is heard after that.
        wait(handles, min([LISTEN_SECONDS, *(max(0.0, one - time.monotonic()) for one in due)]))
        if stops.poll():
            return  # workers that still load end when the signal reaches them, as it does from a terminal
        for worker in workers:
            worker.look()
        if waiting and all(worker.served for worker in workers):
            waiting = False
            on_start()


def _finish(workers: "list[_Worker]", stops: "Connection[int, int]") -> None:
    """Asks all workers to finish their requests and end, and waits for that; with a second Ctrl-C, not any longer."""
    stops.recv()
    for worker in workers:
        worker.ask(signal.SIGTERM)
    end = time.monotonic() + END_SECONDS
    while (alive := [worker for worker in workers if worker.alive]) and (left := end - time.monotonic()) > 0:
        wait([stops, *(worker.process.sentinel for worker in alive)], min(LISTEN_SECONDS, left))
        while stops.poll():
            if stops.recv() == signal.SIGINT:
                for worker in alive:
                    worker.ask(signal.SIGINT)


class _Worker:
    """One of the workers: a process, or the one that replaced it.

    Args:
        job: What it does.
        peers: The workers, as it sees them.
        sockets: The sockets to serve on.

    Attributes:
        process: The process.
        served: Whether it has ever served.
        due: When to start it, by `time.monotonic`; None if it runs.
    """

    process: BaseProcess

    def __init__(self, job: Job, peers: Peers, sockets: list[socket.socket]) -> None:
        self.served = False
        self.due: float | None = 0.0
        self._job = job
        self._peers = peers
        self._sockets = sockets
        self._said: Connection[None, Exception | None] | None = None  # until the process has closed it
        self._started = 0.0
        self._pause = PAUSE_SECONDS

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.due is None and self.process.is_alive()

    def _start(self) -> None:
        self._said, said = SPAWN.Pipe(duplex=False)
        by_script = command("serve") != "dr-keras serve"
        arguments = (self._job, self._peers, self._sockets, said, self.served, by_script)
        self.process = SPAWN.Process(target=_work, args=arguments)
        resource_tracker.ensure_running()  # it would unblock the signals
        with _blocked_signals():
            self.process.start()
        said.close()
        self._started = time.monotonic()
        self.due = None

    def start_if_due(self) -> None:
        """Starts the process if it is time.

        Raises:
            OSError: The system cannot start it for the first time.
        """
        if self.due is None or time.monotonic() < self.due:
            return
        try:
            self._start()
        except OSError as error:  # too many processes, or no memory
            if not self.served:
                raise
            log.error("a worker could not be started: %s", error)
            self._put_off()

    def handles(self) -> "list[int | Connection[None, Exception | None]]":
        """Returns what to wait for: something to hear, or the end of the process."""
        if self.due is not None:
            return []
        return [self.process.sentinel] if self._said is None else [self.process.sentinel, self._said]

    def look(self) -> None:
        """Hears what the process has said, and plans its replacement if it is dead.

        Raises:
            Exception: What kept it from starting for the first time.
        """
        if self.due is not None:
            return
        error = self._hear()
        if self.process.is_alive() and error is None:
            return
        self.process.join(END_SECONDS)
        self.process.kill()
        self.process.join()
        error = error or self._hear()  # it may have spoken between
        status = self.process.exitcode
        if not self.served:
            raise error or RunError(f"a worker ended with status {status} before it served")
        reason = error or f"it ended with status {status}"
        bug = None if isinstance(error, InputError) else error
        log.error("worker %d: %s; another takes its place", self.process.pid, reason, exc_info=bug)
        self._peers.forget()
        forget_worker(self._peers)
        if time.monotonic() - self._started > SOON_SECONDS:
            self._pause = PAUSE_SECONDS
        self._put_off()

    def _put_off(self) -> None:
        self.due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)

    def _hear(self) -> Exception | None:
        """Notes that the process serves; returns the error that it has ended with, if any."""
        try:
            while self._said is not None and self._said.poll():
                said = self._said.recv()
                if said is not None:
                    return said
                self.served = True
        except (EOFError, OSError):
            self._said = None
        return None

    def ask(self, number: int) -> None:
        """Sends the process a signal if it runs."""
        if self.alive and self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def end(self) -> None:
        """Ends the process by force if it still runs."""
        if self.alive:
            self.process.join(1)
            self.process.kill()
            self.process.join()


def _work(
    job: Job,
    peers: Peers,
    sockets: list[socket.socket],
    said: "Connection[Exception | None, None]",
    again: bool,
    by_script: bool,
) -> None:
    """What a worker does, in a process of its own."""
    for number in STOP_SIGNALS:  # while it loads, and after it has served; in between they are uvicorn's
        signal.signal(number, _leave)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runtimes.share_cores(peers.count)
    try:
        with as_script() if by_script else nullcontext():
            from dr_keras.server.routes import create_app

            app = create_app(job.load(again=again), job.settings, peers)
            protocol.serve(app, job.host, sockets, peers, partial(said.send, None))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # which is not sent by itself
        said.send(error)
    finally:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive() and peers.folder is not None:
            shutil.rmtree(peers.folder, ignore_errors=True)


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _end_with_parent() -> None:
    """Waits until the parent is gone, which may have been killed, and ends this process as the parent would have."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)
