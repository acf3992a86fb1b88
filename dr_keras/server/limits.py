"""Limits on requests, checks of the Host header and security headers, in front of all routes."""

import asyncio
import time
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dr_keras.invocation import command
from dr_keras.server.errors import Problem, busy
from dr_keras.server.peers import Peers
from dr_keras.server.prometheus import Metrics
from dr_keras.server.settings import Settings

# The page runs its own scripts and styles, and shows images from this server and the one that the user has chosen.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]  # as ASGI has them
ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})  # exempt from the limit on concurrent requests
MAX_TARGET_BYTES = 16384  # of path and query: an id of 1,024 characters takes up to 12,288 if every byte is escaped
DRAIN_BYTES, DRAIN_SECONDS = 64 * 2**20, 2.0  # of a refused body to read, so that the client receives the response


class Guard:
    """ASGI middleware that refuses what exceeds the limits, counts requests and adds security headers.

    It also checks host names: Starlette's TrustedHostMiddleware does not handle IPv6 addresses, accepts several Host
    headers, and answers with plain text instead of JSON.

    Args:
        app: The application.
        settings: The settings.
        metrics: Counts the requests.
        peers: The workers of the server, which have a limit in common.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics, peers: Peers) -> None:
        self.app = app
        self._settings = settings
        self._metrics = metrics
        self._peers = peers
        self._count(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            else:
                await self.app(scope, receive, send)
            return
        counted = scope["path"] not in ALWAYS
        request = _Request(scope, receive, send, self._settings)
        try:
            self._check(scope, request)
            if counted and (running := self._peers.requests()) >= self._settings.concurrency:
                raise busy(f"{running} requests are in progress, which is the limit; try again")
        except Problem as problem:
            await request.refuse(problem)
            self._metrics.count_response("refused", scope["method"], problem.status, request.seconds)
            return
        self._count(counted)
        try:
            await self.app(scope, request.receive, request.send)
        except (TimeoutError, ConnectionResetError):
            if not request.started:
                raise
            raise _Gone from None
        finally:
            self._count(-counted)
            route = getattr(scope.get("route"), "path_format", "other")
            self._metrics.count_response(route, scope["method"], request.status, request.seconds)

    def _count(self, more: int) -> None:
        """Counts requests in progress of this worker."""
        self._peers.running[self._peers.number] += more
        self._metrics.in_flight.set(self._peers.running[self._peers.number])

    def _check(self, scope: Scope, request: "_Request") -> None:
        """Checks the headers.

        Raises:
            Problem: The request is refused.
        """
        target = len(scope.get("raw_path") or scope["path"].encode()) + len(scope.get("query_string", b""))
        if target > MAX_TARGET_BYTES:
            raise Problem(414, f"the URL has {target:,} bytes; at most {MAX_TARGET_BYTES:,} are accepted")
        host = [value for name, value in scope["headers"] if name == b"host"]
        if len(host) > 1:
            raise Problem(400, "there are several Host headers; one is expected")
        if self._settings.hosts and _host_name(host) not in self._settings.hosts:
            raise Problem(
                400,
                f"the Host header does not name this server; add a name with {command('serve')} --allow-host NAME",
            )
        lengths = {value for name, value in scope["headers"] if name == b"content-length"}
        if not all(value.isdigit() for value in lengths) or len(lengths) > 1:
            raise Problem(400, "Content-Length must be one number")
        if lengths:
            request.check_size(int(lengths.pop()[:20]))


class _Gone(ConnectionError):
    """A client that does not read its response; the server closes the connection."""


class _Request:
    """One request: reads its body within the limits, and adds headers to its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._settings = settings
        self._start = time.monotonic()
        self._bytes = 0
        self._complete = False  # whether the whole body has arrived
        self.started = False
        self.status = 500
        names = dict(scope["headers"])
        kind = names.get(b"content-type", b"").lower()
        self._limit = settings.body_bytes if kind.startswith(b"multipart/") else settings.json_bytes
        self._expects = b"expect" in names
        self._has_body = b"content-length" in names or b"transfer-encoding" in names

    @property
    def seconds(self) -> float:
        """Time since the start of the request."""
        return time.monotonic() - self._start

    def check_size(self, size: int) -> None:
        """Raises Problem 413 if a body is too large."""
        if size > self._limit:
            raise Problem(
                413,
                f"the body has {size:,} bytes or more; at most {self._limit:,} are accepted",
                {"Connection": "close"},
            )

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # waits until the client disconnects
        left = self._settings.body_seconds - self.seconds
        try:
            async with asyncio.timeout(max(left, 0)):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                408,
                f"the body did not arrive within {self._settings.body_seconds:g} seconds; send it again",
                {"Connection": "close"},
            ) from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            self.check_size(self._bytes)
        else:
            self._complete = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self._finish_body()
            given = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(one for one in RAW_HEADERS if one[0] not in given)]
            if self._has_body and not self._complete:
                MutableHeaders(scope=message)["Connection"] = "close"  # the rest of the body is not another request
            self.started = True
        elif self._scope["method"] == "HEAD":
            message = {**message, "body": b""}
        async with asyncio.timeout(self._settings.send_seconds):
            await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """Responds in place of the application."""
        await problem.response()(self._scope, self._receive, self.send)

    async def _finish_body(self) -> None:
        """Reads the rest of a body before an early response; a client that is still sending would not receive it."""
        if self._complete or self._expects or not self._has_body:
            return
        end = time.monotonic() + DRAIN_SECONDS
        with suppress(TimeoutError):
            while not self._complete and self._bytes < DRAIN_BYTES:
                async with asyncio.timeout(max(end - time.monotonic(), 0)):
                    message = await self._receive()
                self._bytes += len(message.get("body", b""))
                self._complete = not message.get("more_body", False)


def _host_name(values: list[bytes]) -> str:
    """The name in a Host header, without the port; empty if there is none."""
    try:
        return urlsplit("//" + values[0].decode("ascii")).hostname or ""
    except (IndexError, ValueError):
        return ""
