"""The model and the index as the server uses them: from several threads, always at the newest state."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dr_keras.data.image_ids import image_id, image_path, is_outside_root
from dr_keras.errors import InputError, RunError
from dr_keras.index.index import NO_CLASS, Entry, Index
from dr_keras.index.writer_lock import Locked
from dr_keras.search_model import Model
from dr_keras.search_results import Answer, Result, answered, refined_query
from dr_keras.server.errors import Problem, busy
from dr_keras.server.image_files import Format, Opened, open_image, remove_upload, store_upload
from dr_keras.server.map import Map, Mapper, Snapshot

T = TypeVar("T")

CONDITION_SECONDS = 2.0  # that a stranger's condition may take
UPLOADED = "uploaded image"  # what a search answers for the name of an image that was sent


@dataclass(frozen=True)
class Query:
    """What is asked for: images that are there by their names, and vectors of images that were sent, which come first.

    Attributes:
        fresh: (n, D).
        positives, negatives: ids, or base names where they are unique.
        where, max_distance, include_self: as in `dr_keras.Model.retrieve`.
    """

    fresh: np.ndarray
    positives: Sequence[str] = ()
    negatives: Sequence[str] = ()
    where: str | None = None
    max_distance: float | str | None = None
    include_self: bool = False


class Gallery:
    """What the server searches. Its methods may be called from several threads.

    Args:
        model: with an index.
        uploads: the folder of images that clients add, or None.
    """

    def __init__(self, model: Model, uploads: Path | None = None) -> None:
        self.model = model
        self.index = model.index
        self.index.condition_seconds = CONDITION_SECONDS
        self.uploads = uploads
        # Between two calls another thread could refresh the index, which gives rows other numbers.
        self._guard = self.index.held()
        self._writing = threading.Lock()
        self._mapping = threading.Lock()
        self._mapper = Mapper(self.index)
        self._kept: dict[str, Any] = {}  # what was found out of the present state

    def refresh(self) -> None:
        """Moves to the newest state of the index."""
        with self._guard:
            if self.index.refresh():
                self._kept.clear()

    def _once(self, name: str, find: Callable[[], T]) -> T:
        """What `find` returns, which is asked once a state of the index; the guard is held."""
        if name not in self._kept:
            self._kept[name] = find()
        return self._kept[name]

    def __len__(self) -> int:
        return len(self.index)

    # Reading

    def search(self, query: Query, k: int) -> Answer:
        """The `k` nearest images.

        Raises:
            Problem: 404 where an image has no such name, 400 where the query cannot be answered.
        """
        answer = self.search_many([(query, k)])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def search_many(self, asked: Sequence[tuple[Query, int]]) -> list[Answer | Exception]:
        """`search` for several queries, at one state of the index; a Problem takes the place of an answer."""
        answers: dict[int, Answer | Exception] = {}
        alike: dict[tuple[str | None, int], dict[int, _Resolved]] = {}
        with self._guard:
            self.refresh()
            for number, (query, k) in enumerate(asked):
                try:
                    resolved = self._resolved(query)
                except RunError:
                    raise
                except Exception as error:  # is that query's alone, whatever it is
                    answers[number] = error
                else:
                    alike.setdefault((query.where or None, k), {})[number] = resolved
            for (where, k), together in alike.items():
                resolved_ones = list(together.values())
                never = np.full((len(together), max(len(one.never) for one in resolved_ones)), -1)
                for row, one in zip(never, resolved_ones, strict=True):
                    row[: len(one.never)] = one.never
                vectors = np.stack([one.vector for one in resolved_ones])
                try:
                    found = self.model.neighbours(vectors, k, exclude=never, where=where)
                except RunError:
                    raise
                except InputError as error:
                    answers |= dict.fromkeys(together, Problem(400, str(error)))
                    continue
                for number, one, results in zip(together, resolved_ones, found, strict=True):
                    answers[number] = _answer(asked[number][0], one, results)
        return [answers[number] for number in range(len(asked))]

    def place(self, query: Query, k: int) -> dict[str, Any]:
        """Where a query lies in the map: its key, x, y, and the numbers there of the query's own images and of its
        `k` neighbours."""
        map = self.map()
        with self._guard:
            resolved = self._resolved(query)
            answer = self.search(query, k)
            self._check_current(map)
            rows = [self.index.records.row(result.id) for result in answer.results]
            own = [self.index.records.row(result.id) for result in resolved.known]
        x, y = map.projector(resolved.vector[None])[0].tolist()
        return {"key": map.key, "x": x, "y": y, "neighbours": map.numbers(rows), "queries": map.numbers(own)}

    def _resolved(self, query: Query) -> "_Resolved":
        if not len(query.fresh) and not query.positives:
            raise Problem(400, "no query was given; send an image, or ids of the index as positives")
        limit = query.max_distance
        try:
            if limit == "auto":
                limit = self.model.calibrated_distance()
        except RunError:
            raise Problem(
                400, "this run is not calibrated, so that max_distance has to be a number; see evaluate.py --calibrate"
            ) from None
        if isinstance(limit, str):
            raise Problem(400, f"max_distance is {limit!r}; give a number or 'auto'")
        positives = [self._row(name) for name in query.positives]
        negatives = [self._row(name) for name in query.negatives]
        good = np.concatenate([query.fresh.reshape(-1, self.index.dim), self.index.vectors[positives]])
        try:
            vector = refined_query(good, np.asarray(self.index.vectors[negatives], np.float32))
        except InputError as error:
            raise Problem(400, str(error)) from None
        never = negatives if query.include_self else positives + negatives
        return _Resolved(vector, limit, [self.model.result(row) for row in positives], never)

    def _row(self, name: str) -> int:
        try:
            return self.index.records.find(name)
        except RunError:
            raise
        except InputError as error:
            raise Problem(404, str(error).replace(", and there is no such file", "")) from None

    def find(self, name: str) -> Result:
        """An image by its id, or by its base name where that is unique.

        Raises:
            Problem: 404 where there is none, or there are several.
        """
        with self._guard:
            self.refresh()
            return self.model.result(self._row(name))

    def open_image(self, id: str) -> Opened:
        """Opens the file of an image, which has to be in the index and to lie in the gallery.

        Raises:
            Problem: as `dr_keras.server.image_files.open_image`, and 404 where the index has no such id.
        """
        with self._guard:
            self.refresh()
            if self.index.records.row(id) is None:
                raise Problem(404, "the index has no image of this id")
            path = Path(image_path(id, self.index.root))
        return open_image(path, self._folders(path, id))

    def _folders(self, path: Path, id: str) -> Iterable[Path]:
        yield self.index.root
        if self.uploads is not None:
            yield self.uploads
        if is_outside_root(id) and os.path.normpath(id) == id:
            # index.py adds images elsewhere by their whole path; such a one may not be a link that leaves its folder.
            yield path.parent

    def sample(self, count: int) -> list[Result]:
        """Some images by chance, to begin with."""
        with self._guard:
            self.refresh()
            searched = self.index.searched_rows()
            rows = np.random.default_rng().choice(searched, min(count, len(searched)), replace=False)
            return [self.model.result(row) for row in rows.tolist()]

    def stats(self) -> dict[str, Any]:
        """What `index.py stats` says, without the server's folders, and what the page has to know."""
        with self._guard:
            self.refresh()
            stats = dict(self._once("stats", self.index.stats))  # it counts all images
        for name in ("path", "root"):
            stats.pop(name, None)
        stats["run"] = self.model.run.path.name
        try:
            stats["calibrated"] = self.model.calibrated_distance()
        except RunError:
            stats["calibrated"] = None
        return stats

    def classes(self) -> list[dict[str, Any]]:
        """Label, name and number of images of each class that a search may find."""
        with self._guard:
            self.refresh()
            return self._once("classes", self._count_classes)

    def _count_classes(self) -> list[dict[str, Any]]:
        names = self.index.records.class_names()
        counts = self.index.records.class_counts().items()
        return [{"label": label, "name": names.get(label, label), "count": count} for label, count in counts]

    # The map

    def map(self) -> Map:
        """The map of the newest state; made when it is first wanted, and after a change."""
        with self._mapping:
            with self._guard:
                self.refresh()
                if "map" in self._kept:
                    return self._kept["map"]
                state = self._snapshot()
            made = self._mapper.make(state)  # takes seconds, in which searches go on
            with self._guard:
                if self.index.version == state.version:
                    self._kept["map"] = made
            return made

    def _snapshot(self) -> Snapshot:
        labels = {row: label for row, _, label, _ in self.index.records.listing()}
        searched = self.index.searched_rows()
        rows = searched[np.fromiter((row in labels for row in searched.tolist()), bool, len(searched))]
        return Snapshot(
            self.index.version,
            self.index.generation,
            rows,
            [labels[row] for row in rows.tolist()],
            self.classes(),
            self.index.vectors,
        )

    def point(self, key: str, number: int) -> Result:
        """The image of a point of the map.

        Raises:
            Problem: 404 where the map has no such point, 409 where it has changed.
        """
        map = self.map()
        if key != map.key:
            raise Problem(409, f"the map is at {map.key} by now and {key} was asked for; load it again")
        if not 0 <= number < len(map.rows):
            raise Problem(404, f"the map has {len(map.rows):,} points; there is no number {number}")
        with self._guard:
            self._check_current(map)
            return self.model.result(int(map.rows[number]))

    def _check_current(self, map: Map) -> None:
        """Raises Problem 409 where another thread has refreshed since the map was made."""
        if self._kept.get("map") is not map:
            raise Problem(409, "the map has changed; load it again")

    # Writing

    def add(
        self, data: bytes, format: Format, vector: np.ndarray, label: str | None, attributes: dict[str, Any]
    ) -> tuple[Result, bool]:
        """Stores an image in the uploads folder and adds it; returns it, and whether it is new.

        Raises:
            Problem: 503 while another process writes, 507 where the disk is full.
        """
        assert self.uploads is not None
        with self._writing:
            try:
                with Index.open(self.index.folder, write=True) as writer:
                    file, digest, stored = store_upload(data, format, self.uploads)
                    id = image_id(os.path.abspath(file), writer.root)
                    old = writer.records.row(id)
                    status = file.stat()
                    try:
                        if old is not None:
                            kept = writer.records.entries([old])[0]
                            label = label or kept.label
                            attributes = {**kept.attributes, **attributes}
                        entry = Entry(id, label or NO_CLASS, "", digest, status.st_size, status.st_mtime_ns, attributes)
                        writer.put([entry], vector[None])
                    except BaseException:
                        if stored and old is None:
                            file.unlink(missing_ok=True)
                        raise
            except Locked:
                raise _locked() from None
            except (OSError, RunError) as error:
                raise _not_written() from error
        with self._guard:
            self.refresh()
            row = self.index.records.row(id)
            if row is None:
                raise Problem(409, "the image was added and removed again by another client")
            return self.model.result(row), old is None

    def remove(self, id: str) -> bool:
        """Removes an image from the index; returns whether its file was removed too, as of uploads alone.

        Raises:
            Problem: 404 where the index has no such id, 503 while another process writes.
        """
        with self._writing:
            try:
                with Index.open(self.index.folder, write=True) as writer:
                    if writer.records.row(id) is None:
                        raise Problem(404, "the index has no image of this id")
                    writer.remove([id])
                    path = Path(image_path(id, writer.root))
                    return self.uploads is not None and remove_upload(path, self.uploads)
            except Locked:
                raise _locked() from None
            except (OSError, RunError) as error:
                raise _not_written() from error


@dataclass(frozen=True)
class _Resolved:
    """A query as the index takes it: its vector (D,), how far neighbours may be, its known images, and rows that are no
    results."""

    vector: np.ndarray
    limit: float | None
    known: list[Result]
    never: list[int]


def _answer(query: Query, resolved: _Resolved, found: list[Result]) -> Answer:
    names = [UPLOADED] * len(query.fresh) + list(query.positives)
    known = [None] * len(query.fresh) + resolved.known
    path = known[0].path if known[0] else Path(UPLOADED)
    return answered(names, path, known, found, negatives=query.negatives, max_distance=resolved.limit)


def _locked() -> Problem:
    return busy("another process is writing to the index; try again", seconds=2)


def _not_written() -> Problem:
    return Problem(507, "the change could not be written; the server's log says why")
