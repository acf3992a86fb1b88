"""The collection of an index in Milvus: its fields, how it is made and named, and what it keeps by key."""

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from dr_keras.errors import RunError
from dr_keras.index.database import as_text
from dr_keras.index.milvus.conditions import MISSING
from dr_keras.index.milvus.server import WRITE_SECONDS, Server
from dr_keras.index.milvus.valid_text import escaped

TEXT_BYTES = 65535  # of a text, at most
IMAGES, META = "_default", "meta"  # partitions: of images, and of everything else
ABOUT_ITSELF, VERSION = "meta", "version"  # keys: what the index says of itself, and a number that changes with it
ABOUT = "an index of dr_keras, with the alias "  # begins the description of a collection
LOAD_SECONDS = 600.0  # until a collection that was made, or given another engine, can be searched

_added = 0  # the largest number that this process has given
_adding = threading.Lock()


def key_row(key: str) -> int:
    """The row of what is kept under a key."""
    return -1 - (int.from_bytes(hashlib.sha256(as_text(key)).digest()[:8]) >> 1)


def next_numbers(count: int) -> range:
    """Numbers for images that are added now, greater than those before."""
    global _added
    with _adding:
        first = max(_added + 1, time.time_ns())
        _added = first + count - 1
        return range(first, first + count)


def make_collection(server: Server, dim: int) -> str:
    """Makes an empty collection for vectors of length `dim`, without an alias; returns its name."""
    from pymilvus import DataType, MilvusClient

    name = f"{server.address.collection}_{secrets.token_hex(6)}"
    schema = MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=False, description=ABOUT + server.address.collection
    )
    schema.add_field("row", DataType.INT64, is_primary=True)
    for field in ("id", "name", "label", "split", "hash", "attributes"):
        schema.add_field(field, DataType.VARCHAR, max_length=TEXT_BYTES)
    for field in ("size", "mtime_ns", "added", "crc"):
        schema.add_field(field, DataType.INT64)
    schema.add_field("searched", DataType.BOOL)
    schema.add_field("conditions", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    server.call("create_collection", name, schema=schema, num_shards=1, timeout=WRITE_SECONDS)
    server.call("create_partition", name, META, timeout=WRITE_SECONDS)
    index_vectors(server, name, "FLAT", {})
    return name


def index_vectors(server: Server, name: str, kind: str, parameters: Mapping[str, Any]) -> None:
    """Gives a collection that is not loaded an index of its vectors, and loads it."""
    from pymilvus import MilvusClient

    index = MilvusClient.prepare_index_params()
    index.add_index("vector", index_type=kind, metric_type="L2", params=dict(parameters), index_name="vector")
    server.call("create_index", name, index, timeout=LOAD_SECONDS)
    server.call("load_collection", name, timeout=LOAD_SECONDS)


def exists(server: Server) -> bool:
    """Whether the server has something of the name of the index."""
    return bool(server.call("has_collection", server.address.collection))


def collection_of(server: Server, alias: str) -> str | None:
    """The collection that an alias stands for; None if there is no such alias.

    Raises:
        RunError: It is not an alias but a collection.
    """
    if not server.call("has_collection", alias):
        return None
    name = server.call("describe_collection", alias)["collection_name"]
    if name == alias:
        raise RunError(f"{server.address}: {alias} is a collection of another kind")
    return name


def drop(server: Server, alias: str) -> None:
    """Removes an index by its alias, if there is one."""
    name = collection_of(server, alias)
    if name is not None:
        server.call("drop_alias", alias, timeout=WRITE_SECONDS)
        server.call("drop_collection", name, timeout=WRITE_SECONDS)


def drop_strays(server: Server, mine: str) -> None:
    """Removes the collections of an index that have no alias, which a killed process has left behind."""
    for name in server.call("list_collections"):
        about = server.call("describe_collection", name)
        if about["description"] == ABOUT + mine and not about["aliases"]:
            server.call("drop_collection", name, timeout=WRITE_SECONDS)


def keep(server: Server, name: str, dim: int, values: Mapping[str, Any]) -> None:
    """Keeps plain values by key in a collection for vectors of length `dim`."""
    rows = [
        {
            "row": key_row(key),
            "id": escaped(key),
            **dict.fromkeys(("name", "label", "split", "hash"), ""),
            **dict.fromkeys(("size", "mtime_ns"), MISSING),
            **dict.fromkeys(("added", "crc"), 0),
            "searched": False,
            "attributes": json.dumps(value),
            "conditions": {},
            "vector": np.zeros(dim, np.float32),
        }
        for key, value in values.items()
    ]
    if rows:
        server.call("upsert", name, rows, partition_name=META, timeout=WRITE_SECONDS)
        server.wrote()
