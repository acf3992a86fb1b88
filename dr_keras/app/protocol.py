"""How connections are served: uvicorn, with an end to clients that never send their request."""

import asyncio
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dr_keras.app.guard import HEADERS
from dr_keras.app.problems import Problem, busy

HEAD_SECONDS = 10.0  # for the head of a request, from the connection or its first byte on
HEAD_BYTES = 32 * 2**10  # of it at most; browsers send 1 KiB
CONNECTIONS = 1024  # at the same time; a process may open 1,024 files on many systems, so 503 comes at half of it
DRAIN_SECONDS = 30  # for what is in flight when the server is stopped


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for ever for a request that does not come."""

    head_seconds = HEAD_SECONDS
    most = CONNECTIONS // 2

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


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a connection beyond those that are served."""
    problem = busy("there are too many connections; try again", seconds=5)
    problem.headers |= {**HEADERS, "Connection": "close"}
    await problem.response()(scope, receive, send)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C, then ends what is in flight."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        log_level="info",
        access_log=False,  # a page asks for dozens of pictures; /metrics counts them
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    uvicorn.Server(config).run()
