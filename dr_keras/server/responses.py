"""Responses: JSON, files and parts of files, and the request headers that select them."""

import asyncio
import json
import re
from concurrent.futures import Executor
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dr_keras.index.records import Photos
from dr_keras.search_results import Answer, Result
from dr_keras.server.errors import Problem
from dr_keras.server.image_files import Opened

CHUNK_BYTES = 2**18  # of a file, sent at a time
ETAG = re.compile(r'"[^"]*"')  # an entity tag without its W/; it may contain a comma
RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


class PlainJSON(Response):
    """JSON. An id need not be UTF-8: its bytes become escaped lone surrogates, as in `retrieve.py`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        try:
            return orjson.dumps(content)
        except orjson.JSONEncodeError:  # it takes no lone surrogates
            return json.dumps(content, allow_nan=False).encode()


def matches_etag(request: Request, etag: str) -> bool:
    """Whether If-None-Match names an entity tag, so that the answer is 304 (RFC 9110, section 13.1.2).

    The comparison is weak: a proxy that compresses turns `"a"` into `W/"a"`.
    """
    given = ",".join(request.headers.getlist("if-none-match"))
    return given.strip() == "*" or etag.removeprefix("W/") in ETAG.findall(given)


def requested_range(request: Request, etag: str, size: int) -> range | None:
    """The bytes that a client requests with Range (RFC 9110, section 14.2).

    Starlette reads ranges only of files that it opens itself. Several ranges, other units and malformed ranges are
    ignored, as a server may; so is a range of an older version (If-Range).

    Args:
        request: The request.
        etag: The strong entity tag of the current version.
        size: The size of the whole file, in bytes.

    Returns:
        The bytes, or None for the whole file.

    Raises:
        Problem: 416 if the range lies outside the file.
    """
    if request.method != "GET" or request.headers.get("if-range", etag).strip() != etag:
        return None
    found = RANGE.fullmatch(",".join(request.headers.getlist("range")))
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":  # the last bytes
        part = range(max(size - int(found[2]), 0), size)
    else:
        first, last = int(found[1]), int(found[2] or size)
        if found[2] and last < first:
            return None
        part = range(first, min(last + 1, size))
    if not part:
        headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        raise Problem(416, f"the image has {size:,} bytes; the requested range lies outside the file", headers)
    return part


class FileResponse(Response):
    """The content of an open file, or a part of it. The file is closed afterwards.

    Args:
        opened: The file, which the response owns from now on.
        pool: The threads that read it.
        headers: Further headers, besides those that describe the content.
        part: The bytes to send; by default all of them.
    """

    def __init__(self, opened: Opened, pool: Executor, headers: dict[str, str], part: range | None = None) -> None:
        self._opened = opened
        self._pool = pool
        self._part = range(opened.size) if part is None else part  # no more than this, even if the file grows
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
                count = min(CHUNK_BYTES, len(left))
                piece = await loop.run_in_executor(self._pool, self._opened.file.read, left.start, count)
                if not piece:
                    raise ConnectionResetError("the file was truncated while it was being sent")
                left = left[len(piece) :]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._opened.close()


def answer_content(answer: Answer, paths: bool) -> dict[str, Any]:
    """Makes the object that `retrieve.py --json` prints.

    Args:
        answer: The answer.
        paths: Whether it contains the paths of files on this machine.
    """
    return answer.to_dict(paths=paths)


def image_content(result: Result) -> dict[str, Any]:
    """Makes the object `dr_keras.server.schemas.Image` of an image."""
    return {
        "id": result.id,
        "name": result.name,
        "label": result.label,
        "class_name": result.class_name,
        "attributes": dict(result.attributes),
    }


def photos_content(photos: Photos) -> dict[str, Any]:
    """Makes the object `dr_keras.server.schemas.Photos`."""
    cameras = [{"model": model, "count": count} for model, count in photos.cameras.items()]
    return {"first": photos.first, "last": photos.last, "cameras": cameras, "placed": photos.placed}


def no_store(content: Any, status: int = 200) -> PlainJSON:
    """Makes a JSON response that no cache stores."""
    return PlainJSON(content, status, {"Cache-Control": "no-store"})
