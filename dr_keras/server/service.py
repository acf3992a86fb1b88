"""What the routes share: the model and the index, the threads that work with them, and what a request says."""

import asyncio
import hashlib
import hmac
import json
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import numpy as np
from fastapi import FastAPI, Request
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

from dr_keras.data.images import decode
from dr_keras.errors import ImageError, InputError, RunError
from dr_keras.search_model import Model
from dr_keras.search_results import Answer, Result
from dr_keras.server import schemas
from dr_keras.server.batching import Batcher
from dr_keras.server.errors import Problem, busy
from dr_keras.server.image_files import Format, Opened, Thumbnails, examine
from dr_keras.server.live_index import Gallery, Query
from dr_keras.server.prometheus import Metrics
from dr_keras.server.responses import FileResponse, asked_part, has_it
from dr_keras.server.schemas import MAX_ID, MAX_IDS, MAX_LABEL, SearchRequest
from dr_keras.server.settings import Settings

T = TypeVar("T")

log = logging.getLogger("uvicorn.error")

IMAGES_OF_A_QUERY = 8  # that a client may send at once
FIELD_BYTES = 2**16  # of a field of a form that is no image
IMAGES_AT_ONCE = 32  # of LiteRT's time on a CPU hardly anything is saved beyond
SEARCHES_AT_ONCE = 64  # all that are answered at a time by default
READERS = 4  # threads that look at the index, which takes one at a time; one may be making a map
KEPT_VECTORS = 256  # of images that were sent: a person filters and pages on with the same one
REFRESH_SECONDS = 10.0  # an idle server lets go of an old state after this, so that the writer's log does not grow
IMAGE_CACHE = "private, max-age=300"  # an image may be replaced; five minutes spare a person's scrolling back and forth
FORM = "multipart/form-data"
IMAGES = "/v1/images/"  # before an id, in an address


class Server:
    """What the routes share.

    Args:
        model: with an index, as `dr_keras.load` gives it.
        settings: the settings.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.gallery = Gallery(model, settings.uploads if settings.writable else None)
        self.thumbnails = Thumbnails()
        embed = model.reader.embed
        self.embedder: Batcher[np.ndarray, np.ndarray] = Batcher(
            lambda images: list(embed(np.stack(images))), "embed", IMAGES_AT_ONCE, self.metrics.batches.observe
        )
        self.searcher: Batcher[tuple[Query, int], Answer] = Batcher(
            self.gallery.search_many, "search", SEARCHES_AT_ONCE
        )
        self._size, self._resize = model.reader.size, model.reader.resize
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._writer = ThreadPoolExecutor(1, "write")

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """From the start of the server to its stop."""
        if self.gallery.uploads is not None:
            self.gallery.uploads.mkdir(parents=True, exist_ok=True)
        self.embedder.start()
        self.searcher.start()
        await self.embedder.do(np.zeros((self._size, self._size, 3), np.uint8))  # loads the network
        refresher = asyncio.create_task(self._refresh())
        try:
            yield
        finally:
            refresher.cancel()
            with suppress(asyncio.CancelledError):
                await refresher
            await self.embedder.stop()
            await self.searcher.stop()
            for pool in (self._decoders, self._readers, self._writer):
                pool.shutdown()

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.read(self.gallery.refresh)
            except RunError as error:
                log.error("%s", error)

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls what reads the index, outside of the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    async def write(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls what changes the index."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *arguments)

    async def ready(self) -> None:
        """Raises Problem 503 where the server cannot search."""
        if not (self.embedder.working and self.searcher.working):
            raise busy("the network is not loaded")
        try:
            await self.read(self.gallery.refresh)
        except RunError as error:
            log.error("%s", error)
            raise busy("the index cannot be read; the server's log says why", seconds=10) from None

    def authorise(self, request: Request) -> None:
        """Raises Problem where the client may not change the index."""
        if not self.settings.writable or self.settings.token is None:
            raise Problem(403, "this server takes no changes; it is started without --writable")
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # Compared in a time that does not tell how much of it was right.
        right = hmac.compare_digest(given.strip().encode(errors="replace"), self.settings.token.encode())
        if kind.lower() != "bearer" or not right:
            raise Problem(
                401,
                "a token is needed: send Authorization: Bearer TOKEN",
                {"WWW-Authenticate": 'Bearer realm="dr_keras"'},
            )

    async def query(self, request: Request) -> Query:
        """What a client asks for, its images embedded."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        images: list[bytes] = []
        if kind == "application/json":
            asked = schemas.parse_search(await request.body())
        elif kind == FORM:
            values, images = await self.form(
                request, IMAGES_OF_A_QUERY, ("positives", "negatives"), ("where", "max_distance", "include_self")
            )
            asked = schemas.check_search({name: value for name, value in values.items() if value != ""})
        else:
            raise Problem(415, f"the body is {kind or 'of no type'!r}; send {FORM} with an image, or application/json")
        return await self.prepared(asked, images)

    async def search(self, query: Query, k: int) -> Answer:
        """The `k` nearest images of a query."""
        if query.where:  # would make those that came at the same time wait for its condition
            return await self.read(self.gallery.search, query, k)
        return await self.searcher.do((query, k))

    async def prepared(self, asked: SearchRequest, images: list[bytes]) -> Query:
        """A request with the vectors of its images."""
        vectors = await asyncio.gather(*(self.embedded(data) for data in images))
        return Query(
            np.stack(vectors) if vectors else np.empty((0, 0), np.float32),
            asked.positives,
            asked.negatives,
            asked.where,
            asked.max_distance,
            asked.include_self,
        )

    async def form(
        self, request: Request, most: int, lists: tuple[str, ...], fields: tuple[str, ...]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """A form's fields, and the content of its parts `image`.

        Args:
            request: the request.
            most: how many images it may have.
            lists: fields that may come several times.
            fields: fields that come once.

        Raises:
            Problem: it is no form, or has other parts.
        """
        form: FormData
        values: dict[str, Any] = {name: [] for name in lists}
        images: list[bytes] = []
        async with request.form(max_files=most, max_fields=2 * MAX_IDS + 8, max_part_size=FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "image":
                        raise Problem(422, f"the form has a file {name[:80]!r}; images come as the field 'image'")
                    images.append(await value.read())
                elif name in lists:
                    values[name].append(value)
                elif name in fields and name not in values:
                    values[name] = value
                else:
                    known = ", ".join(("image", *lists, *fields))
                    what = "twice" if name in fields else "as text, not as a file" if name == "image" else "in vain"
                    raise Problem(422, f"the form has the field {name[:80]!r} {what}; it takes {known}")
        return values, images

    async def embedded(self, data: bytes) -> np.ndarray:
        """The vector (D,) of an image that a client sent."""
        return (await self.examined(data))[1]

    async def examined(self, data: bytes) -> tuple[Format, np.ndarray]:
        """The format and the vector (D,) of an image that a client sent.

        Raises:
            Problem: it is no image, or too large.
        """
        digest = hashlib.sha256(data).digest()
        format = await self._decoding(examine, data, self.settings.pixels)
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return format, self._kept[digest]
        try:
            pixels = await self._decoding(decode, data, self._size, self._resize)
        except ImageError as error:
            raise Problem(415, f"the image {error}") from None
        vector = (await self.embedder.do(pixels)).copy()  # not a part of the batch's array, which would stay
        self._kept[digest] = vector
        while len(self._kept) > KEPT_VECTORS:
            self._kept.popitem(last=False)
        return format, vector

    async def _decoding(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    async def image(self, request: Request, side: int | None) -> Response:
        """An image's file or its thumbnail."""
        opened = await self._opened(path_id(request))
        with ExitStack() as owned:
            owned.callback(opened.close)
            tag = opened.etag if side is None else f'{opened.etag[:-1]}-{side}"'
            headers = {"ETag": tag, "Cache-Control": IMAGE_CACHE}
            if has_it(request, tag):
                return Response(status_code=304, headers=headers)
            if side is None:
                response = FileResponse(opened, self._decoders, headers, asked_part(request, tag, opened.size))
                owned.pop_all()  # it is the response's now
                return response
            made = await self._decoding(self.thumbnails.get, opened, side)
        return Response(made, media_type="image/jpeg", headers=headers)

    async def _opened(self, id: str) -> Opened:
        """`Gallery.open_image` in a thread; where the request is canceled meanwhile, the thread's file is closed."""
        opening = self._decoders.submit(self.gallery.open_image, id)
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unused)
            raise

    async def add(self, request: Request) -> tuple[Result, bool]:
        """Adds the image that a client sent."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
            raise Problem(415, f"send {FORM} with a field 'image'")
        values, images = await self.form(request, 1, (), ("label", "attributes"))
        if len(images) != 1:
            raise Problem(422, f"the form has {len(images)} images; one is expected")
        label = values.get("label") or None
        if label is not None and (len(label) > MAX_LABEL or not label.isprintable()):
            raise Problem(422, f"the label has to be of at most {MAX_LABEL} printable characters")
        try:
            attributes = json.loads(values.get("attributes") or "{}")
            json.dumps(attributes, allow_nan=False)  # NaN and Infinity are Python's, and are no JSON
        except (ValueError, RecursionError):
            attributes = None
        if not isinstance(attributes, dict):
            raise Problem(422, 'attributes have to be a JSON object, such as {"year": 2026}')
        format, vector = await self.examined(images[0])
        try:
            return await self.write(self.gallery.add, images[0], format, vector, label, attributes)
        except RunError:
            raise
        except InputError as error:  # names the image by its id, which may be a path of this machine
            log.error("%s", error)
            raise Problem(422, "the image cannot be added; the server's log says why") from None


def _close_unused(opening: "Future[Opened]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def path_id(request: Request) -> str:
    """The id at the end of an address: its bytes need not be UTF-8, so it is read from what was sent."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    named = unquote_to_bytes(raw.partition(b"?")[0]).removeprefix(IMAGES.encode())
    id = named.decode("utf-8", "surrogateescape")
    if len(id) > MAX_ID:
        raise Problem(414, f"the id has {len(id):,} characters; at most {MAX_ID:,} are read")
    return id
