"""The index: images with their vectors, labels and attributes; a search, and every change, is all or nothing.

    index = Index.create("my-index", dim=128, root="my-pictures")
    index.add([Entry("cats/a.jpg", label="cats", attributes={"year": 2021})], vectors)     # (1, 128), of unit length
    rows, distances = index.search(queries, 30, where="label = cats AND year >= 2020")
    index.remove(["cats/a.jpg"])

`dr_keras.index.store` says how it lies on the disk, `dr_keras.index.approximate_search` how more than a million images
are searched. Needs NumPy and no framework: a search for an image that is indexed takes the time of reading the index.
"""

import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dr_keras.atomic_files import new_folder
from dr_keras.data import SPLIT_NAMES, VALIDATION
from dr_keras.errors import InputError, RunError
from dr_keras.index import approximate_search as engines
from dr_keras.index.exact_search import nearest, ranked
from dr_keras.index.filters import parse_where
from dr_keras.index.integrity import Damage, damage_of
from dr_keras.index.records import NO_CLASS, Entry, Records, as_text, checksum, no_id_twice
from dr_keras.index.store import DATABASE, Store, check_vectors, saying, take_lock

if TYPE_CHECKING:
    from dr_keras.data.catalog import Catalog

__all__ = ["NO_CLASS", "Damage", "Entry", "Index"]

HELD_OUT = SPLIT_NAMES[VALIDATION]
GAPS = 0.25  # share of rows without an image from which on a removal writes the vectors anew
FEW_GAPS = 4096  # gaps that are never worth it
PATIENCE = 10_000  # steps of SQLite between looks at the clock: a millisecond
SPARE = 32  # neighbours more than were asked for that are ranked by their differences


class Index(Records):
    """An index that is open, at one moment: what others change is seen after `refresh`. Made by `create` and `open`.

    One process at a time may change an index; any number may read it meanwhile. Its methods may be called from several
    threads.

    Attributes:
        condition_seconds: how long the condition of a search may take; None for as long as it needs.
    """

    condition_seconds: float | None = None

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._engine: engines.Engine | None = None
        self._described: engines.Described | None = None
        self._searched: np.ndarray | None = None
        try:
            self._look()
        except BaseException:
            store.close()
            raise

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        dim: int,
        *,
        root: str | os.PathLike[str],
        model: str = "",
        run: str = "",
        replace: bool = False,
    ) -> "Index":
        """Makes an index without images and opens it for writing.

        Args:
            folder: where; nothing may be there, or an empty folder.
            dim: the vectors' length, D.
            root: the folder that ids are relative to.
            model: what the vectors depend on, in any words; `dr_keras.Model` compares it with its own.
            run: the run that makes the vectors, for those who open the index without naming one.
            replace: throw away an index that is there, a damaged one too.

        Raises:
            Locked: another process makes one there, or writes to it.
            RunError: something else is there, or nothing can be written there.
        """
        folder = Path(folder)
        with saying(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = take_lock(folder)
            try:
                there = [file for file in folder.iterdir() if file.name not in ("lock", f"{DATABASE}.new")]
                if there and not replace:
                    raise RunError(f"{folder} exists and is not empty; choose another place for the index")
                for file in there:
                    if file.name.startswith(("index.", "vectors-", "engine-", "map.")) and file.is_file():
                        file.unlink()
                Store.create(folder, dim, {"root": os.path.abspath(root), "model": model, "run": run, "engine": "auto"})
            except BaseException:
                os.close(lock)
                raise
        return cls(Store(folder, write=True, lock=lock))

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, write: bool = False, repair: bool = False) -> "Index":
        """Opens an index.

        Args:
            folder: where it lies.
            write: whether it shall be changed; there is one writer at a time.
            repair: open it although vectors are damaged, for `verify` and `repair`.

        Raises:
            RunError: there is none, it is damaged or of another format version, or another process writes to it.
        """
        return cls(Store(Path(folder), write=write, repair=repair))

    @classmethod
    def of(
        cls,
        folder: str | os.PathLike[str],
        catalog: "Catalog",
        vectors: np.ndarray,
        *,
        model: str = "",
        run: str = "",
        stamps: Sequence[tuple[bytes | None, int | None, int | None]] | None = None,
    ) -> None:
        """Writes the index of a catalog's images in place of what is there; it appears complete or not at all.

        Args:
            folder: where.
            catalog: M images; train and monitor are searched, validation images are only known.
            vectors: (M, D), their embeddings, row by row.
            model: as in `create`.
            run: as in `create`.
            stamps: hash, size and mtime_ns of each image's file, where they are known.
        """
        order = np.argsort(catalog.splits == VALIDATION, kind="stable").tolist()
        known = stamps or [(None, None, None)] * len(catalog)
        entries = (
            Entry(catalog.ids[row], catalog.classes[catalog.labels[row]], SPLIT_NAMES[catalog.splits[row]], *known[row])
            for row in order
        )
        with new_folder(Path(folder)) as temporary:
            meta = {"root": str(catalog.root), "model": model, "run": run, "engine": "auto"}
            Store.create(temporary, vectors.shape[1], meta)
            with cls(Store(temporary, write=True)) as index:
                names = dict(zip(catalog.classes, catalog.class_names, strict=True))
                index._insert(list(entries), vectors[order], names)
            (temporary / "lock").unlink()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and lets others write; waits for what other threads ask at the moment."""
        with self._guard:
            self._store.close()

    def refresh(self) -> bool:
        """Moves to the newest state that a writer has finished; returns whether there was a newer one."""
        with self._guard:
            changed = self._store.refresh()
            if changed:
                self._look()
            return changed

    def _look(self) -> None:
        """Reads what searches need to know of the state."""
        with saying(self.folder):
            hidden = np.fromiter((row for (row,) in self._db.execute("SELECT row FROM hidden ORDER BY row")), np.int64)
        # (N,) the rows that a search may return; None for all of them, which is the rule and needs no memory.
        self._searched = None
        if len(hidden):
            allowed = np.ones(self._store.rows, bool)
            allowed[hidden] = False
            self._searched = np.flatnonzero(allowed)
        described = engines.described(self._store.meta)
        if described != self._described:
            self._described, self._engine = described, None

    @property
    def vectors(self) -> np.ndarray:
        """(R, D) float32, memory-mapped, by row; rows of images that were removed are among them."""
        return self._store.vectors

    @property
    def version(self) -> int:
        """How many changes were made to it."""
        return self._store.meta["version"]

    @property
    def generation(self) -> int:
        """How often the vectors were written anew; rows keep their numbers within one."""
        return self._store.meta["generation"]

    def __len__(self) -> int:
        """How many images a search may find."""
        searched = self._searched  # another thread may refresh in between
        return self._store.rows if searched is None else len(searched)

    def searched_rows(self) -> np.ndarray:
        """(N,) int64: the rows that a search may return, ascending."""
        searched = self._searched
        return np.arange(self._store.rows) if searched is None else searched

    # Changes

    def add(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """Adds images.

        Args:
            entries: n images with new ids.
            vectors: (n, D) of unit length.

        Raises:
            InputError: an id is taken or given twice, or the vectors have another shape, are not finite, or are not of
                unit length. Nothing is added then.
        """
        with self._guard:
            ids = [entry.id for entry in entries]
            taken = self.rows_of(ids)
            if taken:
                raise InputError(f"{next(iter(taken))!r} is in the index already; use update")
            self._insert(entries, vectors)

    def update(self, entries: Sequence[Entry], vectors: np.ndarray | None = None) -> None:
        """Replaces what is known of images, and their vectors where some are given.

        Args:
            entries: n images with ids that are in the index.
            vectors: (n, D) of unit length.

        Raises:
            InputError: an id is not in the index or given twice, or as in `add`. Nothing is changed then.
        """
        with self._guard:
            self.known_rows([entry.id for entry in entries])
            self.put(entries, vectors)

    def put(self, entries: Sequence[Entry], vectors: np.ndarray | None) -> None:
        """Adds the images that are new and updates the others, in one change; arguments and errors as in `update`."""
        with self._guard:
            if vectors is not None:
                vectors = check_vectors(vectors, len(entries), self.dim)
                replaced = self.rows_of([entry.id for entry in entries])
                self._insert(entries, vectors, replaced=replaced)
                if replaced:
                    self._tidy()
                return
            rows = self.known_rows([entry.id for entry in entries])
            with self._changing() as db:
                self._name_classes(entries, {})
                db.executemany(
                    "UPDATE images SET label = CAST(? AS TEXT), split = ?, hash = ?, size = ?, mtime_ns = ?, "
                    "attributes = ? WHERE row = ?",
                    [(*entry.values(), rows[entry.id]) for entry in entries],
                )
                db.executemany("DELETE FROM hidden WHERE row = ?", [(row,) for row in rows.values()])
                held = [(rows[entry.id],) for entry in entries if entry.split == HELD_OUT]
                db.executemany("INSERT INTO hidden VALUES (?)", held)

    def remove(self, ids: Collection[str]) -> int:
        """Removes images; returns how many.

        Raises:
            InputError: an id is not in the index. Nothing is removed then.
        """
        with self._guard:
            rows = self.known_rows(ids)
            if not rows:
                return 0
            with self._changing():
                self._forget(rows.values())
            self._tidy()
            return len(rows)

    def _tidy(self) -> None:
        """Writes the vectors anew where many rows have no image."""
        (images,) = self.one("SELECT count(*) FROM images")
        gaps = self._store.rows - images
        if gaps > FEW_GAPS and gaps > GAPS * self._store.rows:
            self.compact()

    def compact(self) -> None:
        """Writes the vectors anew without those that no image has; a change does it when it is worth it."""
        with self._guard:
            had_engine = self._described is not None
            self._store.compact()
            self._look()
            if had_engine:
                self.keep_up()

    def forget_stamps(self, ids: Collection[str]) -> None:
        """Makes images look as if their files had changed, so that they are embedded again."""
        with self._guard:
            rows = self.known_rows(ids)
            with self._changing() as db:
                db.executemany(
                    "UPDATE images SET hash = NULL, size = NULL, mtime_ns = NULL WHERE row = ?",
                    [(row,) for row in rows.values()],
                )

    def move(self, root: str, stamps: Mapping[str, tuple[bytes | None, int | None, int | None]]) -> None:
        """Makes another folder the one that ids are relative to.

        Args:
            root: its whole path.
            stamps: hash, size and mtime_ns of the images whose files have others there, by id.
        """
        with self._guard, self._changing() as db:
            self._store.set_meta("root", root)
            db.executemany(
                "UPDATE images SET hash = ?, size = ?, mtime_ns = ? WHERE id = CAST(? AS TEXT)",
                [(*stamp, as_text(id)) for id, stamp in stamps.items()],
            )

    def skip(self, files: Mapping[str, tuple[int | None, int | None, str]]) -> None:
        """Remembers files that could not be read, so that they are tried again only when they change.

        Args:
            files: by id: size, mtime_ns, and the reason.
        """
        with self._guard, self._changing() as db:
            rows = [(as_text(name), *what) for name, what in files.items()]
            db.executemany("INSERT OR REPLACE INTO skipped VALUES (CAST(? AS TEXT), ?, ?, ?)", rows)

    def unskip(self, ids: Iterable[str]) -> None:
        """Forgets that files could not be read."""
        with self._guard, self._changing() as db:
            db.executemany("DELETE FROM skipped WHERE id = CAST(? AS TEXT)", [(as_text(id),) for id in ids])

    def _changing(self) -> "_Change":
        return _Change(self)

    def _insert(
        self,
        entries: Sequence[Entry],
        vectors: np.ndarray,
        names: Mapping[str, str] | None = None,
        replaced: Mapping[str, int] | None = None,
    ) -> None:
        vectors = check_vectors(vectors, len(entries), self.dim)
        no_id_twice([entry.id for entry in entries])
        if not entries:
            return
        crcs = [checksum(entry.id, vector) for entry, vector in zip(entries, vectors, strict=True)]
        values = [(as_text(entry.id), as_text(entry.name), *entry.values()) for entry in entries]
        with self._changing() as db:
            if replaced:
                self._forget(replaced.values())
            self._name_classes(entries, names or {})
            first = self._store.append(vectors)
            db.executemany(
                "INSERT INTO images (row, id, name, label, split, hash, size, mtime_ns, attributes, crc) "
                "VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?)",
                ((first + n, *value, crc) for n, (value, crc) in enumerate(zip(values, crcs, strict=True))),
            )
            held = [(first + n,) for n, entry in enumerate(entries) if entry.split == HELD_OUT]
            db.executemany("INSERT INTO hidden VALUES (?)", held)
            db.executemany("DELETE FROM skipped WHERE id = CAST(? AS TEXT)", [(value[0],) for value in values])

    def _name_classes(self, entries: Iterable[Entry], names: Mapping[str, str]) -> None:
        labels = dict.fromkeys([*names, *(entry.label for entry in entries)])
        self._db.executemany(
            "INSERT OR IGNORE INTO classes VALUES (CAST(? AS TEXT), CAST(? AS TEXT))",
            [(as_text(label), as_text(names.get(label, label))) for label in labels],
        )

    def _forget(self, rows: Iterable[int]) -> None:
        places = [(row,) for row in rows]
        self._db.executemany("DELETE FROM images WHERE row = ?", places)
        self._db.executemany("INSERT OR IGNORE INTO hidden VALUES (?)", places)

    # What is known

    def get(self, id: str) -> tuple[Entry, np.ndarray]:
        """An image and its vector (D,).

        Raises:
            InputError: the id is not in the index.
        """
        with self._guard:
            row = self.known_rows([id])[id]
            return self.entries([row])[0], np.array(self.vectors[row])

    # Search

    def search(
        self, vectors: np.ndarray, k: int = 30, *, where: str | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest images of each vector.

        Args:
            vectors: (Q, D).
            k: at least 1; more than the index holds means all of it.
            where: search only the images of which this is true; see `dr_keras.index.filters`.
            exclude: (Q,) or (Q, X) rows to leave out for each query, its own for one; -1 for none.

        Returns:
            rows (Q, K) int64, nearest first and by row where distances are equal; Euclidean distances (Q, K) float32.
            K is `k`, or less where there are fewer images. An approximate engine may find fewer for a query than for
            another: the row is -1 and the distance infinite there.

        Raises:
            InputError: the vectors' length is not the index's, `k` is below 1, or `where` is no condition.
        """
        queries = np.ascontiguousarray(vectors, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(f"vectors are {np.shape(vectors)}; this index takes (Q, {self.dim})")
        if k < 1:
            raise InputError(f"{k} neighbours were asked for; ask for at least 1")
        own = np.empty((len(queries), 0), np.int64) if exclude is None else np.asarray(exclude)
        own = own[:, None] if own.ndim == 1 else own
        with self._guard:
            allowed = self._searched if where is None else self._rows_where(where)
            rows = self._candidates(queries, k + own.shape[1], allowed)
            rows[(rows[:, :, None] == own[:, None, :]).any(axis=2)] = -1  # (Q, C, X): few
            rows, found = ranked(queries, self.vectors, rows, k)
        keep = int((rows >= 0).sum(axis=1).max(initial=0))
        return rows[:, :keep], found[:, :keep]

    def _rows_where(self, where: str) -> np.ndarray:
        condition = parse_where(where)
        with saying(self.folder), self._limited():
            rows = self._db.execute(
                f"SELECT row FROM images WHERE {condition.sql} AND row NOT IN hidden ORDER BY row", condition.values
            )
            return np.fromiter((row for (row,) in rows), np.int64)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Ends a question that takes longer than a condition may."""
        if self.condition_seconds is None:
            yield
            return
        end = time.monotonic() + self.condition_seconds
        self._db.set_progress_handler(lambda: time.monotonic() > end, PATIENCE)
        try:
            yield
        except sqlite3.OperationalError:
            if time.monotonic() <= end:
                raise
            raise InputError(
                f"the condition takes more than {self.condition_seconds:g} seconds for {len(self):,} images; "
                "compare with = or IN, which need not look into each name"
            ) from None
        finally:
            self._db.set_progress_handler(None, 0)

    def _candidates(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> np.ndarray:
        """Rows (Q, C) among which the k nearest are, all of them exactly or nearly; -1 where there are fewer."""

        def exact(asked: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
            # A product of matrices rounds: what is nearly equally near may come in any order. So a few more are taken.
            return nearest(asked, self.vectors, k + SPARE, rows=rows, unit=True)[0]

        engine = self._loaded_engine()
        if engine is None:
            return exact(queries, allowed)
        assert self._described
        built = self._described.rows
        head, tail = allowed, np.arange(built, self._store.rows)  # the latter came after the engine was built
        if allowed is not None:
            inside = int(np.searchsorted(allowed, built))
            head, tail = allowed[:inside], allowed[inside:]
            if not engines.worth_it(inside, built):
                return exact(queries, allowed)
        rows = engine.search(queries, k, head)
        few = (rows >= 0).sum(axis=1) < min(k, built if head is None else len(head))
        if few.any():  # what is allowed lies elsewhere than the nearest do: only looking at all of it finds it
            found = exact(queries[few], head if head is not None else np.arange(built))
            wide = np.full((len(rows), max(rows.shape[1], found.shape[1])), -1)
            wide[:, : rows.shape[1]] = rows
            wide[few] = -1
            wide[few, : found.shape[1]] = found
            rows = wide
        return np.concatenate([rows, exact(queries, tail)], axis=1) if len(tail) else rows

    def _loaded_engine(self) -> engines.Engine | None:
        """The engine, or None where there is none, or where a writer has put another in its place meanwhile."""
        if self._engine is None and self._described is not None:
            with suppress(FileNotFoundError):
                self._engine = engines.load(self.folder, self._described)
        return self._engine

    # Engines

    def build(self, engine: str = "auto") -> str:
        """Makes the engine that searches: the exact one, which needs nothing, or an approximate one.

        Args:
            engine: 'flat', 'hnsw' or 'ivfpq'; 'auto' chooses by the number of images. The choice is kept.

        Returns:
            The engine's name.

        Raises:
            InputError: there is no such engine, or there are too few images for it.
            RunError: it cannot be written.
        """
        with self._guard:
            name = engines.choose(engine, len(self))
            old = self._store.meta.get("engine_file")
            made = None
            if name != "flat":
                made = engines.make(name, self.folder, self.vectors, self._store.meta["version"])
            with self._changing():
                self._store.forget_engine()
                self._store.set_meta("engine", engine)
                for key, value in (made.to_meta() if made else {}).items():
                    self._store.set_meta(key, value)
            if old:
                (self.folder / old).unlink(missing_ok=True)
            return name

    def keep_up(self, engine: str | None = None) -> None:
        """Builds the engine that is wanted by now, if it is another one, or if much came since it was built.

        Args:
            engine: the choice, as for `build`; the one that was made before by default.
        """
        with self._guard:
            chosen = engine or self._store.meta["engine"]
            name = engines.choose(chosen, len(self))
            if name != "flat" and engine is None and self._store.rows < engines.FEWEST:
                return  # too few are left for it; they are searched exactly
            there = self._described
            if (
                name != (there.name if there else "flat")
                or chosen != self._store.meta["engine"]
                or (there and engines.outgrown(there, self._store.rows))
            ):
                self.build(chosen)

    def mend_engine(self) -> None:
        """Builds the engine again where its file is damaged."""
        with self._guard:
            if self._described and engines.damage(self.folder, self._described):
                self.build(self._store.meta["engine"])

    # Care

    def stats(self) -> dict[str, Any]:
        """Counts, sizes in bytes and the engine, as plain values."""
        with self._guard, saying(self.folder):
            described = self._described
            (images,) = self.one("SELECT count(*) FROM images")
            splits = dict(self._db.execute("SELECT split, count(*) FROM images GROUP BY split"))
            return {
                "path": str(self.folder),
                "root": str(self.root),
                "run": self.run,
                "searched": len(self),
                "images": images,
                "classes": self.one("SELECT count(DISTINCT label) FROM images")[0],
                "splits": {name or "added": count for name, count in sorted(splits.items())},
                "skipped": self.one("SELECT count(*) FROM skipped")[0],
                "dim": self.dim,
                "engine": {
                    "name": described.name if described else "flat",
                    "chosen": self._store.meta["engine"],
                    "exact": described is None,
                    "rows": described.rows if described else self._store.rows,
                    "recall": described.recall if described else 1.0,
                },
                "rows": self._store.rows,
                "gaps": self._store.rows - images,
                "bytes": _bytes_in(self.folder),
                "version": self._store.meta["version"],
            }

    def verify(self) -> list[Damage]:
        """Looks at everything: the database, each vector's checksum, that it is finite and of unit length, the engine.

        Returns:
            What is wrong; nothing where all is well.
        """
        with self._guard, saying(self.folder):
            found = damage_of(self._store)
            reason = engines.damage(self.folder, self._described) if self._described else None
            return found + ([Damage(None, reason)] if reason else [])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copies the index, as this object sees it, to a new place; an engine has to be built again there.

        Raises:
            RunError: something is there already, or it cannot be written.
        """
        place = Path(folder)
        with self._guard, saying(place):
            if place.exists():
                raise RunError(f"{place} exists; choose another place for the copy")
            with new_folder(place, replace=False) as temporary:
                self._store.copy(temporary)


def _bytes_in(folder: Path) -> int:
    """The size of the files in a folder, from which a writer may take some meanwhile."""
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size


class _Change:
    """A transaction of an index; afterwards searches see its result."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._inner = index._store.transaction()

    def __enter__(self) -> sqlite3.Connection:
        return self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        try:
            self._inner.__exit__(*error)
        finally:
            with suppress(RunError):  # what is wrong was raised above, or is when the index is used next
                self._index._look()
