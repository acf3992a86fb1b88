"""What the server answers with."""

import asyncio
import json
from concurrent.futures import Executor
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dr_keras.answers import Result
from dr_keras.app.files import Opened


class PlainJSON(Response):
    """JSON in ASCII, as ids need not be UTF-8: their bytes become lone surrogates, escaped, as in `retrieve.py`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class FileResponse(Response):
    """The content of a file that is open, and is closed afterwards."""

    def __init__(self, opened: Opened, pool: Executor, headers: dict[str, str]) -> None:
        super().__init__(None, headers=headers | {"Content-Length": str(opened.size)})
        self.headers["Content-Type"] = opened.format.media_type
        self._opened = opened
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        pieces = self._opened.pieces()
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while piece := await loop.run_in_executor(self._pool, next, pieces, b""):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._opened.close()


def described(result: Result) -> dict[str, Any]:
    """An image as `dr_keras.app.schemas.Image`."""
    return {
        "id": result.id,
        "name": result.name,
        "label": result.label,
        "class_name": result.class_name,
        "attributes": dict(result.attributes),
    }


def no_store(content: Any, status: int = 200) -> PlainJSON:
    """JSON that nobody keeps."""
    return PlainJSON(content, status, {"Cache-Control": "no-store"})
