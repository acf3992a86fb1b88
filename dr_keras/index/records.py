"""What an index knows of its images besides their vectors: names, labels, stamps; looked up in its database."""

import difflib
import json
import os
import threading
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from dr_keras.errors import InputError
from dr_keras.filenames import forms, same_form, told_apart
from dr_keras.index.store import Store, saying

if TYPE_CHECKING:
    import sqlite3

SUGGESTIONS = 5
NO_CLASS = "-"  # the label of a picture that lies in no class folder
MANY = 500  # question marks in one statement; SQLite takes 32,766, and this keeps statements short


@dataclass(frozen=True)
class Entry:
    """What an index knows of an image, besides its vector.

    Attributes:
        id: its path relative to the index's root, with forward slashes, or its whole path; unique.
        label: its class folder.
        split: 'train', 'monitor' or 'validation' for images of a run's own data; validation images are known by their
            names and are not found by a search.
        hash: SHA-256 of the file's content, 32 bytes.
        size: of the file, in bytes.
        mtime_ns: time of the file's last change, in nanoseconds since 1970.
        attributes: anything that JSON can say.
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
        """As the database keeps them: label, split, hash, size, mtime_ns and attributes."""
        try:
            attributes = json.dumps(dict(self.attributes), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"the attributes of {self.id!r} are not what JSON can say: {error}") from None
        return (as_text(self.label), self.split, self.hash, self.size, self.mtime_ns, attributes)


class Records:
    """The images of a store, at the moment that it is at. The part of `dr_keras.index.index.Index` that asks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.RLock()
        self._names: tuple[int, dict[str, str]] | None = None  # of the classes, and the version that had them

    def held(self) -> "threading.RLock":
        """Keeps `refresh` in other threads away while several questions are asked: `with index.held(): ...`."""
        return self._guard

    @property
    def _db(self) -> "sqlite3.Connection":
        return self._store.db

    @property
    def folder(self) -> Path:
        """Where the index lies."""
        return self._store.folder

    @property
    def root(self) -> Path:
        """The folder that ids are relative to."""
        return Path(self._store.meta["root"])

    @property
    def run(self) -> str:
        """The run that makes the vectors, or nothing."""
        return self._store.meta["run"]

    @property
    def model(self) -> str:
        """What the vectors depend on."""
        return self._store.meta["model"]

    @property
    def dim(self) -> int:
        """The vectors' length, D."""
        return self._store.meta["dim"]

    def entries(self, rows: Sequence[int] | np.ndarray) -> list[Entry]:
        """What is known of the images in these rows, in their order."""
        wanted = [int(row) for row in rows]
        with self._guard, saying(self.folder):
            found: dict[int, Entry] = {}
            for part in parts_of(sorted(set(wanted))):
                for row, id, label, split, hash, size, mtime_ns, attributes in self._db.execute(
                    "SELECT row, id, label, split, hash, size, mtime_ns, attributes FROM images "
                    f"WHERE row IN ({', '.join('?' * len(part))})",
                    part,
                ):
                    known = {} if attributes == "{}" else json.loads(attributes)  # which most images have not
                    found[row] = Entry(id, label, split, hash, size, mtime_ns, known)
        return [found[row] for row in wanted]

    def all_entries(self) -> Iterator[tuple[int, str, str, str]]:
        """Row, id, label and split of every image, held-out ones included, by row."""
        with self._guard, saying(self.folder):
            found = self._db.execute("SELECT row, id, label, split FROM images ORDER BY row").fetchall()
        return iter(found)

    def stamps(self, ids: Collection[str] | None = None) -> dict[str, tuple[bytes | None, int | None, int | None]]:
        """Hash, size and mtime_ns of those of `ids` that are in the index, by id; of all images by default."""
        columns = "SELECT id, hash, size, mtime_ns FROM images"
        with self._guard, saying(self.folder):
            if ids is None:
                return {id: (hash, size, time) for id, hash, size, time in self._db.execute(columns)}
            one = f"{columns} WHERE id = CAST(? AS TEXT)"
            found = (self._db.execute(one, (as_text(id),)).fetchone() for id in ids)
            return {row[0]: row[1:] for row in found if row}

    def ids_by_stamp(self, size: int | None, mtime_ns: int | None) -> list[str]:
        """The ids of images whose files had this size and time."""
        with self._guard, saying(self.folder):
            wanted = "SELECT id FROM images WHERE mtime_ns = ? AND size = ?"
            return [id for (id,) in self._db.execute(wanted, (mtime_ns, size))]

    def class_names(self) -> dict[str, str]:
        """Each label's name for people; the label itself where it has no other."""
        with self._guard, saying(self.folder):
            version = self._store.meta["version"]
            if self._names is None or self._names[0] != version:
                self._names = version, dict(self._db.execute("SELECT label, name FROM classes ORDER BY label"))
            return dict(self._names[1])

    def class_counts(self) -> dict[str, int]:
        """How many images of each label a search may find, by label."""
        with self._guard, saying(self.folder):
            counts = "SELECT label, count(*) FROM images WHERE row NOT IN hidden GROUP BY label ORDER BY label"
            return dict(self._db.execute(counts))

    def own_classes(self) -> set[str]:
        """The classes of the run's own data, as far as the index holds it."""
        with self._guard, saying(self.folder):
            return {label for (label,) in self._db.execute("SELECT DISTINCT label FROM images WHERE split != ''")}

    def row(self, id: str) -> int | None:
        """The row of an id, or None."""
        with self._guard:
            return self.rows_of([id]).get(id)

    def find(self, name: str) -> int:
        """The row of an image by its id, its path, or its base name where that is unique, in either form of Unicode.

        Raises:
            InputError: no image has that name (the nearest names are suggested), or several have (they are listed).
        """
        wanted = PurePosixPath(name).as_posix()
        inside = wanted.removeprefix(os.path.join(self.root.as_posix(), ""))
        with self._guard, saying(self.folder):
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
            some = ", ".join(told_apart(id for _, id in found[: 2 * SUGGESTIONS])[:SUGGESTIONS])
            more = f" and {len(found) - SUGGESTIONS} more" if len(found) > SUGGESTIONS else ""
            raise InputError(f"{name!r} is the name of {len(found)} images: {some}{more}. Give one of these paths")
        raise InputError(
            f"no image is called {name!r}, and there is no such file" + (f". Near it: {near}" if near else "")
        )

    def _called(self, inside: str) -> list[tuple[int, str]]:
        """Row and id of the images whose ids end so, as it is written, or else as it looks."""
        base = PurePosixPath(inside).name
        by_name = "SELECT row, id FROM images WHERE name = CAST(? AS TEXT) ORDER BY row"
        found = [one for form in forms(base) for one in self._db.execute(by_name, (as_text(form),))]
        exact = [(row, id) for row, id in found if id.endswith("/" + inside) or id == inside]
        if exact or inside.isascii():
            return exact
        if not found:  # a form that is neither of the two: every name that is not plain is looked at
            others = self._db.execute("SELECT row, id FROM images WHERE name GLOB '*[^ -~]*' ORDER BY row")
            found = list(others)
        shown = same_form(inside)
        return [(row, id) for row, id in found if same_form(id) == shown or same_form(id).endswith("/" + shown)]

    def matching(self, pattern: str) -> list[str]:
        """The ids that are `pattern`, or whose base name is, or else those that it fits with * and ?.

        Raises:
            InputError: it has neither sign, and no image has that name, or several have.
        """
        with self._guard, saying(self.folder):
            if self.row(pattern) is not None:
                return [pattern]
            if not any(sign in pattern for sign in "*?"):
                return [self.entries([self.find(pattern)])[0].id]
            plain = pattern.replace("[", "[[]")  # which GLOB would take for a set of characters
            found = self._db.execute("SELECT id FROM images WHERE id GLOB CAST(? AS TEXT)", (as_text(plain),))
            return sorted(id for (id,) in found)

    def _similar_names(self, wanted: str) -> list[str]:
        for length in range(len(wanted), -1, -1):  # difflib is slow: let it look only at names that begin alike
            start = as_text(wanted[:length])
            found = self._db.execute(
                "SELECT DISTINCT name FROM images WHERE name >= CAST(? AS TEXT) AND name < CAST(? AS TEXT) "
                "ORDER BY name LIMIT 5000",
                (start, start + b"\xff"),  # no name has this byte, and all that begin so are below it
            ).fetchall()
            if len(found) >= 4 * SUGGESTIONS or not length:
                return difflib.get_close_matches(wanted, [name for (name,) in found], n=SUGGESTIONS, cutoff=0.5)
        return []

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The rows of those ids that are in the index."""
        found: dict[str, int] = {}
        with saying(self.folder):
            for id in ids:
                row = self._db.execute("SELECT row FROM images WHERE id = CAST(? AS TEXT)", (as_text(id),)).fetchone()
                if row is not None:
                    found[id] = row[0]
        return found

    def known_rows(self, ids: Collection[str]) -> dict[str, int]:
        """The rows of ids.

        Raises:
            InputError: an id is not in the index or given twice.
        """
        no_id_twice(ids)
        rows = self.rows_of(ids)
        if len(rows) < len(ids):
            unknown = next(id for id in ids if id not in rows)
            raise InputError(f"{unknown!r} is not in the index {self.folder}")
        return rows

    def one(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        """The first row of a statement's result."""
        with saying(self.folder):
            return self._db.execute(sql, values).fetchone()

    def skipped(self) -> dict[str, tuple[int | None, int | None, str]]:
        """The files that could not be read, as `skip` was told."""
        with self._guard, saying(self.folder):
            return {name: tuple(what) for name, *what in self._db.execute("SELECT * FROM skipped")}


def no_id_twice(ids: Collection[str]) -> None:
    """Raises InputError where an id is among them twice."""
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise InputError(f"{twice!r} is given twice")


def parts_of(values: Sequence[int]) -> Iterator[Sequence[int]]:
    """At most `MANY` at a time."""
    for start in range(0, len(values), MANY):
        yield values[start : start + MANY]


def checksum(id: str, vector: np.ndarray) -> int:
    """The checksum of an image's vector and id."""
    return zlib.crc32(vector.data, zlib.crc32(as_text(id)))


def as_text(value: str) -> bytes:
    """Text as SQLite shall keep it: names of files need not be UTF-8."""
    return value.encode("utf-8", "surrogateescape")
