"""What the server answers with."""

import asyncio
import json
import re
from concurrent.futures import Executor
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dr_keras.search_results import Answer, Result
from dr_keras.server.errors import Problem
from dr_keras.server.image_files import Opened

PIECE = 2**18  # bytes of a file sent together
TAG = re.compile(r'"[^"]*"')  # an entity tag without its W/; a comma may stand in it
RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


class PlainJSON(Response):
    """JSON in ASCII, as ids need not be UTF-8: their bytes become lone surrogates, escaped, as in `retrieve.py`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def has_it(request: Request, tag: str) -> bool:
    """Whether a client that asks with If-None-Match has what bears the tag, so that 304 answers it (RFC 9110, 13.1.2).

    The comparison is the weak one: a proxy that compresses turns `"a"` into `W/"a"`.
    """
    given = ",".join(request.headers.getlist("if-none-match"))
    return given.strip() == "*" or tag.removeprefix("W/") in TAG.findall(given)


def asked_part(request: Request, tag: str, size: int) -> range | None:
    """The bytes that a client asks for with Range, None where it gets all (RFC 9110, 14.2).

    Starlette reads ranges only for files that it opens itself. Several ranges, other units and what cannot be read are
    ignored, as a server may; so is a range of an older state (If-Range).

    Args:
        request: the request.
        tag: the strong ETag of the present state.
        size: of the whole, in bytes.

    Raises:
        Problem: 416 where no byte of the range is there.
    """
    if request.method != "GET" or request.headers.get("if-range", tag).strip() != tag:
        return None
    found = RANGE.fullmatch(",".join(request.headers.getlist("range")))
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":  # the last so many
        part = range(max(size - int(found[2]), 0), size)
    else:
        first, last = int(found[1]), int(found[2] or size)
        if found[2] and last < first:
            return None
        part = range(first, min(last + 1, size))
    if not part:
        headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        raise Problem(416, f"the image has {size:,} bytes; none of those that Range asks for is there", headers)
    return part


class FileResponse(Response):
    """The content of a file that is open, or a part of it; the file is closed afterwards.

    Args:
        opened: it becomes this object's.
        pool: what reads it.
        headers: further ones.
        part: its bytes to send, all by default.
    """

    def __init__(self, opened: Opened, pool: Executor, headers: dict[str, str], part: range | None = None) -> None:
        self._opened = opened
        self._pool = pool
        self._part = range(opened.size) if part is None else part  # no more, though the file may grow
        headers = headers | {"Accept-Ranges": "bytes", "Content-Length": str(len(self._part))}
        if part is not None:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{opened.size}"
        super().__init__(None, 200 if part is None else 206, headers, opened.format.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        left = self._part if scope["method"] != "HEAD" else range(0)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while left:
                count = min(PIECE, len(left))
                piece = await loop.run_in_executor(self._pool, self._opened.file.read, left.start, count)
                if not piece:
                    raise ConnectionResetError("the file became shorter while it was sent")
                left = left[len(piece) :]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._opened.close()


def shown(answer: Answer, paths: bool) -> dict[str, Any]:
    """What `retrieve.py --json` prints, with the files' paths on this machine only if `paths`."""
    said = answer.to_dict()
    if not paths:
        for result in said["results"]:
            del result["path"]
    return said


def described(result: Result) -> dict[str, Any]:
    """An image as `dr_keras.server.schemas.Image`."""
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
