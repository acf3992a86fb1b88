"""What an index in a folder knows about its images' files."""

import threading
from collections.abc import Collection, Iterable, Mapping

from dr_keras.index import changes
from dr_keras.index.database import as_text, one_line_errors
from dr_keras.index.image_files import ImageFiles
from dr_keras.index.local_records import LocalRecords
from dr_keras.index.records import Stamp
from dr_keras.index.searcher import Searcher
from dr_keras.index.store import Store


class LocalImageFiles(ImageFiles):
    """What an index in a folder knows about its images' files.

    Args:
        store: The index's files.
        searcher: The index's search, which has to see each change.
        records: What else the index knows about its images.
        guard: The index's lock.
    """

    def __init__(self, store: Store, searcher: Searcher, records: LocalRecords, guard: "threading.RLock") -> None:
        self._store = store
        self._searcher = searcher
        self._records = records
        self._guard = guard

    def stamps(self, ids: Collection[str] | None = None) -> dict[str, Stamp]:
        columns = "SELECT id, hash, size, mtime_ns FROM images"
        with self._guard, one_line_errors(self._store.folder):
            db = self._store.db
            if ids is None:
                return {id: (hash, size, time) for id, hash, size, time in db.execute(columns)}
            one = f"{columns} WHERE id = CAST(? AS TEXT)"
            found = (db.execute(one, (as_text(id),)).fetchone() for id in ids)
            return {row[0]: row[1:] for row in found if row}

    def ids_by_stamp(self, stamps: Collection[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
        found: dict[tuple[int, int], list[str]] = {}
        with self._guard, one_line_errors(self._store.folder):
            wanted = "SELECT id FROM images WHERE size = ? AND mtime_ns = ?"
            for stamp in stamps:
                if ids := [id for (id,) in self._store.db.execute(wanted, stamp)]:
                    found[stamp] = ids
        return found

    def ids_by_hash(self, hashes: Collection[bytes]) -> dict[bytes, list[str]]:
        found: dict[bytes, list[str]] = {}
        with self._guard, one_line_errors(self._store.folder):
            wanted = f"SELECT hash, id FROM images WHERE hash IN ({', '.join('?' * len(hashes))}) ORDER BY row"
            for hash, id in self._store.db.execute(wanted, list(hashes)):
                found.setdefault(hash, []).append(id)
        return found

    def forget_stamps(self, ids: Collection[str]) -> None:
        with self._guard:
            rows = self._records.known_rows(ids)
            with self._searcher.changing():
                changes.clear_stamps(self._store, rows.values())

    def change_root(self, root: str, stamps: Mapping[str, Stamp]) -> None:
        with self._guard, self._searcher.changing():
            self._store.set_meta("root", root)
            changes.set_stamps(self._store, stamps)

    def skipped(self) -> dict[str, tuple[int | None, int | None, str]]:
        with self._guard, one_line_errors(self._store.folder):
            rows = self._store.db.execute("SELECT id, size, mtime_ns, reason FROM skipped")
            return {id: (size, mtime_ns, reason) for id, size, mtime_ns, reason in rows}

    def skip(self, files: Mapping[str, tuple[int | None, int | None, str]]) -> None:
        with self._guard, self._searcher.changing():
            changes.skip_files(self._store, files)

    def unskip(self, ids: Iterable[str]) -> None:
        with self._guard, self._searcher.changing():
            changes.unskip_files(self._store, ids)
