"""One index as a collection of a Milvus server: its schema, and how rows are read and written.

    row         INT64, the primary key: 63 bits of the SHA-256 of an image's id, so that writers who do not know of
                each other give an image the same row, and adding it twice leaves one
    id          `escaped`, as all text is
    name, label, split, hash, size, mtime_ns, crc
                as in the database of an index in a folder
    searched    whether a search may return it
    added       grows from image to image; equal distances are ranked by it
    attributes  JSON as text, as it was given
    conditions  JSON for conditions (`dr_keras.index.milvus.conditions`)
    vector      (D,) float32

The partition `meta` of the same collection holds everything else, one row for each key, with a negative number: what
the index says of itself, its classes, the files that could not be read, the attributes that images have, and small
files. The name of an index is an alias of its collection, so a migration switches all of it in one step.

Milvus answers from what it has read of its log so far, unless it is told to wait for all of it (`Strong`), which takes
about 200 ms. Only the first answer after opening an index, and after a change by this process, is waited for. So an
index sees all that this process has written, and what others had written before it was opened; later changes by others
it sees a fraction of a second after they were made.
"""

import base64
import hashlib
import json
from collections.abc import Collection as Several
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dr_keras.errors import InputError, RunError
from dr_keras.index.changes import HELD_OUT
from dr_keras.index.database import as_text
from dr_keras.index.milvus.conditions import MISSING, condition_fields
from dr_keras.index.milvus.lookups import attribute_names
from dr_keras.index.milvus.schema import (
    ABOUT_ITSELF,
    IMAGES,
    META,
    TEXT_BYTES,
    VERSION,
    exists,
    keep,
    key_row,
    next_numbers,
)
from dr_keras.index.milvus.server import SECONDS, WRITE_SECONDS, Server
from dr_keras.index.milvus.valid_text import escaped, unescaped
from dr_keras.index.records import Entry, checksum

FORMAT = 1
MOST = 16384  # rows of one answer of a server
QUERIES_IN_TIME = 16  # that a server may take as long for as for the answer itself
ASKED_ROWS = 2048  # primary keys in one question
ANSWER_BYTES = 1 << 23  # of the vectors in one answer
WRITTEN_BYTES = 1 << 23  # of the vectors in one change
FILE_CHARACTERS = 60000  # of a file in one row, in base 64
LAST_ROW = 2**63 - 1
KNOWN = ("id", "label", "split", "hash", "size", "mtime_ns", "attributes")  # the fields of an entry
KEPT = ("id", "attributes")  # of what is kept by key
CLASS, ATTRIBUTE, HELD = "class", "attribute", "held"  # kinds of keys


def row_of(id: str) -> int:
    """The row of an image."""
    return int.from_bytes(hashlib.sha256(as_text(id)).digest()[:8]) >> 1


def list_of(rows: Iterable[int]) -> str:
    """Rows as an expression's list."""
    return "[" + ", ".join(str(int(row)) for row in rows) + "]"


class Collection:
    """The collection of an index.

    Args:
        server: Its server.

    Attributes:
        server: Its server.
        meta: What the index says of itself, as of the last `refresh`; `version` differs after each change.

    Raises:
        RunError: There is no index of that name, or it cannot be read.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.meta: dict[str, Any] = {}
        self._cache: dict[str, tuple[int, dict[str, Any]]] = {}  # what is kept by key, with the version it is of
        self._named: set[str] = set()  # attributes that this object has kept the names of
        self._held = False  # whether it has told that there are images that a search must not return
        self._settled = -1  # the changes by this process that the server's answers include
        if not exists(server):
            raise RunError(f"there is no index {server.address}")
        self.refresh()

    @property
    def name(self) -> str:
        """The name of the index, an alias of the collection."""
        return self.server.address.collection

    @property
    def place(self) -> str:
        """The address of the index."""
        return str(self.server.address)

    # Reading

    def _read(self, method: str, *arguments: Any, seconds: float = SECONDS, **named: Any) -> Any:
        """Asks the server, which answers at once if its answers include what has to be in them.

        A busy server takes long to work through what this process has written, so what follows that may take as long.
        """
        now = self.server.writes
        level = "Eventually" if self._settled == now else "Strong"
        named.setdefault("timeout", WRITE_SECONDS if level == "Strong" and now else seconds)
        answer = self.server.call(method, self.name, *arguments, consistency_level=level, **named)
        self._settled = now
        return answer

    def unsettle(self) -> None:
        """Makes the next answer include everything that any process has written so far."""
        self._settled = -1

    def query(
        self, condition: str, fields: Sequence[str], *, partition: str = IMAGES, limit: int = 0, **named: Any
    ) -> list[dict[str, Any]]:
        """The given fields of the rows that meet a condition, at most `MOST`."""
        if limit:
            named["limit"] = limit
        return list(self._read("query", condition, list(fields), partition_names=[partition], **named))

    def count(self, condition: str = "", *, partition: str = IMAGES, **named: Any) -> int:
        """How many rows meet a condition."""
        answer = self._read("query", condition, ["count(*)"], partition_names=[partition], **named)
        return int(answer[0]["count(*)"])

    def rows(self, rows: Iterable[int], fields: Sequence[str], *, partition: str = IMAGES) -> dict[int, dict[str, Any]]:
        """The given fields of some rows, by row; rows that are not there are left out."""
        wanted, found = list(dict.fromkeys(int(row) for row in rows)), {}
        size = self._page(fields)
        for start in range(0, len(wanted), size):
            part = wanted[start : start + size]
            for one in self.query(f"row in {list_of(part)}", ["row", *fields], partition=partition):
                found[int(one["row"])] = one
        return found

    def scan(self, fields: Sequence[str], condition: str = "") -> Iterator[list[dict[str, Any]]]:
        """All images that meet a condition, in parts and in no order.

        Rows are hashes and so spread evenly: each part is a range of them, which is divided if it holds too many.
        """
        most = self._page(fields)
        parts = max(1, -(-2 * self.count(condition) // most))
        ends = [LAST_ROW * number // parts for number in range(1, parts)]
        ranges = list(zip([0, *ends], [*ends, LAST_ROW + 1], strict=True))[::-1]
        more = f" and ({condition})" if condition else ""
        while ranges:
            first, end = ranges.pop()
            below = f" and row < {end}" if end <= LAST_ROW else ""
            found = self.query(f"row >= {first}{below}{more}", ["row", *fields], limit=most)
            if len(found) >= most and end - first > 1:
                middle = (first + end) // 2
                ranges += [(middle, end), (first, middle)]
            elif found:
                yield found

    def _page(self, fields: Sequence[str]) -> int:
        """How many rows to ask for at a time."""
        return max(1, min(ASKED_ROWS, ANSWER_BYTES // (4 * self.meta["dim"]))) if "vector" in fields else ASKED_ROWS

    def search(
        self, queries: np.ndarray, limit: int, condition: str, parameters: Mapping[str, Any], **named: Any
    ) -> list[Any]:
        """The nearest images of vectors (Q, D): for each, hits with `row`, `added` and `vector`."""
        return list(
            self._read(
                "search",
                data=list(queries),
                filter=condition,
                limit=limit,
                output_fields=["row", "added", "vector"],
                search_params={"metric_type": "L2", "params": dict(parameters)},
                partition_names=[IMAGES],
                anns_field="vector",
                seconds=SECONDS * (1 + len(queries) / QUERIES_IN_TIME),
                **named,
            )
        )

    # What is kept by key

    def refresh(self) -> bool:
        """Reads what the index says of itself; whether the index has changed."""
        found = self.rows([key_row(ABOUT_ITSELF), key_row(VERSION)], KEPT, partition=META)
        kept = {unescaped(one["id"]): json.loads(one["attributes"]) for one in found.values()}
        if ABOUT_ITSELF not in kept:
            raise RunError(f"there is no index {self.place}: the collection of that name is of another kind")
        if kept[ABOUT_ITSELF].get("format") != FORMAT:
            raise RunError(f"{self.place} has format {kept['meta'].get('format')}, but this version reads {FORMAT}")
        # Counting tells of a writer that was killed before it told of its change.
        state = f"{kept.get(VERSION)} {self.count()}".encode()
        meta = {**kept[ABOUT_ITSELF], "version": int.from_bytes(hashlib.sha256(state).digest()[:6])}
        changed = meta != self.meta
        self.meta = meta
        return changed

    def values(self, kind: str) -> dict[str, Any]:
        """What is kept under keys that begin with `kind` and a slash, by the rest of the key."""
        found = self._kept(f'id >= "{kind}/" and id < "{kind}0" and ')  # 0 follows the slash
        return {key[len(kind) + 1 :]: value for key, value in found.items()}

    def others(self) -> dict[str, Any]:
        """Everything that is kept by key, except for what the index says of itself."""
        return {key: value for key, value in self._kept("").items() if key not in (ABOUT_ITSELF, VERSION)}

    def _kept(self, condition: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        ranges = [(-LAST_ROW - 1, 0)]
        while ranges:
            first, end = ranges.pop()
            least = f" and row >= {first}" if first > -LAST_ROW else ""
            some = self.query(f"{condition}row < {end}{least}", KEPT, partition=META, limit=MOST)
            if len(some) < MOST:
                found |= {unescaped(one["id"]): json.loads(one["attributes"]) for one in some}
            else:
                middle = (first + end) // 2
                ranges += [(middle, end), (first, middle)]
        return found

    def _cached(self, kind: str) -> dict[str, Any]:
        """`values` of the present version; do not change it."""
        version = self.meta["version"]
        if self._cache.get(kind, (None,))[0] != version:
            self._cache[kind] = version, self.values(kind)
        return self._cache[kind][1]

    def classes(self) -> dict[str, str]:
        """The display name of each label."""
        return self._cached(CLASS)

    def attributes(self) -> Several[str]:
        """The names of the attributes that images have, or had."""
        return self._cached(ATTRIBUTE).keys()

    def held_out(self) -> bool:
        """Whether there may be images that a search must not return."""
        return bool(self._cached(HELD))

    def keep(self, values: Mapping[str, Any]) -> None:
        """Keeps plain values by key."""
        keep(self.server, self.name, self.meta["dim"], values)

    def forget(self, keys: Several[str]) -> None:
        """Forgets what is kept under keys."""
        self._delete([key_row(key) for key in keys], META)

    def change(self, **values: Any) -> None:
        """Changes what the index says of itself."""
        meta = {key: value for key, value in self.meta.items() if key != "version"} | values
        self.keep({ABOUT_ITSELF: meta})
        self.changed()

    def changed(self) -> None:
        """Tells everybody that the index has changed."""
        self.keep({VERSION: next_numbers(1)[0]})
        self.refresh()

    def read_file(self, name: str) -> bytes | None:
        """The content of a small file that is kept; None if there is none."""
        found = self.values(f"file/{name}")
        if "0" not in found:
            return None
        data = "".join(found[str(number)]["data"] for number in range(found["0"]["parts"]))
        return base64.b64decode(data)

    def write_file(self, name: str, data: bytes) -> None:
        """Keeps a small file."""
        text = base64.b64encode(data).decode()
        parts = [text[start : start + FILE_CHARACTERS] for start in range(0, len(text), FILE_CHARACTERS)] or [""]
        for number in reversed(range(len(parts))):  # the first one tells how many there are
            self.keep({f"file/{name}/{number}": {"data": parts[number], "parts": len(parts)}})
        self.changed()

    # Writing images

    def name_classes(self, entries: Iterable[Entry], class_names: Mapping[str, str]) -> None:
        """Keeps the names of labels that the index lacks; by default a label is its own display name."""
        known = self.classes()
        labels = dict.fromkeys([*class_names, *(entry.label for entry in entries)])
        new = {f"{CLASS}/{label}": class_names.get(label, label) for label in labels if label not in known}
        if new:
            self.keep(new)

    def put(self, entries: Sequence[Entry], vectors: np.ndarray, added: Sequence[int]) -> None:
        """Writes images (n, D), in the place of those with the same id."""
        rows = [self._fields(*one) for one in zip(entries, vectors, added, strict=True)]
        names = {name for entry in entries for name in attribute_names(entry.attributes)} - self._named
        held = {} if self._held or all(row["searched"] for row in rows) else {f"{HELD}/out": True}
        self.keep({f"{ATTRIBUTE}/{name}": True for name in names} | held)  # before a search can need them
        self._named |= names
        self._held |= bool(held)
        size = max(1, WRITTEN_BYTES // (4 * self.meta["dim"]))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            self.server.call("upsert", self.name, part, partition_name=IMAGES, timeout=WRITE_SECONDS)
        self.server.wrote()

    def _fields(self, entry: Entry, vector: np.ndarray, added: int) -> dict[str, Any]:
        attributes = entry.values()[-1]
        columns = {"id": entry.id, "name": entry.name, "label": entry.label, "split": entry.split}
        texts = {key: escaped(value) for key, value in columns.items()} | {"attributes": attributes}
        conditions = condition_fields(entry.attributes, columns)
        for key, value in [*texts.items(), ("attributes", json.dumps(conditions))]:
            if len(value.encode()) > TEXT_BYTES:
                what = f"{key} of {entry.id[:100]!r}" if key != "id" else "a name"
                raise InputError(f"{what} has more than {TEXT_BYTES:,} bytes, which Milvus cannot hold")
        return {
            "row": row_of(entry.id),
            **texts,
            "searched": entry.split != HELD_OUT,
            "hash": "" if entry.hash is None else entry.hash.hex(),
            "size": MISSING if entry.size is None else entry.size,
            "mtime_ns": MISSING if entry.mtime_ns is None else entry.mtime_ns,
            "added": added,
            "crc": checksum(entry.id, vector),
            "conditions": conditions,
            "vector": vector,
        }

    def delete(self, rows: Several[int]) -> None:
        """Removes images."""
        self._delete(rows, IMAGES)

    def _delete(self, rows: Several[int], partition: str) -> None:
        wanted = list(rows)
        for start in range(0, len(wanted), ASKED_ROWS):
            condition = f"row in {list_of(wanted[start : start + ASKED_ROWS])}"
            self.server.call("delete", self.name, filter=condition, partition_name=partition, timeout=WRITE_SECONDS)
        if wanted:
            self.server.wrote()
