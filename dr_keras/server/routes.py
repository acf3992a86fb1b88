"""The FastAPI application: its routes, and what its OpenAPI document says of them."""

import hashlib
import logging
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi import Query as Parameter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match

import dr_keras
from dr_keras.errors import RunError
from dr_keras.search_model import Model
from dr_keras.server import schemas
from dr_keras.server.errors import Problem
from dr_keras.server.image_files import MAX_SIDE, MIN_SIDE
from dr_keras.server.limits import HEADERS, Guard
from dr_keras.server.responses import described, has_it, no_store, shown
from dr_keras.server.root_path import Below
from dr_keras.server.schemas import MAX_ID, MAX_K, MAX_LABEL, SearchRequest
from dr_keras.server.service import FORM, IMAGES, IMAGES_OF_A_QUERY, Server, path_id
from dr_keras.server.settings import Settings

log = logging.getLogger("uvicorn.error")

STATIC = Path(__file__).parent / "static"
STATIC_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class AnyBytes(Convertor[str]):
    """What is left of an address, whatever is in it; Starlette's `path` matches no line break, which names may have."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


K = Annotated[int, Parameter(ge=1, le=MAX_K, description="How many neighbours.")]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for the OpenAPI document; an address may be too long for any."""
    return {status: {"model": schemas.Error} for status in sorted({*statuses, 414, 503})}


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
    register_url_convertor("any_bytes", AnyBytes())
    app = FastAPI(
        title="dr_keras",
        summary="Searches images by what they look like.",
        version=dr_keras.__version__,
        docs_url=None,  # FastAPI's page of the API loads scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # to an absolute address, which behind a proxy is another's
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        lifespan=server.running,
    )
    app.state.server = server
    app.add_middleware(Guard, settings=settings, metrics=server.metrics)
    if settings.root_path:
        app.add_middleware(Below, root_path=settings.root_path)
    _handle_errors(app)
    _add_api(app, server)
    _add_page(app, settings.root_path)
    _add_heads(app)
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
        return no_store(shown(answer, server.settings.show_paths))

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
        if has_it(request, headers["ETag"]):
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
        IMAGES + "{id:any_bytes}",
        response_class=Response,
        responses=errors(403, 404, 415, 416, 422)
        | {200: {"content": {"image/*": {}}}, 206: {"description": "The bytes that Range asks for."}},
        tags=["images"],
    )
    async def image(
        request: Request,
        id: str,  # noqa: ARG001  # for the document; `path_id` reads its bytes
        thumbnail: Annotated[
            int | None, Parameter(ge=MIN_SIDE, le=MAX_SIDE, description="Pixels of a JPEG's longer side at most.")
        ] = None,
    ) -> Response:
        """The file of an image of the index, or a part of it (Range), or a small JPEG of it."""
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
        IMAGES + "{id:any_bytes}",
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


def _add_page(app: FastAPI, root_path: str) -> None:
    # Read once and by fixed names, so that no address becomes a path.
    files = {file.name: file.read_bytes() for file in STATIC.iterdir() if file.suffix in STATIC_TYPES}

    def static(request: Request, name: str) -> Response:
        if name not in files:
            raise Problem(404, "there is no such page")
        tag = f'"{hashlib.sha256(files[name]).hexdigest()[:20]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if has_it(request, tag):
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

    if root_path:

        @app.get(root_path, include_in_schema=False)
        async def below(request: Request) -> Response:
            query = request.url.query
            return RedirectResponse(f"{root_path}/" + (query and f"?{query}"))  # what the page refers to is relative


def _add_heads(app: FastAPI) -> None:
    """HEAD wherever GET is: the same answer, of which `Guard` sends the head alone."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


def _describe_token(app: FastAPI) -> None:
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
