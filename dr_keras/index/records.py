"""What an index knows about its images besides their vectors: ids, labels, file stamps."""

import json
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dr_keras.data.image_ids import image_id, url_of
from dr_keras.errors import InputError
from dr_keras.filenames import told_apart
from dr_keras.index.database import as_text

NO_CLASS = "-"  # the label of an image that is not in a class folder
MAX_SUGGESTIONS = 5
MAX_CAMERAS = 100

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


class Records(ABC):
    """What an index knows about its images, as of its current state; available as `Index.records`.

    Args:
        guard: The index's lock, which blocks `refresh` in other threads during a query.

    Attributes:
        withheld: Attributes that entries do not have, see `Index.withhold`.
    """

    def __init__(self, guard: "threading.RLock") -> None:
        self._guard = guard
        self.withheld: frozenset[str] = frozenset()

    @property
    @abstractmethod
    def _place(self) -> str:
        """Where the index is."""

    @property
    @abstractmethod
    def _root(self) -> str:
        """The folder that ids are relative to."""

    @abstractmethod
    def entries(self, rows: Sequence[int] | np.ndarray) -> list[Entry]:
        """Returns what is known about the images in the given rows.

        Args:
            rows: (n,) row numbers of images, in any order.

        Returns:
            An entry for each, in the same order.
        """

    @abstractmethod
    def listing(self) -> list[tuple[int, str, str, str]]:
        """Row, id, label and split of every image, held-out ones included, in the order of their rows."""

    @abstractmethod
    def count(self) -> int:
        """How many images the index holds, held-out ones included."""

    @abstractmethod
    def split_counts(self) -> dict[str, int]:
        """How many images each split has, by name; images that were added later have the split ''."""

    @abstractmethod
    def label_count(self) -> int:
        """How many classes the images have, held-out ones included."""

    @abstractmethod
    def class_names(self) -> dict[str, str]:
        """The display name of each label; the label itself if it has no other."""

    @abstractmethod
    def class_counts(self) -> dict[str, int]:
        """How many images of each label a search may return, by label."""

    @abstractmethod
    def photos(self) -> Photos:
        """What conditions can ask of the photos among the images that a search may return."""

    @abstractmethod
    def own_classes(self) -> set[str]:
        """The labels of the run's own data, as far as the index holds it."""

    def row(self, id: str) -> int | None:
        """The row of an id, or None if it is not in the index."""
        return self.rows_of([id]).get(id)

    @abstractmethod
    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The rows of the ids that are in the index."""

    def known_rows(self, ids: Collection[str]) -> dict[str, int]:
        """The rows of ids, all of which must be in the index.

        Raises:
            InputError: An id is not in the index, or is given twice.
        """
        check_unique(ids)
        rows = self.rows_of(ids)
        if len(rows) < len(ids):
            unknown = next(id for id in ids if id not in rows)
            raise InputError(f"{unknown!r} is not in the index {self._place}")
        return rows

    def find(self, name: str, *, hint: str = "") -> int:
        """Finds the row of an image by its id, its path, or its base name if that is unique.

        Args:
            name: The name, in either Unicode normalization form.
            hint: What the error adds when no image has that name, such as ", and there is no such file".

        Raises:
            InputError: No image has that name (similar names are suggested), or several do (they are listed).
        """
        wanted = url_of(name) or PurePosixPath(name).as_posix()
        inside = image_id(wanted, self._root)
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
        with self._guard:
            if self.row(pattern) is not None:
                return [pattern]
            if not any(sign in pattern for sign in "*?"):
                return [self.entries([self.find(pattern)])[0].id]
            return sorted(self._ids_like(pattern))

    @abstractmethod
    def _ids_like(self, pattern: str) -> list[str]:
        """The ids that match a pattern, in which * stands for any text and ? for any character."""

    @abstractmethod
    def _called(self, inside: str) -> list[tuple[int, str]]:
        """Row and id of the images whose ids end in exactly this path, or else in one that looks the same."""

    @abstractmethod
    def _similar_names(self, wanted: str) -> list[str]:
        """A few base names that are spelled like another, the most similar first."""


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
