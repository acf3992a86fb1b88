"""An index in a Milvus server, which any number of processes may change and search at the same time.

A change is atomic for each image, not for all images of a call: a writer that is killed leaves some of them changed,
and the same command again does the rest. A change that a method has returned from is kept by the server, whatever
happens to it afterwards. `dr_keras.index.milvus.collection` says how an index is kept, and when changes by others are
seen.
"""

import os
import threading
import time
from collections.abc import Collection as Several
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from dr_keras.errors import InputError, RunError, Unavailable
from dr_keras.index.index import Damage, Index
from dr_keras.index.milvus import schema
from dr_keras.index.milvus.collection import ASKED_ROWS, FORMAT, KNOWN, Collection
from dr_keras.index.milvus.engine import MilvusEngine
from dr_keras.index.milvus.image_files import SKIPPED, MilvusImageFiles
from dr_keras.index.milvus.records import MilvusRecords, entry_of
from dr_keras.index.milvus.search import SEARCHED, MilvusSearch
from dr_keras.index.milvus.server import WRITE_SECONDS, Address, Server
from dr_keras.index.milvus.valid_text import unescaped
from dr_keras.index.records import Entry, check_unique, checksum
from dr_keras.index.vector_file import LENGTH_TOLERANCE, check_vectors, lengths

MIGRATION, OLD = "_migration", "_old"  # end the names of the index that a migration makes, and of the one it keeps
MOVING_SECONDS = 600.0  # for which a switch to another model keeps others from writing, at most
SETTLED_SECONDS = 1.0  # after which what others were writing has arrived
OPEN = ("engine_breadth", "engine_lists", "engine_name", "engine_recall", "engine_rows")


class MilvusIndex(Index):
    """An index in a Milvus server; see `Index`."""

    records: MilvusRecords
    image_files: MilvusImageFiles
    engine: MilvusEngine

    def __init__(self, server: Server, *, write: bool) -> None:
        self._server = server
        self._write = write
        self._guard = threading.RLock()
        try:
            self._collection = Collection(server)
        except BaseException:
            server.close()
            raise
        self.records = MilvusRecords(self._collection, self._guard)
        self.image_files = MilvusImageFiles(self._collection, self.records, self._guard, self._check_writable)
        self.engine = MilvusEngine(self._collection, self._guard)
        self._search = MilvusSearch(self._collection, self.engine)

    @classmethod
    def created(cls, place: str | os.PathLike[str], dim: int, meta: dict[str, Any], *, replace: bool) -> Self:
        if meta.get("parts"):
            raise InputError("an index in Milvus keeps no vectors of parts; --parts needs an index in a folder")
        server = Server(Address.of(place))
        alias = server.address.collection
        try:
            if replace:
                schema.drop(server, alias)
            elif schema.exists(server):
                raise RunError(f"{server.address} exists already")
            name = schema.make_collection(server, dim)
            about = meta | {"dim": dim, "format": FORMAT, "generation": schema.next_numbers(1)[0]}
            schema.keep(server, name, dim, {schema.ABOUT_ITSELF: about})
            try:
                server.call("create_alias", name, alias, timeout=WRITE_SECONDS)
            except RunError:  # another process has been faster
                server.call("drop_collection", name, timeout=WRITE_SECONDS)
                if not schema.exists(server):
                    raise
        except BaseException:
            server.close()
            raise
        return cls(server, write=True)

    @classmethod
    def opened(cls, place: str | os.PathLike[str], *, write: bool, repair: bool) -> Self:  # noqa: ARG003  # not needed here
        return cls(Server(Address.of(place)), write=write)

    @classmethod
    def is_at(cls, place: str | os.PathLike[str]) -> bool:
        server = Server(Address.of(place))
        try:
            return schema.exists(server)
        finally:
            server.close()

    @property
    def place(self) -> str:
        return self._collection.place

    @property
    def meta(self) -> Mapping[str, Any]:
        return self._collection.meta

    def read_file(self, name: str) -> bytes | None:
        with self._guard:
            return self._collection.read_file(name)

    def write_file(self, name: str, data: bytes) -> None:
        with self._guard:
            self._collection.write_file(name, data)

    def close(self) -> None:
        with self._guard:
            self._server.close()

    def held(self) -> "threading.RLock":
        return self._guard

    def refresh(self) -> bool:
        with self._guard:
            return self._collection.refresh()

    def withhold(self, attributes: Several[str]) -> None:
        self.records.withheld = self._search.withheld = frozenset(attributes)

    def __len__(self) -> int:
        with self._guard:
            return self._collection.count(SEARCHED)

    def searched_rows(self) -> np.ndarray:
        return self.records.searched()[0]

    @property
    def vectors(self) -> "_Vectors":
        return _Vectors(self._collection, self._guard)

    def vector_marks(self, rows: np.ndarray) -> np.ndarray:
        known, added = self.records.searched()
        order = np.argsort(known)
        return added[order][np.searchsorted(known[order], rows)]

    # Changes

    def add(
        self, entries: Sequence[Entry], vectors: np.ndarray, *, class_names: Mapping[str, str] | None = None
    ) -> None:
        with self._guard:
            taken = self.records.rows_of([entry.id for entry in entries])
            if taken:
                raise InputError(f"{next(iter(taken))!r} is in the index already; use update")
            self._insert(entries, check_vectors(vectors, len(entries), self.dim, 0), class_names or {})

    def put(self, entries: Sequence[Entry], vectors: np.ndarray | None) -> None:
        with self._guard:
            if vectors is not None:
                self._insert(entries, check_vectors(vectors, len(entries), self.dim, 0), {})
                return
            rows = self.records.known_rows([entry.id for entry in entries])
            for start in range(0, len(entries), ASKED_ROWS):
                some = entries[start : start + ASKED_ROWS]
                found = self._collection.rows([rows[entry.id] for entry in some], ["vector", "added"])
                kept = [entry for entry in some if rows[entry.id] in found]  # another writer may have removed one
                old = [found[rows[entry.id]] for entry in kept]
                values = np.array([one["vector"] for one in old], np.float32).reshape(len(kept), self.dim)
                self._write_images(kept, values, [int(one["added"]) for one in old], {})
            self._collection.changed()

    def _insert(self, entries: Sequence[Entry], vectors: np.ndarray, class_names: Mapping[str, str]) -> None:
        check_unique([entry.id for entry in entries])
        if not entries:
            return
        self.records.rows_of([entry.id for entry in entries])  # that no two ids have one row
        self._write_images(entries, vectors, schema.next_numbers(len(entries)), class_names)
        self._collection.forget([f"{SKIPPED}/{entry.id}" for entry in entries])
        self._collection.changed()

    def _write_images(
        self, entries: Sequence[Entry], vectors: np.ndarray, added: Sequence[int], class_names: Mapping[str, str]
    ) -> None:
        self._check_writable()
        self._collection.name_classes(entries, class_names)
        self._collection.put(entries, vectors, added)

    def _check_writable(self) -> None:
        """Raises RunError if this index was opened for reading, or is being or was moved to another model."""
        if not self._write:
            raise RunError(f"{self.place} was opened for reading; open it with write=True")
        generation = self.generation
        self._collection.refresh()
        if self.generation != generation:
            raise RunError(f"{self.place} was moved to another model meanwhile; open it again")
        if time.time() - self.meta.get("moving", 0) < MOVING_SECONDS:
            raise Unavailable(f"{self.place} is being moved to another model; try again in a minute")

    def remove(self, ids: Several[str]) -> int:
        with self._guard:
            rows = self.records.known_rows(ids)
            if not rows:
                return 0
            self._check_writable()
            self._collection.delete(rows.values())
            self._collection.changed()
            return len(rows)

    def compact(self) -> None:
        """Does nothing: the server removes what is no longer needed by itself."""

    @property
    def migration_place(self) -> str:
        return str(self._server.address.beside(MIGRATION))

    @property
    def old_place(self) -> str:
        return str(self._server.address.beside(OLD))

    def take_vectors(self, fresh: Index, meta: Mapping[str, Any], *, keep_old: bool = False) -> None:
        assert isinstance(fresh, MilvusIndex)
        with self._guard:
            self._lock_others_out()
            self._take_entries(fresh)
            kept = {key: value for key, value in self.meta.items() if key not in ("version", "moving", *OPEN)}
            kept |= {key: fresh.meta[key] for key in ("dim", "format", "generation", *OPEN) if key in fresh.meta}
            schema.keep(fresh._server, fresh._collection.name, fresh.dim, {schema.ABOUT_ITSELF: kept | dict(meta)})
            fresh._collection.keep(self._collection.others())
            server, alias = self._server, self._collection.name
            old, new = (schema.collection_of(server, name) for name in (alias, alias + MIGRATION))
            assert new is not None
            if keep_old:
                server.call("create_alias", old, alias + OLD, timeout=WRITE_SECONDS)
            server.call("alter_alias", new, alias, timeout=WRITE_SECONDS)
            server.wrote()
            server.call("drop_alias", alias + MIGRATION, timeout=WRITE_SECONDS)
            if not keep_old:
                server.call("drop_collection", old, timeout=WRITE_SECONDS)
            self._collection.refresh()
            self._collection.changed()

    def _lock_others_out(self) -> None:
        """Makes other writers wait for a while.

        Raises:
            Unavailable: One of them has changed the index since it was last refreshed.
        """
        known = self.version
        self._collection.unsettle()
        self._collection.refresh()
        if self.version == known:
            self._collection.change(moving=time.time())
            known = self.version
            time.sleep(SETTLED_SECONDS)  # what others are writing arrives
            self._collection.unsettle()
            self._collection.refresh()
            if self.version == known:
                return
            self._collection.change(moving=0)
        raise Unavailable(f"{self.place} was changed meanwhile; the same command goes on")

    def _take_entries(self, fresh: "MilvusIndex") -> None:
        """Gives the images of another index what this one knows of them, and removes those that this one has not."""
        fields = [*KNOWN, "added"]
        for part in fresh._collection.scan([*fields, "vector"]):
            own = self._collection.rows([one["row"] for one in part], fields)
            gone = [int(one["row"]) for one in part if int(one["row"]) not in own]
            other = [one for one in part if any(own.get(int(one["row"]), one)[key] != one[key] for key in fields)]
            fresh._collection.delete(gone)
            if other:
                entries = [entry_of(own[int(one["row"])]) for one in other]
                vectors = np.array([one["vector"] for one in other], np.float32)
                fresh._collection.put(entries, vectors, [int(own[int(one["row"])]["added"]) for one in other])

    def remove_migration(self) -> None:
        with self._guard:
            server, alias = self._server, self._collection.name
            new = schema.collection_of(server, alias + MIGRATION)
            if new is not None:
                server.call("drop_alias", alias + MIGRATION, timeout=WRITE_SECONDS)
                if new != schema.collection_of(server, alias):
                    server.call("drop_collection", new, timeout=WRITE_SECONDS)
        self.remove_strays()

    def remove_strays(self) -> None:
        for ending in ("", MIGRATION):
            schema.drop_strays(self._server, self._collection.name + ending)

    # Search

    def search(
        self, vectors: np.ndarray, k: int = 30, *, where: str | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        queries, own = self._asked(vectors, k, exclude)
        with self._guard:
            return self._search.search(queries, k, where, own, self.condition_seconds)

    def search_parts(
        self, vectors: np.ndarray, k: int = 30, *, where: str | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._asked(vectors, k, exclude)
        raise InputError(f"{self.place} keeps no parts of its images")

    # Statistics and integrity

    def stats(self) -> dict[str, Any]:
        with self._guard:
            images = self.records.count()
            return {
                "searched": len(self),
                "path": self.place,
                "root": self.meta["root"],
                "run": self.run,
                "head": self.head,
                "images": images,
                "classes": self.records.label_count(),
                "splits": {name or "added": count for name, count in sorted(self.records.split_counts().items())},
                "skipped": len(self.image_files.skipped()),
                "dim": self.dim,
                "parts": 0,
                "engine": self.engine.stats(),
                "rows": images,
                "gaps": 0,
                "bytes": None,
                "version": self.version,
            }

    def verify(self) -> list[Damage]:
        damage: list[Damage] = []
        seen = 0
        with self._guard:
            self._collection.unsettle()
            total = self._collection.count()
            for part in self._collection.scan(["id", "crc", "vector"]):
                seen += len({one["row"] for one in part})
                vectors = np.array([one["vector"] for one in part], np.float32)
                for one, vector, length in zip(part, vectors, lengths(vectors).tolist(), strict=True):
                    id = unescaped(one["id"])
                    if checksum(id, vector) != one["crc"]:
                        damage.append(Damage(id, "its vector or its id was altered: the checksum differs"))
                    elif not abs(length - 1) < LENGTH_TOLERANCE:
                        damage.append(Damage(id, f"its vector is of length {length}"))
        if seen != total and not damage:
            damage.append(Damage(None, f"the server counts {total:,} images, but holds {seen:,}"))
        return damage


class _Vectors:
    """The vectors of an index in Milvus, by row; zeros for images that were removed meanwhile."""

    def __init__(self, collection: Collection, guard: "threading.RLock") -> None:
        self._collection = collection
        self._guard = guard

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        wanted = np.asarray(rows, np.int64)
        vectors = np.zeros((wanted.size, self._collection.meta["dim"]), np.float32)
        for start in range(0, wanted.size, ASKED_ROWS):
            some = wanted.ravel()[start : start + ASKED_ROWS].tolist()
            with self._guard:
                found = self._collection.rows(some, ["vector"])
            for number, row in enumerate(some, start):
                if row in found:
                    vectors[number] = found[row]["vector"]
        return vectors.reshape(*wanted.shape, vectors.shape[1])
