"""What an index in a folder knows about its images besides their vectors; kept in its database."""

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dr_keras.filenames import forms, same_form
from dr_keras.index.database import as_text, one_line_errors
from dr_keras.index.records import MAX_CAMERAS, MAX_SUGGESTIONS, Entry, Photos, Records
from dr_keras.index.store import Store

if TYPE_CHECKING:
    import sqlite3

MAX_COMPARED_NAMES = 5000  # by difflib, which is slow
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


class LocalRecords(Records):
    """What an index in a folder knows about its images.

    Args:
        store: The index's files.
        guard: The index's lock.
    """

    def __init__(self, store: Store, guard: "threading.RLock") -> None:
        super().__init__(guard)
        self._store = store
        self._class_names: tuple[int, dict[str, str]] | None = None  # with the index version they were read from

    @property
    def _place(self) -> str:
        return str(self._store.folder)

    @property
    def _root(self) -> str:
        return self._store.meta["root"]

    @contextmanager
    def _reading(self) -> "Iterator[sqlite3.Connection]":
        """The database, for one query."""
        with self._guard, one_line_errors(self._store.folder):
            yield self._store.db

    def entries(self, rows: Sequence[int] | np.ndarray) -> list[Entry]:
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
        with self._reading() as db:
            return db.execute("SELECT row, id, label, split FROM images ORDER BY row").fetchall()

    def count(self) -> int:
        with self._reading() as db:
            return db.execute("SELECT count(*) FROM images").fetchone()[0]

    def split_counts(self) -> dict[str, int]:
        with self._reading() as db:
            return dict(db.execute("SELECT split, count(*) FROM images GROUP BY split"))

    def label_count(self) -> int:
        with self._reading() as db:
            return db.execute("SELECT count(DISTINCT label) FROM images").fetchone()[0]

    def class_names(self) -> dict[str, str]:
        with self._reading() as db:
            version = self._store.meta["version"]
            if self._class_names is None or self._class_names[0] != version:
                self._class_names = version, dict(db.execute("SELECT label, name FROM classes ORDER BY label"))
            return dict(self._class_names[1])

    def class_counts(self) -> dict[str, int]:
        with self._reading() as db:
            counts = "SELECT label, count(*) FROM images WHERE row NOT IN hidden GROUP BY label ORDER BY label"
            return dict(db.execute(counts))

    def photos(self) -> Photos:
        taken, camera, place = (not name & self.withheld for name in ({"taken"}, {"camera"}, {"latitude", "longitude"}))
        with self._reading() as db:
            found = db.execute(_PHOTOS).fetchall()
        times = [time for _, _, *both, _ in found for time in both if time is not None and taken]
        models = [(model, count) for model, count, *_ in found if model and camera][:MAX_CAMERAS]
        placed = sum(count for *_, count in found) if place else 0
        return Photos(min(times, default=None), max(times, default=None), dict(models), placed)

    def own_classes(self) -> set[str]:
        with self._reading() as db:
            return {label for (label,) in db.execute("SELECT DISTINCT label FROM images WHERE split != ''")}

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._reading() as db:
            for id in ids:
                row = db.execute("SELECT row FROM images WHERE id = CAST(? AS TEXT)", (as_text(id),)).fetchone()
                if row is not None:
                    found[id] = row[0]
        return found

    def _ids_like(self, pattern: str) -> list[str]:
        plain = pattern.replace("[", "[[]")  # or GLOB would take it for the start of a character set
        with self._reading() as db:
            return [
                id for (id,) in db.execute("SELECT id FROM images WHERE id GLOB CAST(? AS TEXT)", (as_text(plain),))
            ]

    def _called(self, inside: str) -> list[tuple[int, str]]:
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
        import difflib  # which only a mistake needs

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


def _parts(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), MAX_PARAMETERS):
        yield values[start : start + MAX_PARAMETERS]
