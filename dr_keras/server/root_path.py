"""Serving below a path of another site, behind a reverse proxy."""

from urllib.parse import quote, unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """ASGI middleware that removes `root_path` from the paths that begin with it. Other paths stay: there the proxy has
    removed it already.

    Uvicorn's own `root_path` supports only proxies of the second kind: it is prepended to every path.

    Args:
        app: the application.
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
