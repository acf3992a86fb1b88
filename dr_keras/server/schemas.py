"""The types of the HTTP API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

MAX_K = 1000  # results of a search: more than anyone looks at
MAX_IDS = 64  # positives of a query, and as many negatives
MAX_ID = 1024  # characters
MAX_WHERE = 2000  # characters: anyone may send conditions, and SQLite evaluates them for every image
MAX_CROP = 200  # characters
MAX_GROUP = 200  # characters
MAX_MOVED = 1000  # images
MAX_LABEL = 200  # characters


def _id(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID:
        raise ValueError(f"an id has 1 to {MAX_ID:,} characters")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("an id cannot contain half of a surrogate pair") from None
    return value


# Not pydantic's own string: an id need not be UTF-8, and a lone surrogate stands for each byte that is not.
Id = Annotated[
    str, PlainValidator(_id), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID}, mode="validation")
]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class SearchRequest(BaseModel):
    """A search."""

    model_config = ConfigDict(extra="forbid")

    positives: list[Id] = Field(
        default=[], max_length=MAX_IDS, description="Images that the results should be like: ids, or unique base names."
    )
    negatives: list[Id] = Field(
        default=[],
        max_length=MAX_IDS,
        description="Images that the results should be unlike: ids, or unique base names.",
    )
    where: str | None = Field(
        default=None,
        max_length=MAX_WHERE,
        description="Search only images that meet this condition, such as `label = cats`.",
    )
    max_distance: Distance | Literal["auto"] | None = Field(
        default=None,
        description="Leave out results farther than this; `auto`: than the calibrated distance of this query.",
    )
    include_self: bool = Field(default=False, description="Whether a query may find itself.")
    whole: bool = Field(
        default=False, description="Search by whole images alone, if the index also keeps parts of them."
    )
    distinct: bool = Field(default=False, description="Fold copies of a result into it.")
    diverse: Weight | None = Field(
        default=None,
        description="The weight of nearness, from 0 to 1, against being unlike the results before (maximal marginal "
        "relevance).",
    )


class Neighbor(BaseModel):
    """An image that a search found."""

    rank: int = Field(description="1 for the nearest.")
    name: str = Field(description="The base name of its file.")
    id: str
    path: str = Field(default="", description="The path of its file on the server; only with serve.py --show-paths.")
    label: str
    class_name: str
    distance: float = Field(description="Euclidean, from 0 to 2.")
    attributes: dict[str, Any]
    copies: list[str] = Field(default=[], description="Ids of copies that were folded into it, with `distinct`.")
    part: list[float] | None = Field(
        default=None,
        description="The part of it that was found: left, top, width and height in shares of it; null for the whole.",
    )


class SearchResponse(BaseModel):
    """The answer to a search: the object that `retrieve.py --json` prints, without the paths of files."""

    query: str
    label: str | None = Field(description="The class that all images of the query share, or null.")
    results: list[Neighbor] = Field(
        description="Nearest first, or with `diverse` best first; empty if no image is near enough."
    )
    queries: list[str]
    negatives: list[str]
    max_distance: float | None
    crop: list[float] | None = Field(
        description="The part of the query that was searched for: left, top, width, height."
    )


class Image(BaseModel):
    """An image of the index."""

    id: str
    name: str
    label: str
    class_name: str
    attributes: dict[str, Any]


class Added(Image):
    """An uploaded image that is in the index now."""

    created: bool = Field(description="False if the index had this image already.")


class Removed(BaseModel):
    """An image that is no longer in the index."""

    id: str
    file_removed: bool = Field(description="Whether its file was removed too: only uploaded files are.")


class Explanation(BaseModel):
    """Why two images are alike: how much each part of them adds to the cosine of their embeddings."""

    query: str = Field(description="The id of the query.")
    neighbor: str = Field(description="The id of the neighbor.")
    resize: str = Field(description="How the network sees an image: stretched, cropped or padded to a square.")
    exact: bool = Field(description="Whether each map and the bias sum to the total.")
    cosine: float
    total: float | None = Field(description="The sum of all parts; null if not exact.")
    bias: float | None = Field(description="What does not come from the images; null if not exact.")
    query_map: list[list[float]] = Field(description="What each part of the query adds, from the top left.")
    neighbor_map: list[list[float]] = Field(description="What each part of the neighbor adds.")
    pairs: list[list[list[list[float]]]] | None = Field(
        description="What each part of the query (row, column) adds with each of the neighbor, in up to 16 x 16 parts; "
        "null if not asked for, or not exact."
    )


class Question(BaseModel):
    """Which of two images is more like the query?"""

    query: Image
    first: Image
    second: Image


class Judgment(BaseModel):
    """The answer to a question."""

    model_config = ConfigDict(extra="forbid")

    query: Id = Field(description="The id of the query.")
    positive: Id = Field(description="The id of the image that is more like it.")
    negative: Id = Field(description="The id of the other image.")


class Judged(BaseModel):
    """An answer has been kept."""

    judgments: int = Field(description="How many the file has now.")


class Group(BaseModel):
    """Images that are alike, found without labels."""

    name: str
    count: int
    center: Image = Field(description="The image in the middle of the group.")


class Renaming(BaseModel):
    """A group is to be renamed."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=MAX_GROUP)
    to: str = Field(min_length=1, max_length=MAX_GROUP, description="If there is a group of this name, it is joined.")


class Moving(BaseModel):
    """Images are to be moved to a group."""

    model_config = ConfigDict(extra="forbid")

    ids: list[Id] = Field(min_length=1, max_length=MAX_MOVED)
    group: Annotated[str, Field(min_length=1, max_length=MAX_GROUP)] | None = Field(
        description="Its name; it may be new. Null: out of any group."
    )


class Moved(BaseModel):
    """Images are in another group now."""

    images: int = Field(description="How many.")


class Class(BaseModel):
    """A class of images."""

    label: str
    name: str
    count: int


class Camera(BaseModel):
    """A camera model."""

    model: str
    count: int


class Photos(BaseModel):
    """What conditions can ask of the photos of the index: `taken`, `camera.model` and `near(...)`."""

    first: str | None = Field(description="When the first was taken, as 2026-01-31T12:00:00; null if unknown.")
    last: str | None = Field(description="When the last was taken.")
    cameras: list[Camera] = Field(description="With what they were taken, the most used first.")
    placed: int = Field(description="How many say where they were taken.")


class Place(BaseModel):
    """Where a query lies on the map."""

    key: str = Field(description="The map that the numbers refer to.")
    x: float
    y: float
    neighbors: list[int] = Field(description="Numbers of the points of its neighbors.")
    queries: list[int] = Field(description="Numbers of the points of its own images.")


class Engine(BaseModel):
    """What searches the vectors."""

    name: str
    chosen: str
    exact: bool
    rows: int
    recall: float


class Stats(BaseModel):
    """What `index.py stats` reports, and more."""

    run: str
    searched: int = Field(description="How many images a search may find.")
    images: int
    classes: int
    splits: dict[str, int]
    skipped: int
    dim: int
    parts: int = Field(description="How many parts of each image the index keeps.")
    engine: Engine
    rows: int
    gaps: int
    bytes: int
    version: int
    calibrated: float | None = Field(
        description="The greatest calibrated distance, or null; see `max_distance` of a search."
    )
    writable: bool


class Error(BaseModel):
    """Why a request was refused."""

    detail: str


class Health(BaseModel):
    """The server is healthy."""

    status: Literal["ok"]
