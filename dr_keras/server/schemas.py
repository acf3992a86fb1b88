"""The types of the HTTP API."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema

from dr_keras.server.errors import Problem

MAX_K = 1000  # neighbours of a search: more than a person looks at
MAX_IDS = 64  # images of a query, positives and negatives each
MAX_ID = 1024  # characters
MAX_WHERE = 2000  # characters: conditions come from strangers here, and SQLite tries each on every image
MAX_LABEL = 200  # characters


def _id(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID:
        raise ValueError(f"an id has 1 to {MAX_ID:,} characters")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("an id has no half of a character") from None
    return value


# Not pydantic's own string: ids need not be UTF-8, and a lone surrogate stands for a byte of theirs that is not.
Id = Annotated[
    str, PlainValidator(_id), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID}, mode="validation")
]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SearchRequest(BaseModel):
    """What is searched for."""

    model_config = ConfigDict(extra="forbid")

    positives: list[Id] = Field(
        default=[], max_length=MAX_IDS, description="Images to be like: ids, or base names where they are unique."
    )
    negatives: list[Id] = Field(default=[], max_length=MAX_IDS, description="Images to be unlike, named likewise.")
    where: str | None = Field(
        default=None, max_length=MAX_WHERE, description="Search only images of which this is true: `label = cats`."
    )
    max_distance: Distance | Literal["auto"] | None = Field(
        default=None, description="Leave out what is farther; `auto` is the calibrated distance."
    )
    include_self: bool = Field(default=False, description="Whether images of the index may find themselves.")


class Neighbour(BaseModel):
    """One image that was found."""

    rank: int = Field(description="From 1.")
    name: str = Field(description="The base name of its file.")
    id: str
    path: str = Field(default="", description="Its file on the server; only with serve.py --show-paths.")
    label: str
    class_name: str
    distance: float = Field(description="Euclidean, from 0 to 2.")
    attributes: dict[str, Any]


class SearchResponse(BaseModel):
    """The object that `retrieve.py --json` prints, without the paths of files."""

    query: str
    label: str | None = Field(description="The class that all of the query's images share, where it is known.")
    results: list[Neighbour] = Field(description="Nearest first; none where no image is near enough.")
    queries: list[str]
    negatives: list[str]
    max_distance: float | None


class Image(BaseModel):
    """An image of the index."""

    id: str
    name: str
    label: str
    class_name: str
    attributes: dict[str, Any]


class Added(Image):
    """An image that was sent and is in the index now."""

    created: bool = Field(description="False where the same image was there already.")


class Removed(BaseModel):
    """An image that is no longer in the index."""

    id: str
    file_removed: bool = Field(description="Files are removed below the uploads folder alone.")


class Class(BaseModel):
    """A class of images."""

    label: str
    name: str
    count: int


class Place(BaseModel):
    """Where a query lies in the map."""

    key: str = Field(description="Of the map that the numbers are of.")
    x: float
    y: float
    neighbours: list[int]
    queries: list[int]


class Engine(BaseModel):
    name: str
    chosen: str
    exact: bool
    rows: int
    recall: float


class Stats(BaseModel):
    """What `index.py stats` says, and more."""

    run: str
    searched: int = Field(description="How many images a search may find.")
    images: int
    classes: int
    splits: dict[str, int]
    skipped: int
    dim: int
    engine: Engine
    rows: int
    gaps: int
    bytes: int
    version: int
    calibrated: float | None = Field(description="The distance that `evaluate.py --calibrate` found.")
    writable: bool


class Error(BaseModel):
    """Why a request was refused."""

    detail: str


class Health(BaseModel):
    status: Literal["ok"]


def parse_search(data: bytes) -> SearchRequest:
    """A request of JSON.

    Raises:
        Problem: 400 where it is no JSON, 422 where it says something else.
    """
    try:
        value = json.loads(data)  # not pydantic's parser: ids need not be UTF-8, and come as lone surrogates
    except RecursionError:
        raise Problem(400, "the JSON nests too deeply") from None
    except ValueError as error:
        raise Problem(400, f"the body is no JSON: {error}") from None
    return check_search(value)


def check_search(value: Any) -> SearchRequest:
    """Plain values as a request.

    Raises:
        Problem: 422; the message names the field.
    """
    try:
        return SearchRequest.model_validate(value)
    except ValidationError as error:
        raise Problem(422, sentence(error.errors(include_url=False))) from None


def sentence(errors: Any) -> str:
    """One line of what pydantic says is wrong first."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path")) or "the body"
    received = repr(first.get("input"))
    return f"{place}: {first['msg']}; received {received if len(received) <= 80 else received[:80] + '...'}"
