"""The FastAPI application: its routes and their OpenAPI descriptions."""

import logging
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi import Query as Parameter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response
from starlette.routing import Match

import dr_keras
from dr_keras.errors import RunError, Unavailable
from dr_keras.search_model import Model
from dr_keras.server import schemas
from dr_keras.server.errors import Problem, busy
from dr_keras.server.group_routes import add_groups
from dr_keras.server.image_files import MAX_THUMBNAIL_PIXELS, MIN_THUMBNAIL_PIXELS
from dr_keras.server.judging import JudgmentFile
from dr_keras.server.limits import HEADERS, Guard
from dr_keras.server.openapi import Credentials, CropText, K, body, errors
from dr_keras.server.page import add_page
from dr_keras.server.peers import Peers
from dr_keras.server.requests import FORM, IMAGES, IMAGES_OF_A_QUERY, describe_errors, path_id, read_json
from dr_keras.server.responses import answer_content, image_content, matches_etag, no_store, photos_content
from dr_keras.server.root_path import RootPath
from dr_keras.server.schemas import MAX_ID, MAX_LABEL, SearchRequest
from dr_keras.server.service import Service
from dr_keras.server.settings import Settings

log = logging.getLogger("uvicorn.error")


class AnyBytes(Convertor[str]):
    """The rest of a path, whatever it contains; Starlette's `path` stops at line breaks, which file names may have."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """Returns the value unchanged."""
        return value

    def to_string(self, value: str) -> str:
        """Returns the value unchanged."""
        return value


def search_body() -> dict[str, Any]:
    """The request body of a search, for the OpenAPI document."""
    search = SearchRequest.model_json_schema()
    images = {
        "type": "array",
        "maxItems": IMAGES_OF_A_QUERY,
        "items": {"type": "string", "format": "binary"},
        "description": "Images that the results should be like, each in its own part.",
    }
    form = {"title": "SearchForm", "type": "object", "properties": {"image": images, **search["properties"]}}
    return body((FORM, form), ("application/json", search))


ADD_BODY = body(
    (
        FORM,
        {
            "title": "AddForm",
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary"},
                "label": {"type": "string", "maxLength": MAX_LABEL, "description": "The image's class."},
                "attributes": {"type": "string", "description": "The image's attributes, a JSON object."},
            },
        },
    )
)


def create_app(model: Model, settings: Settings | None = None, peers: Peers | None = None) -> FastAPI:
    """Makes the application.

    Args:
        model: A model with an index, as `dr_keras.load` returns it.
        settings: The settings; by default the server is read-only.
        peers: The other workers of the server; by default there are none.

    Returns:
        The application. It starts its threads when its lifespan begins.
    """
    settings = settings or Settings()
    peers = peers or Peers()
    service = Service(model, settings, peers)
    register_url_convertor("any_bytes", AnyBytes())
    app = FastAPI(
        title="dr_keras",
        summary="Searches images by what they look like.",
        version=dr_keras.__version__,
        docs_url=None,  # FastAPI's documentation page loads scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # it redirects to an absolute URL, which is wrong behind a proxy
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        lifespan=service.running,
    )
    app.state.service = service
    app.add_middleware(Guard, settings=settings, metrics=service.metrics, peers=peers)
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    _handle_errors(app)
    _add_search(app, service)
    _add_explanations(app, service)
    _add_index(app, service)
    _add_map(app, service)
    _add_images(app, service)
    _add_changes(app, service)
    add_groups(app, service)
    _add_watch(app, service)
    if settings.judge:
        _add_judging(app, service, JudgmentFile(settings.judge))
    add_page(app, settings.root_path, judging=settings.judge is not None)
    _add_heads(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return Problem(422, describe_errors(error.errors())).response()

    @app.exception_handler(405)
    async def other_method(request: Request, _: Exception) -> Response:
        # A route does not know the methods of other routes with the same path.
        matching = (route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE)
        allowed = sorted({method for route in matching for method in getattr(route, "methods", None) or ()})
        return Problem(405, f"{request.method} is not allowed here", {"Allow": ", ".join(allowed)}).response()

    @app.exception_handler(RunError)
    async def broken(_: Request, error: RunError) -> Response:
        log.error("%s", error)
        if isinstance(error, Unavailable):
            return busy("the index cannot be reached at the moment; try again", seconds=5).response()
        return Problem(500, "the server cannot use its index or its network; its log says why").response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Response:
        return Problem(500, "the server failed; its log says why", HEADERS).response()


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/search",
        response_model=schemas.SearchResponse,
        responses=errors(400, 404, 408, 413, 415, 422),
        openapi_extra=search_body(),
        tags=["search"],
    )
    async def search(request: Request, k: K = 30, crop: CropText = None) -> Response:
        """Finds the images nearest to uploaded images, to images of the index, or to both together."""
        answer = await service.search(await service.query(request, crop), k)
        return no_store(answer_content(answer, service.settings.show_paths))


def _add_explanations(app: FastAPI, service: Service) -> None:
    name = Parameter(min_length=1, max_length=MAX_ID, description="An id or a unique base name.")

    @app.get(
        "/v1/explain",
        response_model=schemas.Explanation,
        responses=errors(403, 404, 415, 422),
        tags=["search"],
    )
    async def explain(query: Annotated[str, name], neighbor: Annotated[str, name], pairs: bool = False) -> Response:
        """Explains why two images of the index are alike; with `pairs`, also what each part adds with each other."""
        return no_store(await service.explain(query, neighbor, pairs=pairs))


def _add_index(app: FastAPI, service: Service) -> None:
    live_index = service.live_index

    @app.get("/v1/stats", response_model=schemas.Stats, responses=errors(), tags=["index"])
    async def stats() -> Response:
        """Describes the index."""
        found = await service.read(live_index.stats)
        return no_store(found | {"writable": service.settings.writable})

    @app.get("/v1/classes", response_model=list[schemas.Class], responses=errors(), tags=["index"])
    async def classes() -> Response:
        """Lists the classes of the images that a search may find."""
        return no_store(await service.read(live_index.classes))

    @app.get("/v1/photos", response_model=schemas.Photos, responses=errors(), tags=["index"])
    async def photos() -> Response:
        """Says when, where and with what the images were taken that a search may find."""
        return no_store(photos_content(await service.read(live_index.photos)))

    @app.get("/v1/sample", response_model=list[schemas.Image], responses=errors(422), tags=["index"])
    async def sample(k: K = 30) -> Response:
        """Picks images at random."""
        return no_store([image_content(result) for result in await service.read(live_index.sample, k)])

    @app.get("/v1/find", response_model=schemas.Image, responses=errors(404, 422), tags=["index"])
    async def find(
        name: Annotated[str, Parameter(min_length=1, max_length=MAX_ID, description="An id or a unique base name.")],
    ) -> Response:
        """Finds an image by its name. If there is none, the error suggests similar names."""
        return no_store(image_content(await service.read(live_index.find, name)))


def _add_map(app: FastAPI, service: Service) -> None:
    live_index = service.live_index

    @app.get(
        "/v1/map",
        response_class=Response,
        responses=errors() | {200: {"content": {"application/octet-stream": {}}}},
        tags=["map"],
    )
    async def map(request: Request) -> Response:
        """Returns all images as points in two dimensions. Little-endian: 'DKM1', uint32 N, uint32 length of the JSON;
        N pairs of float32 x and y, nearly all within -1 and 1; N uint32, each point's class; JSON with key, method and
        classes."""
        made = await service.read(live_index.map)
        headers = {"ETag": f'"{made.key}"', "Cache-Control": "no-cache"}
        if matches_etag(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type="application/octet-stream", headers=headers)

    @app.get("/v1/map/{key}/{number}", response_model=schemas.Image, responses=errors(404, 409, 422), tags=["map"])
    async def point(key: str, number: int) -> Response:
        """Returns the image of a point of the map."""
        return no_store(image_content(await service.read(live_index.point, key, number)))

    @app.post(
        "/v1/map/query",
        response_model=schemas.Place,
        responses=errors(400, 404, 408, 413, 415, 422),
        openapi_extra=search_body(),
        tags=["map"],
    )
    async def place(request: Request, k: K = 30, crop: CropText = None) -> Response:
        """Places a query, as in `/v1/search`, and its neighbors on the map."""
        return no_store(await service.read(live_index.place, await service.query(request, crop), k))


def _add_images(app: FastAPI, service: Service) -> None:
    @app.get(
        IMAGES + "{id:any_bytes}",
        response_class=Response,
        responses=errors(403, 404, 415, 416, 422)
        | {200: {"content": {"image/*": {}}}, 206: {"description": "The bytes that Range requests."}},
        tags=["images"],
    )
    async def image(
        request: Request,
        id: str,  # noqa: ARG001  # for the OpenAPI document; `path_id` reads it from the raw path
        thumbnail: Annotated[
            int | None,
            Parameter(
                ge=MIN_THUMBNAIL_PIXELS,
                le=MAX_THUMBNAIL_PIXELS,
                description="Answer with a JPEG whose longer side has at most this many pixels.",
            ),
        ] = None,
    ) -> Response:
        """Returns the file of an image of the index, a part of it (Range), or a thumbnail."""
        return await service.image(request, thumbnail)


def _add_changes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/images",
        response_model=schemas.Added,
        status_code=201,
        responses=errors(400, 401, 403, 408, 409, 413, 415, 422, 507) | {200: {"model": schemas.Added}},
        openapi_extra=ADD_BODY,
        tags=["images"],
    )
    async def add(request: Request, credentials: Credentials) -> Response:
        """Stores an uploaded image and adds it to the index; the next search finds it."""
        service.authorize(credentials)
        result, created = await service.add(request)
        return no_store(image_content(result) | {"created": created}, 201 if created else 200)

    @app.delete(
        IMAGES + "{id:any_bytes}",
        response_model=schemas.Removed,
        responses=errors(401, 403, 404, 507),
        tags=["images"],
    )
    async def remove(request: Request, id: str, credentials: Credentials) -> Response:  # noqa: ARG001
        """Removes an image from the index, and its file if it was uploaded."""
        service.authorize(credentials)
        named = path_id(request)
        return no_store({"id": named, "file_removed": await service.write(service.live_index.remove, named)})


def _add_judging(app: FastAPI, service: Service, file: JudgmentFile) -> None:
    live_index = service.live_index

    @app.get("/v1/judgment", response_model=schemas.Question, responses=errors(409), tags=["judgments"])
    async def question() -> Response:
        """Asks which of two images is more like a third: one of the questions of which the network is least sure."""
        names = ("query", "first", "second")
        found = zip(names, await service.read(live_index.question), strict=True)
        return no_store({name: image_content(result) for name, result in found})

    @app.post(
        "/v1/judgments",
        response_model=schemas.Judged,
        status_code=201,
        responses=errors(400, 404, 408, 413, 415, 422, 507),
        openapi_extra=body(("application/json", schemas.Judgment.model_json_schema())),
        tags=["judgments"],
    )
    async def judge(request: Request) -> Response:
        """Keeps the answer to a question, as one vote."""
        count = await service.judge(await read_json(request, schemas.Judgment), file)
        return no_store({"judgments": count}, 201)


def _add_watch(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_model=schemas.Health, tags=["server"])
    async def healthz() -> Response:
        """Reports that the process is alive."""
        return no_store({"status": "ok"})

    @app.get("/readyz", response_model=schemas.Health, responses=errors(), tags=["server"])
    async def readyz() -> Response:
        """Reports whether the server can search, with all of its workers."""
        await service.ready()
        return no_store({"status": "ok"})

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
        tags=["server"],
    )
    async def metrics() -> Response:
        """Returns the metrics for Prometheus."""
        service.metrics.images.set(len(service.live_index))
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.content_type})


def _add_heads(app: FastAPI) -> None:
    """Adds HEAD to each route with GET: the same response, but `Guard` sends only its headers."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
