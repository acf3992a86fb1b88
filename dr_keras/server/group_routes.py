"""The routes of groups: listed for everyone, named and corrected by clients with the token."""

from typing import Annotated

from fastapi import FastAPI, Request
from fastapi import Query as Parameter
from starlette.responses import Response

from dr_keras.server import schemas
from dr_keras.server.live_groups import LiveGroups
from dr_keras.server.openapi import Credentials, K, body, errors
from dr_keras.server.requests import read_json
from dr_keras.server.responses import image_content, no_store
from dr_keras.server.schemas import MAX_GROUP
from dr_keras.server.service import Service


def add_groups(app: FastAPI, service: Service) -> None:
    """Adds the routes to the application."""
    live = LiveGroups(service.live_index)
    group_name = Annotated[str, Parameter(min_length=1, max_length=MAX_GROUP, description="The name of a group.")]

    @app.get("/v1/groups", response_model=list[schemas.Group], responses=errors(), tags=["groups"])
    async def groups() -> Response:
        """Lists the groups that `index.py cluster` has made, the largest first."""
        found = await service.read(live.all)
        return no_store(
            [{"name": group.name, "count": group.count, "center": image_content(center)} for group, center in found]
        )

    @app.get("/v1/group", response_model=list[schemas.Image], responses=errors(404, 422), tags=["groups"])
    async def members(name: group_name, k: K = 100) -> Response:
        """Returns images of a group, the one in its middle first."""
        return no_store([image_content(result) for result in await service.read(live.members, name, k)])

    @app.post(
        "/v1/groups/rename",
        response_model=schemas.Moved,
        responses=errors(400, 401, 403, 404, 408, 413, 415, 422, 507),
        openapi_extra=body(("application/json", schemas.Renaming.model_json_schema())),
        tags=["groups"],
    )
    async def rename(request: Request, credentials: Credentials) -> Response:
        """Renames a group, or joins it to another of that name."""
        service.authorize(credentials)
        asked = await read_json(request, schemas.Renaming)
        return no_store({"images": await service.write(live.rename, asked.name, asked.to)})

    @app.post(
        "/v1/groups/move",
        response_model=schemas.Moved,
        responses=errors(400, 401, 403, 404, 408, 413, 415, 422, 507),
        openapi_extra=body(("application/json", schemas.Moving.model_json_schema())),
        tags=["groups"],
    )
    async def move(request: Request, credentials: Credentials) -> Response:
        """Moves images to a group, which may be new, or out of any."""
        service.authorize(credentials)
        asked = await read_json(request, schemas.Moving)
        return no_store({"images": await service.write(live.move, asked.ids, asked.group)})
