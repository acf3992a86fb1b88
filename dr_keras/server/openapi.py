"""Parameters and descriptions that several routes share, for the OpenAPI document."""

from typing import Annotated, Any

from fastapi import Depends
from fastapi import Query as Parameter
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from dr_keras.server import schemas
from dr_keras.server.schemas import MAX_CROP, MAX_K

K = Annotated[int, Parameter(ge=1, le=MAX_K, description="How many images.")]
CropText = Annotated[
    str | None,
    Parameter(
        max_length=MAX_CROP,
        description="Search for this part of the only image: left,top,width,height in pixels of the upright image, or "
        "in shares of it from 0 to 1.",
    ),
]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for the OpenAPI document; any route may also answer 414 or 503."""
    return {status: {"model": schemas.Error} for status in sorted({*statuses, 414, 503})}


def body(*kinds: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The request body of a route, for the OpenAPI document."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in kinds}}}


Credentials = Annotated[
    HTTPAuthorizationCredentials | None, Depends(HTTPBearer(scheme_name="token", auto_error=False))
]  # `Service.authorize` refuses wrong ones, and says if the server is read-only
