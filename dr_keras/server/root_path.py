"""Serving below a path of another site, behind a reverse proxy."""

from urllib.parse import quote, unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """ASGI middleware that removes `root_path` from the paths that begin with it. Other paths are left alone: the proxy
    has already removed it from them.

    Uvicorn's own `root_path` supports only proxies that remove it: it is prepended to every path.

    Args:
        app: The application.
        root_path: As `dr_keras.server.settings.Settings` checks it: ASCII, with a leading but no trailing slash.
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
