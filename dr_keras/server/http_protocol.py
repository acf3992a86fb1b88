"""Serves HTTP with uvicorn, with a time limit for clients that do not send their request."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dr_keras.errors import InputError
from dr_keras.server.errors import Problem, busy
from dr_keras.server.limits import HEADERS
from dr_keras.server.peers import Peers

log = logging.getLogger("uvicorn.error")

HEAD_SECONDS = 10.0  # for the head of a request, from the connection or from its first byte
HEAD_BYTES = 32 * 2**10  # limit of the head; browsers send 1 KiB
MAX_CONNECTIONS = 512  # many systems allow a process 1,024 open files, half of which are left for images
MAX_PORT = 65535
QUEUED_CONNECTIONS = 2048  # that no process has accepted yet: uvicorn's own number
SHUTDOWN_SECONDS = 30  # for requests in progress when the server is stopped
YIELD_SECONDS = 0.005  # for processes with fewer connections to accept the next one


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a time limit; uvicorn itself waits forever for a request that does not arrive."""

    head_seconds = HEAD_SECONDS
    most = MAX_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.app = _too_many
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._unset()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._late)

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE or self.conn.our_state is not h11.IDLE:
            return
        body = Problem(408, f"the request's head did not arrive within {self.head_seconds:g} seconds").response().body
        head = f"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        extra = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        self.transport.write(f"{head}{extra}Connection: close\r\n\r\n".encode() + bytes(body))
        self.transport.close()


def _counting(connected: Callable[[int], object]) -> type[PatientProtocol]:
    """The protocol, made to tell `connected` how many connections there are whenever this changes."""

    class Counting(PatientProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connected(len(self.connections))

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            connected(len(self.connections))

    return Counting


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds to a connection beyond the limit."""
    problem = busy("there are too many connections; try again", seconds=5)
    problem.headers |= {**HEADERS, "Connection": "close"}
    await problem.response()(scope, receive, send)


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Binds sockets to all addresses of a name, before anything is loaded; `serve` listens on them.

    Uvicorn by itself binds only after everything is loaded, and exits in the middle of its log on failure.

    Args:
        host: A name or an address.
        port: A port, or 0 for any free one.

    Yields:
        The bound sockets. They are closed on exit.

    Raises:
        InputError: The name or address does not belong to this machine, or the port is in use or not permitted.
    """
    if not 0 <= port <= MAX_PORT:
        raise InputError(f"--port is {port}; a number from 0 to {MAX_PORT} is expected")
    with ExitStack() as owned:
        sockets: list[socket.socket] = []
        absent: OSError | None = None
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, address in found:
                made = owned.enter_context(socket.socket(family))
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    # All addresses share the free port that the first one got.
                    made.bind((address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:]))
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:
                        raise
                    absent = error  # localhost may have an IPv6 address on a machine without IPv6
                else:
                    sockets.append(made)
            if absent is not None and not sockets:
                raise absent
        except (OSError, UnicodeError) as error:
            raise _cannot_listen(host, port, error) from None
        yield sockets


def _cannot_listen(host: str, port: int, error: Exception) -> InputError:
    why = getattr(error, "strerror", None) or error
    return InputError(f"cannot listen at {host}, port {port}: {why}; choose another with --host and --port")


class _Server(uvicorn.Server):
    """uvicorn's server on sockets that are already bound; calls `on_start` when it listens."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        host, port = self.config.host, self.config.port
        try:
            await self._listen(sockets or [])
        except OSError as error:  # another process has bound the same port and was first to listen
            await self.lifespan.shutdown()
            raise _cannot_listen(host, port, error) from None
        self._on_start()

    async def _listen(self, sockets: list[socket.socket]) -> None:
        await super().startup(sockets)
        if any(one.fileno() < 0 for one in sockets):  # uvloop closes a socket that cannot listen, and says nothing
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class _WorkerServer(_Server):
    """One of several processes on the same sockets; the one with the fewest connections accepts the next.

    If all accepted what they could, as asyncio does, one process would often get most connections and their requests.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], object], peers: Peers) -> None:
        super().__init__(config, on_start)
        self._peers = peers
        self._kind = _counting(peers.connected)
        self._accepting: list[asyncio.Task[None]] = []

    async def _listen(self, sockets: list[socket.socket]) -> None:
        await super()._listen([])
        for one in sockets:
            one.setblocking(False)
            one.listen(QUEUED_CONNECTIONS)
        self._accepting = [asyncio.create_task(self._accept(one)) for one in sockets]

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await _readable(listening)
            if self._peers.has_more_connections():
                await asyncio.sleep(YIELD_SECONDS)
            try:
                accepted, _ = listening.accept()
                accepted.setblocking(False)
                await loop.connect_accepted_socket(self._protocol, accepted)
            except (BlockingIOError, InterruptedError, ConnectionError):
                continue  # another process was faster, or the client is gone
            except OSError as error:
                log.error("no connection can be accepted: %s", error.strerror)  # too many open files, for example
                await asyncio.sleep(1)

    def _protocol(self) -> asyncio.Protocol:
        return self._kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)


async def _readable(listening: socket.socket) -> None:
    """Waits for a connection."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(listening, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(listening)


def log_address(host: str, sockets: list[socket.socket], how: str = "") -> None:
    """Logs where the server can be reached, and how it runs."""
    port = sockets[0].getsockname()[1]
    log.info("running on http://%s:%d %s(Ctrl-C stops)", f"[{host}]" if ":" in host else host, port, how)


def serve(
    app: FastAPI,
    host: str,
    sockets: list[socket.socket],
    peers: Peers | None = None,
    on_start: Callable[[], object] | None = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes the requests in progress.

    Args:
        app: The application.
        host: The name to show in the log.
        sockets: From `bound`.
        peers: The processes that serve on these sockets, if there are several.
        on_start: Called when it listens; by default the log says so.
    """
    on_start = on_start or partial(log_address, host, sockets)
    config = uvicorn.Config(
        app,
        host=host,
        port=sockets[0].getsockname()[1],
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        log_level="info",
        access_log=False,  # the page requests dozens of images; /metrics counts them
        h11_max_incomplete_event_size=HEAD_BYTES,
        workers=1 if peers is None else peers.count,  # with several, uvicorn's loop on Windows can wait for sockets
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = _Server(config, on_start) if peers is None else _WorkerServer(config, on_start, peers)
    server.run(sockets)
