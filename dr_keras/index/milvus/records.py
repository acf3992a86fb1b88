"""What an index in Milvus knows about its images besides their vectors."""

import difflib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dr_keras.data.splits import SPLIT_NAMES, VALIDATION
from dr_keras.errors import RunError, Unavailable
from dr_keras.filenames import forms, same_form
from dr_keras.index.milvus.collection import KNOWN, MOST, Collection, row_of
from dr_keras.index.milvus.conditions import ALWAYS, MISSING, one_of, starts
from dr_keras.index.milvus.valid_text import unescaped
from dr_keras.index.records import MAX_CAMERAS, MAX_SUGGESTIONS, Entry, Photos, Records, Stamp

HELD_OUT = SPLIT_NAMES[VALIDATION]


def entry_of(row: Mapping[str, Any]) -> Entry:
    """The entry of a row with the fields `KNOWN`."""
    attributes = row["attributes"]
    return Entry(
        unescaped(row["id"]),
        unescaped(row["label"]),
        unescaped(row["split"]),
        *stamp_of(row),
        {} if attributes == "{}" else json.loads(attributes),
    )


def stamp_of(row: Mapping[str, Any]) -> Stamp:
    """The stamp of a row with its three fields."""
    size, time = (None if row[name] == MISSING else int(row[name]) for name in ("size", "mtime_ns"))
    return bytes.fromhex(row["hash"]) if row["hash"] else None, size, time


class MilvusRecords(Records):
    """What an index in Milvus knows about its images.

    Args:
        collection: The index's collection.
        guard: The index's lock.
    """

    def __init__(self, collection: Collection, guard: "threading.RLock") -> None:
        super().__init__(guard)
        self._collection = collection
        self._listed: tuple[int, np.ndarray, list[tuple[int, str, str, str]]] | None = None

    @property
    def _place(self) -> str:
        return self._collection.place

    @property
    def _root(self) -> str:
        return self._collection.meta["root"]

    def entries(self, rows: Sequence[int] | np.ndarray) -> list[Entry]:
        wanted = [int(row) for row in rows]
        with self._guard:
            found = self._collection.rows(wanted, KNOWN)
        entries = {row: entry_of(one) for row, one in found.items()}
        for entry in entries.values():
            for name in self.withheld & entry.attributes.keys():
                del entry.attributes[name]  # type: ignore[attr-defined]
        try:
            return [entries[row] for row in wanted]
        except KeyError:
            raise Unavailable(f"an image of {self._place} was removed meanwhile; try again") from None

    def _list(self) -> tuple[np.ndarray, list[tuple[int, str, str, str]]]:
        """The number of each image in the order of adding, (N,) int64, and the listing in that order."""
        with self._guard:
            version = self._collection.meta["version"]
            if self._listed is None or self._listed[0] != version:
                found = [one for part in self._collection.scan(["id", "label", "split", "added"]) for one in part]
                found.sort(key=lambda one: (one["added"], one["row"]))
                listing = [
                    (int(one["row"]), unescaped(one["id"]), unescaped(one["label"]), unescaped(one["split"]))
                    for one in found
                ]
                added = np.fromiter((one["added"] for one in found), np.int64, len(found))
                self._listed = version, added, listing
            return self._listed[1:]

    def listing(self) -> list[tuple[int, str, str, str]]:
        return self._list()[1]

    def searched(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that a search may return, and their numbers in the order of adding, (N,) int64 each."""
        added, listing = self._list()
        kept = np.fromiter((split != HELD_OUT for *_, split in listing), bool, len(listing))
        rows = np.fromiter((row for row, *_ in listing), np.int64, len(listing))
        return rows[kept], added[kept]

    def count(self) -> int:
        with self._guard:
            return self._collection.count()

    def split_counts(self) -> dict[str, int]:
        return dict(Counter(split for *_, split in self.listing()))

    def label_count(self) -> int:
        return len({label for _, _, label, _ in self.listing()})

    def class_names(self) -> dict[str, str]:
        with self._guard:
            return dict(sorted(self._collection.classes().items()))

    def class_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(label for _, _, label, split in self.listing() if split != HELD_OUT).items()))

    def photos(self) -> Photos:
        times: list[str] = []
        models: Counter[str] = Counter()
        placed = 0
        with self._guard:
            named = [f'(exists conditions["{name}"])' for name in ("t:taken", "t:camera.model", "n:latitude")]
            for part in self._collection.scan(["conditions"], f"searched == true and ({' or '.join(named)})"):
                for row in part:
                    about = row["conditions"]
                    if re.match("[0-9]{4}-", taken := about.get("t:taken", "")) and "taken" not in self.withheld:
                        times.append(taken)
                    if "t:camera.model" in about and "camera" not in self.withheld:
                        models[unescaped(about["t:camera.model"])] += 1
                    both = "n:latitude" in about and "n:longitude" in about
                    placed += both and not self.withheld & {"latitude", "longitude"}
        most = sorted(((name, count) for name, count in models.items() if name), key=lambda one: (-one[1], one[0]))
        return Photos(min(times, default=None), max(times, default=None), dict(most[:MAX_CAMERAS]), placed)

    def own_classes(self) -> set[str]:
        with self._guard:
            found = self._collection.scan(["label"], 'split != ""')
            return {unescaped(one["label"]) for part in found for one in part}

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        rows = {id: row_of(id) for id in ids}
        with self._guard:
            found = self._collection.rows(rows.values(), ["id"])
        there = {id: row for id, row in rows.items() if row in found}
        for id, row in there.items():
            if unescaped(found[row]["id"]) != id:
                raise RunError(f"{self._place} holds an image whose row is that of {id!r}, which cannot be added")
        return there

    def _ids_like(self, pattern: str) -> list[str]:
        start = re.split(r"[*?]", pattern)[0]
        parts = re.split(r"([*?])", pattern)
        whole = re.compile("".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in parts), re.DOTALL)
        with self._guard:
            inside = starts("id", start) if start else ""
            found = [unescaped(one["id"]) for part in self._collection.scan(["id"], inside) for one in part]
        return [id for id in found if whole.fullmatch(id)]

    def _called(self, inside: str) -> list[tuple[int, str]]:
        base = PurePosixPath(inside).name
        fields = ["id", "added"]
        with self._guard:
            found = self._found(one_of("name", forms(base)), fields)
            exact = [(row, id) for row, id in found if id.endswith("/" + inside) or id == inside]
            if exact or inside.isascii():
                return exact
            if not found:  # in neither normalization form: compare with every name that is not plain ASCII
                found = [(row, id) for row, id in self._found("", fields) if not PurePosixPath(id).name.isascii()]
        shown = same_form(inside)
        return [(row, id) for row, id in found if same_form(id) == shown or same_form(id).endswith("/" + shown)]

    def _found(self, condition: str, fields: Sequence[str]) -> list[tuple[int, str]]:
        """Row and id of the images that meet a condition, in the order of adding."""
        found = [one for part in self._collection.scan(fields, condition) for one in part]
        found.sort(key=lambda one: (one["added"], one["row"]))
        return [(int(one["row"]), unescaped(one["id"])) for one in found]

    def _similar_names(self, wanted: str) -> list[str]:
        for length in range(len(wanted), -1, -1):  # difflib is slow, so it sees only names with the same prefix
            inside = starts("name", wanted[:length]) if length else ALWAYS
            with self._guard:
                found = self._collection.query(inside, ["name"], limit=MOST)
            names = sorted({unescaped(one["name"]) for one in found})
            if len(names) >= 4 * MAX_SUGGESTIONS or not length:
                return difflib.get_close_matches(wanted, names, n=MAX_SUGGESTIONS, cutoff=0.5)
        return []
