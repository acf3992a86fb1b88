"""Reads and checks the contents of requests: bodies, forms and ids."""

import json
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from dr_keras.server.errors import Problem
from dr_keras.server.schemas import MAX_ID, MAX_IDS, MAX_LABEL, SearchRequest

Checked = TypeVar("Checked", bound=BaseModel)

FORM = "multipart/form-data"
FIELD_BYTES = 2**16  # limit for a form field that is not an image
SEARCH_FIELDS = ("where", "max_distance", "include_self", "whole", "distinct", "diverse")  # of a form
IMAGES_OF_A_QUERY = 8  # the most that a client may send with one search
IMAGES = "/v1/images/"  # the path before an id in a URL


@dataclass(frozen=True)
class Upload:
    """An image that a client adds to the index.

    Attributes:
        image: The encoded image.
        label: Its class, or None.
        attributes: What else the client says about it.
        facts: What it says of itself, see `dr_keras.data.exif`.
    """

    image: bytes
    label: str | None
    attributes: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


async def read_search(request: Request) -> tuple[SearchRequest, list[bytes]]:
    """Reads a search, sent as JSON or as a form.

    Args:
        request: The request.

    Returns:
        The search, and the encoded images that came with it.

    Raises:
        Problem: 400, 415 or 422; the message says what is wrong.
    """
    content_type = _content_type(request)
    if content_type == "application/json":
        return parse_search(await request.body()), []
    if content_type != FORM:
        raise Problem(
            415, f"the body is {content_type or 'of no type'!r}; send {FORM} with an image, or application/json"
        )
    values, images = await _read_form(request, IMAGES_OF_A_QUERY, ("positives", "negatives"), SEARCH_FIELDS)
    return check(SearchRequest, {name: value for name, value in values.items() if value != ""}), images


def parse_search(data: bytes) -> SearchRequest:
    """Parses a search from JSON.

    Args:
        data: The body of the request.

    Raises:
        Problem: 400 if the body is not JSON, 422 if it is not a search.
    """
    return check(SearchRequest, _parse_json(data))


async def read_json(request: Request, kind: type[Checked]) -> Checked:
    """Reads a body in JSON, such as a `dr_keras.server.schemas.Judgment`.

    Raises:
        Problem: 415, 400 or 422; the message says what is wrong.
    """
    if _content_type(request) != "application/json":
        raise Problem(415, "send application/json")
    return check(kind, _parse_json(await request.body()))


def _parse_json(data: bytes) -> Any:
    try:
        return json.loads(data)  # not pydantic's parser: an id need not be UTF-8, its bytes arrive as lone surrogates
    except RecursionError:
        raise Problem(400, "the JSON nests too deeply") from None
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {error}") from None


def check(kind: type[Checked], value: Any) -> Checked:
    """Makes a model from plain values.

    Args:
        kind: The class of the model.
        value: What the client sent, as Python values.

    Raises:
        Problem: 422; the message names the field.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise Problem(422, describe_errors(error.errors(include_url=False))) from None


def describe_errors(errors: Any) -> str:
    """Describes the first of pydantic's validation errors in one line."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path")) or "the body"
    received = repr(first.get("input"))
    return f"{place}: {first['msg']}; received {received if len(received) <= 80 else received[:80] + '...'}"


async def read_upload(request: Request) -> Upload:
    """Reads an image to add, sent as a form.

    Args:
        request: The request.

    Raises:
        Problem: 415 or 422; the message says what is wrong.
    """
    if _content_type(request) != FORM:
        raise Problem(415, f"send {FORM} with a field 'image'")
    values, images = await _read_form(request, 1, (), ("label", "attributes"))
    if len(images) != 1:
        raise Problem(422, f"the form has {len(images)} images; one is expected")
    label = values.get("label") or None
    if label is not None and (len(label) > MAX_LABEL or not label.isprintable()):
        raise Problem(422, f"the label must have at most {MAX_LABEL} printable characters")
    return Upload(images[0], label, _parse_attributes(values.get("attributes") or "{}"))


def _parse_attributes(text: str) -> dict[str, Any]:
    try:
        attributes = json.loads(text)
        json.dumps(attributes, allow_nan=False)  # Python reads NaN and Infinity, which JSON does not have
    except (ValueError, RecursionError):
        attributes = None
    if not isinstance(attributes, dict):
        raise Problem(422, 'attributes must be a JSON object, such as {"year": 2026}')
    return attributes


async def _read_form(
    request: Request, max_images: int, lists: tuple[str, ...], fields: tuple[str, ...]
) -> tuple[dict[str, Any], list[bytes]]:
    """Reads a form's fields, and the content of its parts named `image`.

    Args:
        request: The request.
        max_images: How many images it may have.
        lists: Fields that may occur several times.
        fields: Fields that may occur once.

    Raises:
        Problem: 400 if it is not a form, 422 if it has any other part.
    """
    values: dict[str, Any] = {name: [] for name in lists}
    images: list[bytes] = []
    form = await _parse_form(request, max_images)
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "image":
                    raise Problem(422, f"the form has a file {name[:80]!r}; images are sent in the field 'image'")
                images.append(await value.read())
            elif name in lists:
                values[name].append(value)
            elif name in fields and name not in values:
                values[name] = value
            else:
                raise _unexpected_field(name, lists, fields)
    finally:
        await form.close()
    return values, images


async def _parse_form(request: Request, max_images: int) -> FormData:
    """`Request.form` without temporary files: a body has its limit, and images are needed in memory in any case."""
    async with aclosing(request.stream()) as stream:
        parser = MultiPartParser(
            request.headers, stream, max_files=max_images, max_fields=2 * MAX_IDS + 8, max_part_size=FIELD_BYTES
        )
        parser.spool_max_size = 0  # of a SpooledTemporaryFile: no limit
        try:
            return await parser.parse()
        except MultiPartException as error:
            raise Problem(400, error.message) from None


def _unexpected_field(name: str, lists: tuple[str, ...], fields: tuple[str, ...]) -> Problem:
    known = ", ".join(("image", *lists, *fields))
    if name in fields:
        return Problem(422, f"the form has the field {name!r} twice; it takes {known}")
    if name == "image":
        return Problem(422, f"the form has the field 'image' as text, not as a file; it takes {known}")
    return Problem(422, f"the form has the field {name[:80]!r}, which is unknown; it takes {known}")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def path_id(request: Request) -> str:
    """Returns the id at the end of a URL, read from the bytes that were sent: an id need not be UTF-8.

    Raises:
        Problem: 414 if it is too long.
    """
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    named = unquote_to_bytes(raw.partition(b"?")[0]).removeprefix(IMAGES.encode())
    id = named.decode("utf-8", "surrogateescape")
    if len(id) > MAX_ID:
        raise Problem(414, f"the id has {len(id):,} characters; at most {MAX_ID:,} are accepted")
    return id
