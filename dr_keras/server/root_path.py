"""A server that a reverse proxy offers below a path of another site."""

from urllib.parse import quote, unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send


class Below:
    """ASGI middleware: takes `root_path` off the paths that begin with it, and leaves others, from which the proxy has
    taken it; what stands behind sees none of it.

    Uvicorn's own `root_path` is for proxies of the second kind alone: it goes before every path.

    Args:
        app: what stands behind.
        root_path: as `dr_keras.server.settings.Settings` checks it: ASCII, from a slash on, without one at its end.
    """

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path.startswith(self._root_path + "/"):
            raw: bytes = scope.get("raw_path") or path.encode()
            rest = unquote_to_bytes(raw.partition(b"?")[0])[len(self._root_path) :]
            scope = {**scope, "path": path[len(self._root_path) :], "raw_path": quote(rest).encode()}
        await self.app(scope, receive, send)
