"""Takes files into an index, some at a time: `look` reads and embeds them, `keep` writes what was found to the index.

They may be on different machines.
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dr_keras.data.decoding import decode_with_parts
from dr_keras.data.exif import merged, without_facts
from dr_keras.data.formats import needs_decoder
from dr_keras.data.image_ids import url_of
from dr_keras.data.remote_files import Status, download
from dr_keras.index.file_stamps import file_stamps
from dr_keras.index.index import Entry, Index
from dr_keras.index.reader import Reader
from dr_keras.index.records import Stamp

DOWNLOADED_BYTES = 64 * 2**20  # of files that are on the disk at a time
DOWNLOADED_FILES = 256


@dataclass(frozen=True)
class Known:
    """What is known of new and changed files before they are read.

    Attributes:
        ids: The id of each, by path.
        folder_classes: The class that each gets from its folder, by path.
        statuses: Size and time of change of those on object stores, by path.
        stamps: Of those that are in the index, by id.
        own_classes: The classes of the run's own data.
        label, attributes: Given to all of them.
    """

    ids: Mapping[str, str]
    folder_classes: Mapping[str, str]
    statuses: Mapping[str, Status] = field(default_factory=dict)
    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    own_classes: Collection[str] = ()
    label: str | None = None
    attributes: Mapping[str, Any] | None = None

    def of(self, files: Sequence[str]) -> "Known":
        """What is known of some of them."""
        ids = {file: self.ids[file] for file in files}
        return replace(
            self,
            ids=ids,
            folder_classes={file: self.folder_classes[file] for file in files},
            statuses={file: self.statuses[file] for file in files if file in self.statuses},
            stamps={id: self.stamps[id] for id in ids.values() if id in self.stamps},
        )


@dataclass(frozen=True)
class Looked:
    """What reading some files has found.

    Attributes:
        stamps: Of each file, by path.
        same: Those whose content is as the index knows it.
        failures: Why others could not be read.
        facts: What the rest say of themselves, see `dr_keras.data.exif`, or None if nobody asked; by path, in the order
            of their vectors.
        vectors: (n, D) of the rest; with parts (n, 1 + P, D).
    """

    stamps: dict[str, Stamp]
    same: set[str]
    failures: dict[str, str]
    facts: dict[str, dict[str, Any] | None]
    vectors: np.ndarray | None

    @classmethod
    def together(cls, found: Sequence["Looked"]) -> "Looked":
        """What was found in several parts."""
        vectors = [one.vectors for one in found if one.vectors is not None]
        return cls(
            {file: stamp for one in found for file, stamp in one.stamps.items()},
            {file for one in found for file in one.same},
            {file: reason for one in found for file, reason in one.failures.items()},
            {file: facts for one in found for file, facts in one.facts.items()},
            np.concatenate(vectors) if vectors else None,
        )


@dataclass(frozen=True)
class Done:
    """What became of some files.

    Attributes:
        files: How many they were.
        added, updated: How many were added, and embedded again.
        unread: Why others could not be read, by id.
    """

    files: int
    added: int = 0
    updated: int = 0
    unread: Mapping[str, str] = field(default_factory=dict)


Through = Callable[[Index, Known, Sequence[str]], Iterator[Done]]
"""Takes files into an index that is open for writing; says of some at a time what became of them."""


def look(files: Sequence[str], known: Known, reader: Reader, processes: int | None = None) -> Looked:
    """Reads files, and embeds those that are new or have another content.

    Args:
        files: Paths, and addresses of files on object stores.
        known: What is known of them.
        reader: How files become vectors.
        processes: As for `dr_keras.data.decoding.decode_files`.
    """
    near = {file: file for file in files if url_of(file) is None}
    found = [_look(near, known, reader, processes)] if near else []
    for some in _portions([file for file in files if file not in near], known.statuses):
        with tempfile.TemporaryDirectory(prefix="dr_keras-") as folder:
            places = download(some, folder)
            good = {file: place for file, place in places.items() if isinstance(place, str)}
            found.append(_look(good, known, reader, processes))
        bad = {file: error for file, error in places.items() if isinstance(error, OSError)}
        failures = {file: f"cannot be read: {error.strerror or error}" for file, error in bad.items()}
        found.append(Looked({file: (None, *known.statuses[file]) for file in bad}, set(), failures, {}, None))
    return Looked.together(found)


def keep(index: Index, known: Known, looked: Looked) -> Done:
    """Writes to an index what `look` has found."""
    ids = known.ids
    old = entries_of(index, [id for file in looked.stamps if (id := ids[file]) in known.stamps])
    # Another process may have changed or removed it meanwhile; the next sync will see.
    same = [file for file in looked.same if ids[file] in old and old[ids[file]].hash == looked.stamps[file][0]]
    if same:
        index.put([_entry(file, looked.stamps[file], known, old) for file in same], None)
    if looked.vectors is not None:
        entries = [_entry(file, looked.stamps[file], known, old, facts) for file, facts in looked.facts.items()]
        index.put(entries, looked.vectors)
    # Those that are not valid images are not tried again until they change, and leave the index. A file that cannot be
    # opened now, or whose decoder is not installed, may become readable later, so the index keeps its entry.
    broken = {
        ids[file]: (*looked.stamps[file][1:], reason)
        for file, reason in looked.failures.items()
        if looked.stamps[file][0] is not None and not needs_decoder(reason)
    }
    if broken:
        index.image_files.skip(broken)
        index.remove([id for id in broken if id in old])
    updated = sum(ids[file] in known.stamps for file in looked.facts)
    unread = {ids[file]: reason for file, reason in looked.failures.items()}
    return Done(len(looked.stamps), len(looked.facts) - updated, updated, unread)


def entries_of(index: Index, ids: Sequence[str]) -> dict[str, Entry]:
    """The entries of the images that are in the index, by id."""
    rows = index.records.rows_of(ids)
    return dict(zip(rows, index.records.entries(list(rows.values())), strict=True))


def with_values(entry: Entry, label: str | None, attributes: Mapping[str, Any] | None) -> Entry:
    """An entry with another label, if one is given, and with more attributes."""
    return replace(entry, label=label or entry.label, attributes=merged(entry.attributes, attributes or {}))


def _look(places: Mapping[str, str], known: Known, reader: Reader, processes: int | None) -> Looked:
    """`look`, given where the content of each file is."""
    stamps = dict(zip(places, file_stamps(list(places.values())), strict=True))
    stamps |= {file: (stamps[file][0], *known.statuses[file]) for file in places if file in known.statuses}
    same = {
        file for file, (hash, *_) in stamps.items() if hash and known.stamps.get(known.ids[file], [None])[0] == hash
    }
    other = [file for file in places if file not in same]
    block = decode_with_parts(
        [places[file] for file in other],
        reader.size,
        reader.resize,
        facts=reader.exif,
        parts=reader.parts,
        processes=processes,
    )
    failed = block.failures
    good = [row for row in range(len(other)) if row not in failed]
    vectors = reader.vectors(block.pixels[good] if failed else block.pixels) if good else None
    facts = {other[row]: block.facts.get(row) for row in good}
    return Looked(stamps, same, {other[row]: reason for row, reason in failed.items()}, facts, vectors)


def _portions(urls: Iterable[str], statuses: Mapping[str, Status]) -> Iterator[list[str]]:
    """Yields files in portions of at most `DOWNLOADED_BYTES`, or of one file."""
    portion: list[str] = []
    size = 0
    for url in urls:
        own = statuses[url][0] or 0
        if portion and (size + own > DOWNLOADED_BYTES or len(portion) == DOWNLOADED_FILES):
            yield portion
            portion, size = [], 0
        portion.append(url)
        size += own
    if portion:
        yield portion


def _entry(
    file: str, stamp: Stamp, known: Known, old: Mapping[str, Entry], facts: Mapping[str, Any] | None = None
) -> Entry:
    """The entry of a file.

    Args:
        file: The file.
        stamp: Its stamp.
        known: What is known of files.
        old: The entries of images that are in the index, by id.
        facts: What it says of itself, or None if it is as before.
    """
    id = known.ids[file]
    if id not in old:
        own = known.label or _class(id, known.own_classes, known.folder_classes[file])
        return Entry(id, own, "", *stamp, merged(facts or {}, known.attributes or {}))
    hash, size, time = stamp
    before = old[id].attributes
    kept = before if facts is None else merged(facts, without_facts(before))
    stamped = replace(old[id], hash=hash, size=size, mtime_ns=time, attributes=kept)
    return with_values(stamped, known.label, known.attributes)


def _class(id: str, classes: Collection[str], default: str) -> str:
    """The innermost folder of an id that is in `classes`, else the default."""
    folders = [part for part in id.split("/")[:-1] if part]
    return next((part for part in reversed(folders) if part in classes), default)
