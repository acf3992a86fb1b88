"""The routes of the web page and its parts."""

import hashlib
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from dr_keras.server.errors import Problem
from dr_keras.server.responses import matches_etag

STATIC = Path(__file__).parent / "static"
STATIC_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def add_page(app: FastAPI, root_path: str, *, judging: bool) -> None:
    """Adds the routes.

    Args:
        app: The application.
        root_path: The path below which a reverse proxy serves it, or nothing.
        judging: Whether there is a page for judgments.
    """
    # Read once, so that no URL becomes a path. Starlette's StaticFiles supports neither `*` nor several
    # If-None-Match headers, and derives entity tags from file times, which differ between installations.
    files = {file.name: file.read_bytes() for file in STATIC.iterdir() if file.suffix in STATIC_TYPES}

    def static(request: Request, name: str) -> Response:
        if name not in files:
            raise Problem(404, "there is no such page")
        etag = f'"{hashlib.sha256(files[name]).hexdigest()[:20]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if matches_etag(request, etag):
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=STATIC_TYPES[Path(name).suffix], headers=headers)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return static(request, "index.html")

    @app.get("/groups", include_in_schema=False)
    async def groups(request: Request) -> Response:
        return static(request, "groups.html")

    if judging:

        @app.get("/judge", include_in_schema=False)
        async def judge(request: Request) -> Response:
            return static(request, "judge.html")

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
            return RedirectResponse(f"{root_path}/" + (query and f"?{query}"))  # the page's references are relative
