"""What an index in Milvus knows about its images' files."""

import threading
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Collection as Several
from dataclasses import replace

import numpy as np

from dr_keras.index.image_files import ImageFiles
from dr_keras.index.milvus.collection import ASKED_ROWS, KNOWN, Collection
from dr_keras.index.milvus.conditions import one_of
from dr_keras.index.milvus.records import MilvusRecords, entry_of, stamp_of
from dr_keras.index.milvus.valid_text import unescaped
from dr_keras.index.records import Stamp

STAMP = ("id", "hash", "size", "mtime_ns")
SKIPPED = "skipped"


class MilvusImageFiles(ImageFiles):
    """What an index in Milvus knows about its images' files.

    Args:
        collection: The index's collection.
        records: What else the index knows about its images.
        guard: The index's lock.
        check_writable: Raises RunError if the index may not be changed.
    """

    def __init__(
        self,
        collection: Collection,
        records: MilvusRecords,
        guard: "threading.RLock",
        check_writable: Callable[[], None],
    ) -> None:
        self._check_writable = check_writable
        self._collection = collection
        self._records = records
        self._guard = guard

    def stamps(self, ids: Several[str] | None = None) -> dict[str, Stamp]:
        with self._guard:
            if ids is None:
                parts = self._collection.scan([*STAMP, "added"])
                found = sorted((one for part in parts for one in part), key=lambda one: (one["added"], one["row"]))
                return {unescaped(one["id"]): stamp_of(one) for one in found}
            rows = self._records.rows_of(ids)
            known = self._collection.rows(rows.values(), STAMP)
        return {id: stamp_of(known[row]) for id, row in rows.items() if row in known}

    def ids_by_stamp(self, stamps: Several[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
        found: dict[tuple[int, int], list[str]] = {}
        times = list({time for _, time in stamps})
        wanted = set(stamps)
        with self._guard:
            for start in range(0, len(times), ASKED_ROWS):
                inside = ", ".join(map(str, times[start : start + ASKED_ROWS]))
                for part in self._collection.scan(STAMP, f"mtime_ns in [{inside}]"):
                    for one in part:
                        if (key := (int(one["size"]), int(one["mtime_ns"]))) in wanted:
                            found.setdefault(key, []).append(unescaped(one["id"]))
        return found

    def ids_by_hash(self, hashes: Several[bytes]) -> dict[bytes, list[str]]:
        found: dict[bytes, list[str]] = {}
        with self._guard:
            parts = self._collection.scan(["id", "hash", "added"], one_of("hash", [hash.hex() for hash in hashes]))
            rows = sorted((one for part in parts for one in part), key=lambda one: (one["added"], one["row"]))
        for one in rows:
            found.setdefault(bytes.fromhex(one["hash"]), []).append(unescaped(one["id"]))
        return found

    def forget_stamps(self, ids: Several[str]) -> None:
        with self._guard:
            self._check_writable()
            self._records.known_rows(ids)
            self._stamp(dict.fromkeys(ids, (None, None, None)))
            self._collection.changed()

    def change_root(self, root: str, stamps: Mapping[str, Stamp]) -> None:
        with self._guard:
            self._check_writable()
            self._stamp(stamps)
            self._collection.change(root=root)

    def _stamp(self, stamps: Mapping[str, Stamp]) -> None:
        """Changes the stamps of images, by id."""
        rows = list(self._records.rows_of(stamps).values())
        for start in range(0, len(rows), ASKED_ROWS):
            found = self._collection.rows(rows[start : start + ASKED_ROWS], [*KNOWN, "added", "vector"]).values()
            entries = [entry_of(one) for one in found]
            new = [
                replace(entry, hash=hash, size=size, mtime_ns=time)
                for entry in entries
                for hash, size, time in [stamps[entry.id]]
            ]
            vectors = np.array([one["vector"] for one in found], np.float32)
            self._collection.put(new, vectors, [int(one["added"]) for one in found])

    def skipped(self) -> dict[str, tuple[int | None, int | None, str]]:
        with self._guard:
            found = self._collection.values(SKIPPED)
        return {id: (size, mtime_ns, reason) for id, (size, mtime_ns, reason) in found.items()}

    def skip(self, files: Mapping[str, tuple[int | None, int | None, str]]) -> None:
        with self._guard:
            self._check_writable()
            self._collection.keep({f"{SKIPPED}/{id}": list(what) for id, what in files.items()})

    def unskip(self, ids: Iterable[str]) -> None:
        with self._guard:
            self._check_writable()
            self._collection.forget([f"{SKIPPED}/{id}" for id in ids])
