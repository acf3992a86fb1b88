"""The FastAPI application: the page, the HTTP API, and what watches them."""

import asyncio
import hashlib
import hmac
import json
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_to_bytes

import numpy as np
from fastapi import FastAPI, Request
from fastapi import Query as Parameter
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

import dr_keras
from dr_keras.app import schemas
from dr_keras.app.batching import Batcher
from dr_keras.app.files import MAX_SIDE, MIN_SIDE, Format, Opened, Thumbnails, examine
from dr_keras.app.gallery import Gallery, Query
from dr_keras.app.guard import HEADERS, Guard
from dr_keras.app.metrics import Metrics
from dr_keras.app.problems import Problem, busy
from dr_keras.app.schemas import MAX_ID, MAX_IDS, MAX_K, MAX_LABEL, SearchRequest
from dr_keras.app.settings import Settings
from dr_keras.data.images import decode
from dr_keras.errors import ImageError, InputError, RunError
from dr_keras.library import Answer, Model, Result

T = TypeVar("T")

log = logging.getLogger("uvicorn.error")

STATIC = Path(__file__).parent / "static"
STATIC_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
IMAGES_OF_A_QUERY = 8  # that a client may send at once
FIELD_BYTES = 2**16  # of a field of a form that is no image
IMAGES_AT_ONCE = 32  # of LiteRT's time on a CPU hardly anything is saved beyond
SEARCHES_AT_ONCE = 64  # all that are answered at a time by default
READERS = 4  # threads that look at the index; it takes one at a time, but files and maps do not wait for it
KEPT_VECTORS = 256  # of images that were sent: a person filters and pages on with the same one
REFRESH_SECONDS = 10.0  # an idle server lets go of an old state after this, so that the writer's log does not grow
IMAGE_CACHE = "private, max-age=300"  # an image may be replaced; five minutes spare a person's scrolling back and forth
FORM = "multipart/form-data"

K = Annotated[int, Parameter(ge=1, le=MAX_K, description="How many neighbours.")]


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
        opened = await self._decoding(self.gallery.open_image, path_id(request))
        tag = opened.etag if side is None else f'{opened.etag[:-1]}-{side}"'
        headers = {"ETag": tag, "Cache-Control": IMAGE_CACHE}
        if tag in (part.strip() for part in request.headers.get("if-none-match", "").split(",")):
            opened.close()
            return Response(status_code=304, headers=headers)
        if side is None:
            return FileResponse(opened, self._decoders, headers)
        try:
            made = await self._decoding(self.thumbnails.get, opened, side)
        finally:
            opened.close()
        return Response(made, media_type="image/jpeg", headers=headers)

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
        except (ValueError, RecursionError):
            attributes = None
        if not isinstance(attributes, dict):
            raise Problem(422, 'attributes have to be a JSON object, such as {"year": 2026}')
        format, vector = await self.examined(images[0])
        try:
            return await self.write(self.gallery.add, images[0], format, vector, label, attributes)
        except RunError:
            raise
        except InputError as error:
            raise Problem(422, str(error)) from None


def path_id(request: Request) -> str:
    """The id at the end of an address: its bytes need not be UTF-8, so it is read from what was sent."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    id = unquote_to_bytes(raw.partition(b"?")[0].split(b"/v1/images/", 1)[1]).decode("utf-8", "surrogateescape")
    if len(id) > MAX_ID:
        raise Problem(414, f"the id has {len(id):,} characters; at most {MAX_ID:,} are read")
    return id


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for the OpenAPI document."""
    return {status: {"model": schemas.Error} for status in (*statuses, 503)}


def body(*kinds: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The body of a route, for the OpenAPI document."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in kinds}}}


def search_body() -> dict[str, Any]:
    asked = SearchRequest.model_json_schema()
    images = {
        "type": "array",
        "maxItems": IMAGES_OF_A_QUERY,
        "items": {"type": "string", "format": "binary"},
        "description": "Images to be like; a form has one part for each.",
    }
    form = {"title": "SearchForm", "type": "object", "properties": {"image": images, **asked["properties"]}}
    return body((FORM, form), ("application/json", asked))


ADD_BODY = body(
    (
        FORM,
        {
            "title": "AddForm",
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary"},
                "label": {"type": "string", "maxLength": MAX_LABEL, "description": "Its class."},
                "attributes": {"type": "string", "description": "A JSON object."},
            },
        },
    )
)
TOKEN: dict[str, Any] = {"security": [{"token": []}]}


def create_app(model: Model, settings: Settings | None = None) -> FastAPI:
    """The application.

    Args:
        model: with an index, as `dr_keras.load` gives it.
        settings: by default it is read-only.
    """
    settings = settings or Settings()
    server = Server(model, settings)
    app = FastAPI(
        title="dr_keras",
        summary="Searches images by what they look like.",
        version=dr_keras.__version__,
        docs_url=None,  # FastAPI's page of the API loads scripts from another host
        redoc_url=None,
        lifespan=server.running,
    )
    app.state.server = server
    app.add_middleware(Guard, settings=settings, metrics=server.metrics)
    _handle_errors(app)
    _add_api(app, server)
    _add_page(app)
    _describe_token(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return Problem(422, schemas.sentence(error.errors())).response()

    @app.exception_handler(405)
    async def other_method(request: Request, _: Exception) -> Response:
        # One route of a path does not know the methods of its others.
        matching = (route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE)
        allowed = sorted({method for route in matching for method in getattr(route, "methods", None) or ()})
        return Problem(405, f"{request.method} does nothing here", {"Allow": ", ".join(allowed)}).response()

    @app.exception_handler(RunError)
    async def broken(_: Request, error: RunError) -> Response:
        log.error("%s", error)
        return Problem(500, "the server cannot use its index or its network; its log says why").response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Response:
        return Problem(500, "the server failed; its log says why", HEADERS).response()


def _add_api(app: FastAPI, server: Server) -> None:
    gallery = server.gallery

    @app.post(
        "/v1/search",
        response_model=schemas.SearchResponse,
        responses=errors(400, 404, 408, 413, 415, 422),
        openapi_extra=search_body(),
        tags=["search"],
    )
    async def search(request: Request, k: K = 30) -> Response:
        """The nearest images of an image that is sent, of images of the index, or of several together."""
        answer = await server.search(await server.query(request), k)
        return no_store(answer.to_dict())

    @app.get("/v1/stats", response_model=schemas.Stats, responses=errors(), tags=["index"])
    async def stats() -> Response:
        """What the index holds."""
        found = await server.read(gallery.stats)
        return no_store(found | {"writable": server.settings.writable})

    @app.get("/v1/classes", response_model=list[schemas.Class], responses=errors(), tags=["index"])
    async def classes() -> Response:
        """The classes of the images that a search may find."""
        return no_store(await server.read(gallery.classes))

    @app.get("/v1/sample", response_model=list[schemas.Image], responses=errors(422), tags=["index"])
    async def sample(k: K = 30) -> Response:
        """Some images by chance, to begin with."""
        return no_store([described(result) for result in await server.read(gallery.sample, k)])

    @app.get("/v1/find", response_model=schemas.Image, responses=errors(404, 422), tags=["index"])
    async def find(
        name: Annotated[str, Parameter(min_length=1, max_length=MAX_ID, description="An id, or a unique base name.")],
    ) -> Response:
        """The image of a name; where there is none, the refusal names those that are nearly so called."""
        return no_store(described(await server.read(gallery.find, name)))

    @app.get(
        "/v1/map",
        response_class=Response,
        responses=errors() | {200: {"content": {"application/octet-stream": {}}}},
        tags=["map"],
    )
    async def map(request: Request) -> Response:
        """All images in two dimensions. Little-endian: 'DKM1', uint32 N, uint32 length of the JSON; N pairs of float32
        x and y, nearly all within -1 and 1; N uint32, each point's class; JSON with key, method and classes."""
        made = await server.read(gallery.map)
        headers = {"ETag": f'"{made.key}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type="application/octet-stream", headers=headers)

    @app.get("/v1/map/{key}/{number}", response_model=schemas.Image, responses=errors(404, 409, 422), tags=["map"])
    async def point(key: str, number: int) -> Response:
        """The image of a point of the map."""
        return no_store(described(await server.read(gallery.point, key, number)))

    @app.post(
        "/v1/map/query",
        response_model=schemas.Place,
        responses=errors(400, 404, 408, 413, 415, 422),
        openapi_extra=search_body(),
        tags=["map"],
    )
    async def place(request: Request, k: K = 30) -> Response:
        """Where a query, asked as in `/v1/search`, and its neighbours lie in the map."""
        return no_store(await server.read(gallery.place, await server.query(request), k))

    @app.get(
        "/v1/images/{id:path}",
        response_class=Response,
        responses=errors(403, 404, 414, 415, 422) | {200: {"content": {"image/*": {}}}},
        tags=["images"],
    )
    async def image(
        request: Request,
        id: str,  # noqa: ARG001  # for the document; `path_id` reads its bytes
        thumbnail: Annotated[
            int | None, Parameter(ge=MIN_SIDE, le=MAX_SIDE, description="Pixels of a JPEG's longer side at most.")
        ] = None,
    ) -> Response:
        """The file of an image of the index, or a small JPEG of it."""
        return await server.image(request, thumbnail)

    @app.post(
        "/v1/images",
        response_model=schemas.Added,
        status_code=201,
        responses=errors(400, 401, 403, 408, 409, 413, 415, 422, 507) | {200: {"model": schemas.Added}},
        openapi_extra=ADD_BODY | TOKEN,
        tags=["images"],
    )
    async def add(request: Request) -> Response:
        """Stores an image and adds it to the index; the next search finds it."""
        server.authorise(request)
        result, created = await server.add(request)
        return no_store(described(result) | {"created": created}, 201 if created else 200)

    @app.delete(
        "/v1/images/{id:path}",
        response_model=schemas.Removed,
        responses=errors(401, 403, 404, 507),
        openapi_extra=TOKEN,
        tags=["images"],
    )
    async def remove(request: Request, id: str) -> Response:  # noqa: ARG001
        """Removes an image from the index, and its file where a client had sent it."""
        server.authorise(request)
        named = path_id(request)
        return no_store({"id": named, "file_removed": await server.write(gallery.remove, named)})

    @app.get("/healthz", response_model=schemas.Health, tags=["server"])
    async def healthz() -> Response:
        """Whether the process is alive."""
        return no_store({"status": "ok"})

    @app.get("/readyz", response_model=schemas.Health, responses=errors(), tags=["server"])
    async def readyz() -> Response:
        """Whether it can search."""
        await server.ready()
        return no_store({"status": "ok"})

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
        tags=["server"],
    )
    async def metrics() -> Response:
        """Counters for Prometheus."""
        server.metrics.images.set(len(gallery))
        return Response(server.metrics.text(), headers={"Content-Type": server.metrics.content_type})


def _add_page(app: FastAPI) -> None:
    # Read once and by fixed names, so that no address becomes a path.
    files = {file.name: file.read_bytes() for file in STATIC.iterdir() if file.suffix in STATIC_TYPES}

    def static(request: Request, name: str) -> Response:
        if name not in files:
            raise Problem(404, "there is no such page")
        tag = f'"{hashlib.sha256(files[name]).hexdigest()[:20]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=STATIC_TYPES[Path(name).suffix], headers=headers)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return static(request, "index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        return static(request, name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon(request: Request) -> Response:
        return static(request, "icon.svg")


def _describe_token(app: FastAPI) -> None:
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


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
