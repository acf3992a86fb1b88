"""The model and the index as the server uses them: from several threads, always in their newest state."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dr_keras.data.image_ids import image_path, is_outside_root, url_of
from dr_keras.errors import InputError, RunError
from dr_keras.explanation import Explanation
from dr_keras.index.cutoff import Cutoff
from dr_keras.index.records import Photos
from dr_keras.index.sync import Reader
from dr_keras.index_results import varied_neighbors
from dr_keras.runs import open_run
from dr_keras.search_model import Model
from dr_keras.search_results import Answer, Result
from dr_keras.server.changes import add_upload, remove_image
from dr_keras.server.errors import Problem
from dr_keras.server.image_files import Format, Opened, open_image
from dr_keras.server.judging import uncertain_triplet
from dr_keras.server.map import Map, Mapper, Snapshot
from dr_keras.server.peers import Peers
from dr_keras.server.queries import Query, Resolved, Vector, answer_to, find_row, resolve
from dr_keras.server.requests import Upload

T = TypeVar("T")

log = logging.getLogger("uvicorn.error")

CONDITION_SECONDS = 2.0  # limit for a condition, which may come from anyone


@dataclass(frozen=True)
class Embedding:
    """How images become the vectors of the index.

    Attributes:
        reader: Decodes and embeds them.
        model: What the vectors depend on, as `dr_keras.index.index.Index.model`.
    """

    reader: Reader
    model: str


class LiveIndex:
    """The index that the server searches, and its model. Its methods may be called from several threads.

    If `index.py migrate` moves the index to another model, it follows.

    Attributes:
        embedding: How images become vectors at the moment.

    Args:
        model: A model with an index.
        uploads: The folder that stores the images that clients add, or None.
        peers: The workers of the server.
    """

    def __init__(self, model: Model, uploads: Path | None, peers: Peers) -> None:
        self.model = model
        self.index = model.index
        self.index.condition_seconds = CONDITION_SECONDS
        self.uploads = uploads
        self._peers = peers
        # Between two calls another thread could refresh the index, which may renumber its rows.
        self._guard = self.index.held()
        self._writing = threading.Lock()
        self._mapping = threading.Lock()
        self._mapper = Mapper(self.index, self._peers)
        self._cached: dict[str, Any] = {}  # computed from the current state
        self.embedding = Embedding(model.reader_for(self.index), self.index.model)

    def refresh(self) -> None:
        """Switches to the newest state of the index."""
        with self._guard:
            if self.index.refresh():
                self._cached.clear()
            if self.index.model != self.embedding.model:
                self._follow()

    def _follow(self) -> None:
        """Changes to the model that the index has been moved to."""
        model = Model(open_run(self.index.run), self.model.runtime)
        model.check(self.index)
        model.index = self.index
        self.model = model
        self._mapper = Mapper(self.index, self._peers)
        self.embedding = Embedding(model.reader_for(self.index), self.index.model)
        log.info("the index was moved to %s", model.run.path.name)

    def _cache(self, name: str, compute: Callable[[], T]) -> T:
        """The result of `compute`, computed once for each state of the index; the caller must hold the guard."""
        if name not in self._cached:
            self._cached[name] = compute()
        return self._cached[name]

    def __len__(self) -> int:
        return len(self.index)

    # Reading

    def search(self, query: Query, k: int) -> Answer:
        """Finds the `k` nearest images.

        Raises:
            Problem: 404 if a name is unknown or ambiguous, 400 if the query cannot be answered.
        """
        answer = self.search_many([(query, k)])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def search_many(self, searches: Sequence[tuple[Query, int]]) -> list[Answer | Exception]:
        """`search` for several queries, all in one state of the index.

        Args:
            searches: Each query, with the number of images to find.

        Returns:
            For each query its answer, or the Problem in its place.
        """
        answers: dict[int, Answer | Exception] = {}
        groups: dict[tuple[str | None, int, bool], dict[int, Resolved]] = {}  # queries that one call can answer
        varied: dict[int, tuple[Resolved, list[str]]] = {}  # they read files, so others do not wait for them
        with self._guard:
            self.refresh()
            for number, (query, k) in enumerate(searches):
                try:
                    resolved = resolve(self.model, query)
                    if query.variety:
                        ids = [entry.id for entry in self.index.records.entries(resolved.excluded)]
                        varied[number] = resolved, ids
                    else:
                        groups.setdefault((query.where or None, k, query.whole), {})[number] = resolved
                except RunError:
                    raise
                except Problem as error:
                    answers[number] = error
                except InputError as error:
                    answers[number] = Problem(400, str(error))
                except Exception as error:  # whatever it is, it affects only this query
                    answers[number] = error
            for (where, k, whole), group in groups.items():
                try:
                    found = self._neighbors(list(group.values()), k, where, whole)
                except RunError:
                    raise
                except InputError as error:
                    answers |= dict.fromkeys(group, Problem(400, str(error)))
                    continue
                for (number, resolved), results in zip(group.items(), found, strict=True):
                    answers[number] = answer_to(searches[number][0], resolved, results)
        for number, (resolved, ids) in varied.items():
            query, k = searches[number]
            try:
                chosen = varied_neighbors(
                    self.index,
                    resolved.vector,
                    k,
                    ids,
                    query.where or None,
                    query.variety,
                    resolved.limit,
                    whole=query.whole,
                )
            except RunError:
                raise
            except InputError as error:
                answers[number] = Problem(400, str(error))
            else:
                answers[number] = answer_to(query, resolved, chosen)
        return [answers[number] for number in range(len(searches))]

    def _neighbors(self, queries: Sequence[Resolved], k: int, where: str | None, whole: bool) -> list[list[Result]]:
        excluded = np.full((len(queries), max(len(query.excluded) for query in queries)), -1)
        for row, query in zip(excluded, queries, strict=True):
            row[: len(query.excluded)] = query.excluded
        vectors = np.stack([query.vector for query in queries])
        return self.model.neighbors(vectors, k, exclude=excluded, where=where, whole=whole)

    def place(self, query: Query, k: int) -> dict[str, Any]:
        """Places a query on the map.

        Returns:
            The map's key, the query's x and y, and the numbers of the points of its `k` neighbors and of the query's
            own images, as in `dr_keras.server.schemas.Place`.

        Raises:
            Problem: As in `search`, and 409 if the map has changed meanwhile.
        """
        map = self.map()
        with self._guard:
            resolved = resolve(self.model, query)
            answer = self.search(query, k)
            self._check_current(map)
            rows = [self.index.records.row(result.id) for result in answer.results]
            own = [self.index.records.row(result.id) for result in resolved.known]
        x, y = map.projector(resolved.vector[None])[0].tolist()
        return {"key": map.key, "x": x, "y": y, "neighbors": map.numbers(rows), "queries": map.numbers(own)}

    def find(self, name: str) -> Result:
        """Finds an image by its id or its unique base name.

        Raises:
            Problem: 404 if no image has this name, or several have.
        """
        with self._guard:
            self.refresh()
            return self.model.result(find_row(self.index, name))

    def has(self, id: str) -> None:
        """Checks that the index has an image of this id.

        Raises:
            Problem: 404 if it has not.
        """
        with self._guard:
            self.refresh()
            if self.index.records.row(id) is None:
                raise Problem(404, "the index has no image of this id")

    def open_image(self, id: str) -> Opened:
        """Opens the file of an image of the index.

        Raises:
            Problem: As in `dr_keras.server.image_files.open_image`, and 404 if the index has no such id.
        """
        with self._guard:
            self.refresh()
            if self.index.records.row(id) is None:
                raise Problem(404, "the index has no image of this id")
            path = Path(image_path(id, self.index.root))
        if url_of(id) is not None:
            raise Problem(404, "this image is on an object store, from which the server shows no pictures")
        return open_image(path, self._folders(path, id))

    def _folders(self, path: Path, id: str) -> Iterable[Path]:
        yield self.index.root
        if self.uploads is not None:
            yield self.uploads
        if is_outside_root(id) and os.path.normpath(id) == id:
            # The id of an image outside the root is its full path; it may not be a link that leads out of its folder.
            yield path.parent

    def sample(self, count: int) -> list[Result]:
        """Picks images at random."""
        with self._guard:
            self.refresh()
            searched = self.index.searched_rows()
            rows = np.random.default_rng().choice(searched, min(count, len(searched)), replace=False)
            return [self.model.result(row) for row in rows.tolist()]

    def explain(self, query: np.ndarray, neighbor: np.ndarray) -> Explanation:
        """Explains why two decoded images are alike, see `Model.explain_pixels`."""
        return self.model.explain_pixels(query, neighbor)

    def question(self) -> tuple[Result, Result, Result]:
        """Chooses an image, and two others of which the network is unsure which is more like it.

        Raises:
            Problem: 409 if there are fewer than three images.
        """
        with self._guard:
            self.refresh()
            searched = self.index.searched_rows()
            if len(searched) < 3:
                raise Problem(409, "a question needs three images")
            query, first, second = uncertain_triplet(self.index.vectors, searched, np.random.default_rng())
            return self.model.result(query), self.model.result(first), self.model.result(second)

    def stats(self) -> dict[str, Any]:
        """Returns what `index.py stats` reports, without the server's paths, and what the page needs."""
        with self._guard:
            self.refresh()
            stats = dict(self._cache("stats", self.index.stats))  # it counts all images, which takes time
        for name in ("path", "root"):
            stats.pop(name, None)
        stats["run"] = self.model.run.path.name
        try:
            cutoff = Cutoff.of(self.index)
            stats["calibrated"] = cutoff.limit(0) if cutoff else self.model.calibrated_distance()
        except RunError:
            stats["calibrated"] = None
        return stats

    def classes(self) -> list[dict[str, Any]]:
        """Returns label, name and number of images of each class, held-out images excluded."""
        with self._guard:
            self.refresh()
            return self._cache("classes", self._count_classes)

    def photos(self) -> Photos:
        """Returns what conditions can ask of the photos."""
        with self._guard:
            self.refresh()
            return self._cache("photos", self.index.records.photos)

    def _count_classes(self) -> list[dict[str, Any]]:
        names = self.index.records.class_names()
        counts = self.index.records.class_counts().items()
        return [{"label": label, "name": names.get(label, label), "count": count} for label, count in counts]

    # The map

    def map(self) -> Map:
        """Returns the map of the newest state; it is made on first use, and again after a change."""
        with self._mapping:
            with self._guard:
                self.refresh()
                if "map" in self._cached:
                    return self._cached["map"]
                state = self._snapshot()
            made = self._mapper.make(state)  # takes seconds; searches continue meanwhile
            with self._guard:
                if self.index.version == state.version:
                    self._cached["map"] = made
            return made

    def _snapshot(self) -> Snapshot:
        labels = {row: label for row, _, label, _ in self.index.records.listing()}
        searched = np.sort(self.index.searched_rows())
        rows = searched[np.fromiter((row in labels for row in searched.tolist()), bool, len(searched))]
        return Snapshot(
            self.index.version,
            rows,
            [labels[row] for row in rows.tolist()],
            self._cache("classes", self._count_classes),
            self.index.vectors,
            self.index.vector_marks(rows),
        )

    def point(self, key: str, number: int) -> Result:
        """Returns the image of a point of the map.

        Args:
            key: The map's key.
            number: The point's number in it.

        Raises:
            Problem: 404 if the map has no such point, 409 if the map has changed.
        """
        map = self.map()
        if key != map.key:
            raise Problem(409, f"the map {key} has been replaced by {map.key}; load it again")
        if not 0 <= number < len(map.rows):
            raise Problem(404, f"the map has {len(map.rows):,} points; there is no point {number}")
        with self._guard:
            self._check_current(map)
            return self.model.result(int(map.rows[number]))

    def _check_current(self, map: Map) -> None:
        """Raises Problem 409 if another thread has refreshed the index since the map was made."""
        if self._cached.get("map") is not map:
            raise Problem(409, "the map has changed; load it again")

    # Writing

    def add(self, upload: Upload, format: Format, vector: Vector) -> tuple[Result, bool]:
        """Stores an image in the uploads folder and adds it to the index.

        Args:
            upload: The image.
            format: Its format.
            vector: Its vector.

        Returns:
            The image, and whether it is new to the index.

        Raises:
            Problem: 503 while another process writes, 507 if the change cannot be written.
        """
        assert self.uploads is not None
        try:
            with self._writing:
                id, created = add_upload(self.index.place, self.uploads, upload, format, vector)
        except Problem:
            self.refresh()  # if the index has been moved to another model, the next attempt is embedded by that
            raise
        with self._guard:
            self.refresh()
            row = self.index.records.row(id)
            if row is None:
                raise Problem(409, "the image was added, but another client has removed it")
            return self.model.result(row), created

    def remove(self, id: str) -> bool:
        """Removes an image from the index.

        Returns:
            Whether its file was removed too: only uploaded files are.

        Raises:
            Problem: 404 if the index has no such id, 503 while another process writes, 507 if the change cannot be
                written.
        """
        with self._writing:
            return remove_image(self.index.place, self.uploads, id)
