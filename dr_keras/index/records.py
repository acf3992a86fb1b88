"""What an index knows about its images besides their vectors: ids, labels, file stamps; kept in its database."""

import difflib
import json
import threading
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from dr_keras.data.image_ids import image_id
from dr_keras.errors import InputError
from dr_keras.filenames import forms, same_form, told_apart
from dr_keras.index.database import as_text, one_line_errors
from dr_keras.index.store import Store

if TYPE_CHECKING:
    import sqlite3

NO_CLASS = "-"  # the label of an image that is not in a class folder
MAX_SUGGESTIONS = 5
MAX_COMPARED_NAMES = 5000  # by difflib, which is slow
MAX_CAMERAS = 100
MAX_PARAMETERS = 500  # of one statement; SQLite allows 32,766, but this keeps statements short

# Of each camera model, with how many photos: the first and the last of those with a time, and how many have a place.
_PHOTOS = """
SELECT model, count(*) AS photos, min(time), max(time), count(latitude + longitude)
FROM (
    SELECT
        CASE WHEN json_type(attributes, '$.camera.model') = 'text' THEN attributes ->> '$.camera.model' END AS model,
        CASE WHEN attributes ->> '$.taken' GLOB '[0-9][0-9][0-9][0-9]-*' THEN attributes ->> '$.taken' END AS time,
        CASE WHEN json_type(attributes, '$.latitude') IN ('integer', 'real') THEN attributes ->> '$.latitude' END
            AS latitude,
        CASE WHEN json_type(attributes, '$.longitude') IN ('integer', 'real') THEN attributes ->> '$.longitude' END
            AS longitude
    FROM images
    WHERE row NOT IN hidden
)
GROUP BY model
ORDER BY photos DESC, model
"""

Stamp = tuple[bytes | None, int | None, int | None]  # SHA-256, size in bytes and mtime_ns of a file; None if unknown


@dataclass(frozen=True)
class Photos:
    """What conditions can ask of an index's photos.

    Attributes:
        first, last: The times of the first and the last, as 2026-01-31T12:00:00; None if none has one.
        cameras: How many were taken with each model, the most used first.
        placed: How many say where they were taken.
    """

    first: str | None
    last: str | None
    cameras: Mapping[str, int]
    placed: int


@dataclass(frozen=True)
class Entry:
    """What an index knows about an image besides its vector.

    Attributes:
        id: The image's path relative to the index's root, with forward slashes, or its absolute path if it is outside
            the root; unique within an index.
        label: The name of its class folder.
        split: 'train', 'monitor' or 'validation' for images of a run's own data. Validation images can be looked up by
            name; a search does not return them.
        hash: SHA-256 of the file's content, 32 bytes.
        size: The file's size in bytes.
        mtime_ns: The time of the file's last change, in nanoseconds since 1970.
        attributes: Any values that JSON can hold, by name.

    Example:
        >>> Entry("cats/tom.jpg", label="cats", attributes={"year": 2021}).name
        'tom.jpg'
    """

    id: str
    label: str = NO_CLASS
    split: str = ""
    hash: bytes | None = None
    size: int | None = None
    mtime_ns: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The base name of the file."""
        return self.id.rpartition("/")[2]

    def values(self) -> tuple[Any, ...]:
        """Label, split, hash, size, mtime_ns and attributes, as the database stores them.

        Raises:
            InputError: JSON cannot hold the attributes.
        """
        try:
            attributes = json.dumps(dict(self.attributes), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"JSON cannot hold the attributes of {self.id!r}: {error}") from None
        return (as_text(self.label), self.split, self.hash, self.size, self.mtime_ns, attributes)


class Records:
    """What an index knows about its images, as of its store's current snapshot; available as `Index.records`.

    Args:
        store: The index's files.
        guard: The index's lock, which blocks `refresh` in other threads during a query.
    """

    def __init__(self, store: Store, guard: "threading.RLock") -> None:
        self._store = store
        self._guard = guard
        self.withheld: frozenset[str] = frozenset()  # attributes that entries do not have, see `Index.withhold`
        self._class_names: tuple[int, dict[str, str]] | None = None  # with the index version they were read from

    @contextmanager
    def _reading(self) -> "Iterator[sqlite3.Connection]":
        """The database, for one query."""
        with self._guard, one_line_errors(self._store.folder):
            yield self._store.db

    def entries(self, rows: Sequence[int] | np.ndarray) -> list[Entry]:
        """Returns what is known about the images in the given rows.

        Args:
            rows: (n,) row numbers of images, in any order.

        Returns:
            An entry for each, in the same order.
        """
        wanted = [int(row) for row in rows]
        found: dict[int, Entry] = {}
        with self._reading() as db:
            for part in _parts(sorted(set(wanted))):
                for row, id, label, split, hash, size, mtime_ns, attributes in db.execute(
                    "SELECT row, id, label, split, hash, size, mtime_ns, attributes FROM images "
                    f"WHERE row IN ({', '.join('?' * len(part))})",
                    part,
                ):
                    known = {} if attributes == "{}" else json.loads(attributes)
                    for name in self.withheld & known.keys():
                        del known[name]
                    found[row] = Entry(id, label, split, hash, size, mtime_ns, known)
        return [found[row] for row in wanted]

    def listing(self) -> list[tuple[int, str, str, str]]:
        """Row, id, label and split of every image, held-out ones included, in the order of their rows."""
        with self._reading() as db:
            return db.execute("SELECT row, id, label, split FROM images ORDER BY row").fetchall()

    def count(self) -> int:
        """How many images the index holds, held-out ones included."""
        with self._reading() as db:
            return db.execute("SELECT count(*) FROM images").fetchone()[0]

    def split_counts(self) -> dict[str, int]:
        """How many images each split has, by name; images that were added later have the split ''."""
        with self._reading() as db:
            return dict(db.execute("SELECT split, count(*) FROM images GROUP BY split"))

    def label_count(self) -> int:
        """How many classes the images have, held-out ones included."""
        with self._reading() as db:
            return db.execute("SELECT count(DISTINCT label) FROM images").fetchone()[0]

    def class_names(self) -> dict[str, str]:
        """The display name of each label; the label itself if it has no other."""
        with self._reading() as db:
            version = self._store.meta["version"]
            if self._class_names is None or self._class_names[0] != version:
                self._class_names = version, dict(db.execute("SELECT label, name FROM classes ORDER BY label"))
            return dict(self._class_names[1])

    def class_counts(self) -> dict[str, int]:
        """How many images of each label a search may return, by label."""
        with self._reading() as db:
            counts = "SELECT label, count(*) FROM images WHERE row NOT IN hidden GROUP BY label ORDER BY label"
            return dict(db.execute(counts))

    def photos(self) -> Photos:
        """What conditions can ask of the photos among the images that a search may return."""
        taken, camera, place = (not name & self.withheld for name in ({"taken"}, {"camera"}, {"latitude", "longitude"}))
        with self._reading() as db:
            found = db.execute(_PHOTOS).fetchall()
        times = [time for _, _, *both, _ in found for time in both if time is not None and taken]
        models = [(model, count) for model, count, *_ in found if model and camera][:MAX_CAMERAS]
        placed = sum(count for *_, count in found) if place else 0
        return Photos(min(times, default=None), max(times, default=None), dict(models), placed)

    def own_classes(self) -> set[str]:
        """The labels of the run's own data, as far as the index holds it."""
        with self._reading() as db:
            return {label for (label,) in db.execute("SELECT DISTINCT label FROM images WHERE split != ''")}

    def row(self, id: str) -> int | None:
        """The row of an id, or None if it is not in the index."""
        return self.rows_of([id]).get(id)

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The rows of the ids that are in the index."""
        found: dict[str, int] = {}
        with self._reading() as db:
            for id in ids:
                row = db.execute("SELECT row FROM images WHERE id = CAST(? AS TEXT)", (as_text(id),)).fetchone()
                if row is not None:
                    found[id] = row[0]
        return found

    def known_rows(self, ids: Collection[str]) -> dict[str, int]:
        """The rows of ids, all of which must be in the index.

        Raises:
            InputError: An id is not in the index, or is given twice.
        """
        check_unique(ids)
        rows = self.rows_of(ids)
        if len(rows) < len(ids):
            unknown = next(id for id in ids if id not in rows)
            raise InputError(f"{unknown!r} is not in the index {self._store.folder}")
        return rows

    def find(self, name: str, *, hint: str = "") -> int:
        """Finds the row of an image by its id, its path, or its base name if that is unique.

        Args:
            name: The name, in either Unicode normalization form.
            hint: What the error adds when no image has that name, such as ", and there is no such file".

        Raises:
            InputError: No image has that name (similar names are suggested), or several do (they are listed).
        """
        wanted = PurePosixPath(name).as_posix()
        inside = image_id(wanted, self._store.meta["root"])
        with self._guard:
            for id in (wanted, inside):
                row = self.row(id)
                if row is not None:
                    return row
            found = self._called(inside)
            if len(found) == 1:
                return found[0][0]
            if not found:
                near = ", ".join(told_apart(self._similar_names(PurePosixPath(inside).name)))
        if found:
            some = ", ".join(told_apart(id for _, id in found[: 2 * MAX_SUGGESTIONS])[:MAX_SUGGESTIONS])
            more = f" and {len(found) - MAX_SUGGESTIONS} more" if len(found) > MAX_SUGGESTIONS else ""
            raise InputError(f"{name!r} is the name of {len(found)} images: {some}{more}. Give one of these paths")
        raise InputError(f"no image is called {name!r}{hint}" + (f". Similar names: {near}" if near else ""))

    def matching(self, pattern: str) -> list[str]:
        """Finds the ids that match an id, a base name or a pattern.

        Args:
            pattern: An id or a unique base name, or else a pattern for whole ids, in which * stands for any text and ?
                for any character.

        Returns:
            The ids, sorted.

        Raises:
            InputError: `pattern` has neither * nor ?, and no image has that name, or several do.
        """
        with self._reading() as db:
            if self.row(pattern) is not None:
                return [pattern]
            if not any(sign in pattern for sign in "*?"):
                return [self.entries([self.find(pattern)])[0].id]
            plain = pattern.replace("[", "[[]")  # or GLOB would take it for the start of a character set
            found = db.execute("SELECT id FROM images WHERE id GLOB CAST(? AS TEXT)", (as_text(plain),))
            return sorted(id for (id,) in found)

    def _called(self, inside: str) -> list[tuple[int, str]]:
        """Row and id of the images whose ids end in exactly this path, or else in one that looks the same."""
        base = PurePosixPath(inside).name
        by_name = "SELECT row, id FROM images WHERE name = CAST(? AS TEXT) ORDER BY row"
        with self._reading() as db:
            found = [one for form in forms(base) for one in db.execute(by_name, (as_text(form),))]
            exact = [(row, id) for row, id in found if id.endswith("/" + inside) or id == inside]
            if exact or inside.isascii():
                return exact
            if not found:  # in neither normalization form: compare with every name that is not plain ASCII
                found = db.execute("SELECT row, id FROM images WHERE name GLOB '*[^ -~]*' ORDER BY row").fetchall()
        shown = same_form(inside)
        return [(row, id) for row, id in found if same_form(id) == shown or same_form(id).endswith("/" + shown)]

    def _similar_names(self, wanted: str) -> list[str]:
        for length in range(len(wanted), -1, -1):  # difflib is slow, so it sees only names with the same prefix
            start = as_text(wanted[:length])
            with self._reading() as db:
                found = db.execute(
                    "SELECT DISTINCT name FROM images WHERE name >= CAST(? AS TEXT) AND name < CAST(? AS TEXT) "
                    "ORDER BY name LIMIT ?",
                    (
                        start,
                        start + b"\xff",
                        MAX_COMPARED_NAMES,
                    ),  # no name has this byte, so all names with this prefix sort below it
                ).fetchall()
            if len(found) >= 4 * MAX_SUGGESTIONS or not length:
                return difflib.get_close_matches(wanted, [name for (name,) in found], n=MAX_SUGGESTIONS, cutoff=0.5)
        return []


def check_unique(ids: Collection[str]) -> None:
    """Raises InputError if an id is given twice."""
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise InputError(f"{twice!r} is given twice")


def checksum(id: str, *vectors: np.ndarray) -> int:
    """The CRC-32 of an image's id and its vectors, float32: its own (D,), and those of its parts (P, D) if any."""
    crc = zlib.crc32(as_text(id))
    for vector in vectors:
        crc = zlib.crc32(np.ascontiguousarray(vector).data, crc)
    return crc


def _parts(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), MAX_PARAMETERS):
        yield values[start : start + MAX_PARAMETERS]
