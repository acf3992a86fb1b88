"""Images on the disk into an index: only what is new or has changed is read, and what is gone can be removed."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dr_keras.atomic_files import sha256_of
from dr_keras.data.catalog import data_folder
from dr_keras.data.decoding import decode_files
from dr_keras.data.folders import Trouble, Walker
from dr_keras.data.formats import needs_decoder
from dr_keras.data.splits import meaning
from dr_keras.errors import InputError, RunError
from dr_keras.index.index import NO_CLASS, Entry, Index
from dr_keras.progress import bar

# Images decoded, embedded and committed together: what a killed process loses at most. Each time child processes start
# to decode, which takes a third of a second.
CHUNK = 8192
CHUNK_BYTES = 256 * 2**20  # of their pixels, where they are large
SHOWN = 10  # names, and reasons, that a report shows of each kind

Stamp = tuple[bytes | None, int | None, int | None]


@dataclass(frozen=True)
class Reader:
    """How files become vectors.

    Attributes:
        embed: an `Embedder`, or what calls one.
        size, resize: see `dr_keras.data.images.decode`.
    """

    embed: Callable[[np.ndarray], np.ndarray]
    size: int
    resize: str


@dataclass(frozen=True)
class Report:
    """What was done.

    Attributes:
        added, updated, unchanged, removed: how many images were added, embedded again, left as they were, and removed.
        unread: files that look like pictures and could not be read, by id, with the reason.
        missing: ids of the index whose files are gone from the folder.
        unlisted: folders and files that could not be looked at, with the reason; what lies in them stays as it is.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    unread: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    unlisted: Sequence[Trouble] = ()

    @property
    def skipped(self) -> int:
        """How many files could not be read."""
        return len(self.unread)

    def __str__(self) -> str:
        parts = [f"{self.added:,} added", f"{self.updated:,} updated", f"{self.unchanged:,} unchanged"]
        if self.removed:
            parts.append(f"{self.removed:,} removed")
        if self.missing and not self.removed:
            parts.append(f"{len(self.missing):,} missing")
        if self.unread:
            parts.append(f"{self.skipped:,} could not be read")
        if self.unlisted:
            parts.append(f"{len(self.unlisted):,} could not be looked at")
        return ", ".join(parts)

    def details(self) -> list[str]:
        """Lines that name what `str` only counts, the first `SHOWN` of each kind."""
        by_reason = defaultdict(list)
        for id, reason in self.unread.items():
            by_reason[reason].append(id)
        lines = [
            f"could not be read: {named(ids)}{':' if len(ids) > 1 else ''} {reason}"
            for reason, ids in by_reason.items()
        ]
        lines = _first(sorted(lines), "reasons")
        lines += [f"could not be looked at: {name}: {reason}" for name, reason in self.unlisted[:SHOWN]]
        if self.missing and not self.removed:
            lines += _first([f"missing: {id}" for id in self.missing], "images whose files are gone")
            lines.append("--remove-missing removes those that are missing")
        return lines


def named(ids: Sequence[str]) -> str:
    """The first of them by its name, and how many more there are."""
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1:,} more"


def _first(lines: list[str], of_what: str) -> list[str]:
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN:,} more {of_what}"] if len(lines) > SHOWN else [])


def add_files(
    index: Index,
    paths: Iterable[str | os.PathLike[str]],
    reader: Reader,
    *,
    label: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    console: Console,
) -> Report:
    """Adds files and all pictures below folders; those that are in the index and have not changed are left alone.

    A file that is reached by several paths, by symbolic or hard links, is one picture and is added once.

    Args:
        index: open for writing.
        paths: files and folders.
        reader: how files become vectors.
        label: the class of all of them. By default the innermost folder that is a class of the run's own data, else the
            first folder below the one that was given; train/, val/ and the like are passed over.
        attributes: to set on all of them; others that an image has stay.
        console: shows progress.

    Returns:
        What was done. Every `CHUNK` images are acknowledged together; stopped in between, the next call goes on.

    Raises:
        InputError: a path does not exist, or a folder holds no picture.
        RunError: the index cannot be written.
    """
    walker = Walker()
    files: dict[str, str] = {}  # by path, the class that its folder gives it
    again = []  # those that were named themselves are tried although they could not be read before
    for path in paths:
        place = os.path.abspath(path)
        if os.path.isdir(place):
            known = len(walker.troubles)
            found = walker.pictures(place)
            if not found and len(walker.troubles) == known and not files:
                raise InputError(f"{path} holds no images")
            files |= _classes(found, place)
        elif os.path.lexists(place):
            files.setdefault(place, NO_CLASS)
            walker.add(place)
            again.append(_id(index.root, place))
        else:
            raise InputError(f"{path} does not exist")
    if again:
        index.unskip(again)
    for other in walker.again():
        files.pop(other, None)
    report = _take(index, files, reader, label, attributes, console)
    return replace(report, unlisted=walker.troubles)


def sync_folder(
    index: Index,
    folder: str | os.PathLike[str],
    reader: Reader,
    *,
    console: Console,
    empty: bool = False,
    remove_missing: bool = False,
) -> Report:
    """Makes the index agree with a folder: adds, embeds again what has changed, and finds what is gone from it.

    Args:
        index: open for writing.
        folder: the folder; images of the index that lie elsewhere stay, and so do those in folders that cannot be read.
        reader: how files become vectors.
        console: shows progress.
        empty: whether a folder without images may be meant; else it is taken for a disk that is not there.
        remove_missing: remove from the index what is gone.

    Raises:
        InputError: the folder does not exist, cannot be read, or holds no picture.
        RunError: the index cannot be written.
    """
    place = os.path.abspath(folder)
    if not os.path.isdir(place):
        raise InputError(f"there is no folder {folder}")
    walker = Walker()
    found = walker.pictures(place)
    if walker.troubles and walker.troubles[0][0] == place:
        raise InputError(f"{folder} cannot be read: {walker.troubles[0][1]}")
    if not found and not walker.troubles and not empty:
        raise InputError(f"{folder} holds no images; if that is meant, remove them with index.py remove")
    links = walker.again()
    files = _classes((file for file in found if file not in links), place)
    report = _take(index, files, reader, None, None, console)
    present = {_id(index.root, file) for file in found}
    inside = os.path.join(place, "")
    hidden = tuple(name for trouble, _ in walker.troubles for name in (trouble, os.path.join(trouble, "")))

    def gone(id: str) -> bool:
        """Whether an image of this folder is not there any more; one that was named may have any ending."""
        file = os.path.join(index.root, id)
        if id in present or not file.startswith(inside) or os.path.lexists(file):
            return False
        return not any(file == name or (name.endswith(os.sep) and file.startswith(name)) for name in hidden)

    missing = [id for _, id, *_ in index.all_entries() if gone(id)]
    if remove_missing:
        index.remove(missing)
    if forgotten := [id for id in index.skipped() if gone(id)]:
        index.unskip(forgotten)
    removed = len(missing) if remove_missing else 0
    return replace(report, removed=removed, missing=missing, unlisted=walker.troubles)


def _classes(files: Iterable[str], place: str) -> dict[str, str]:
    """The class that its folder gives each file below a folder: the first one, or the one below a split's."""
    try:
        splits = data_folder(Path(place))[1]
    except InputError:  # both can be meant; for training that has to be told, here a class is only a name
        splits = None

    def is_split(folder: str) -> bool:
        if splits:
            return splits.kind(folder) is not None
        known = meaning(folder)
        return known is not None and not known[1]

    def class_of(file: str) -> str:
        folders = Path(os.path.relpath(file, place)).parts[:-1]
        if len(folders) > 1 and is_split(folders[0]):
            folders = folders[1:]
        return folders[0] if folders else NO_CLASS

    return {file: class_of(file) for file in files}


def repair(index: Index, reader: Callable[[], Reader], *, console: Console) -> Report:
    """Mends what `Index.verify` finds: embeds damaged images again, and removes those whose files are gone.

    Args:
        index: open for writing, with `repair=True`.
        reader: gives how files become vectors; asked only where an image has to be embedded.
        console: shows progress, and what was removed.

    Raises:
        RunError: something else is wrong with it, which cannot be mended.
    """
    damage = index.verify()
    ids = [one.id for one in damage if one.id is not None]
    again = {id for id in ids if os.path.isfile(os.path.join(index.root, id))}
    gone = [id for id in ids if id not in again]
    report = Report(unchanged=len(index) - len(ids), removed=len(gone))
    index.remove(gone)
    for id in gone:
        console.print(f"{id} was removed: its vector is damaged and its file is gone")
    if again:
        index.forget_stamps(again)
        files = {os.path.join(index.root, id): NO_CLASS for id in sorted(again)}
        done = _take(index, files, reader(), None, None, console)
        report = replace(report, updated=done.updated, unread=done.unread)
    index.mend_engine()
    if damage:
        index.compact()  # so that damaged vectors are no longer in the file
    left = index.verify()
    if left:
        raise RunError(
            f"{index.folder} cannot be mended: {left[0].what}; move it away and make it again with index.py add"
        )
    return report


def file_stamps(paths: Sequence[str]) -> list[Stamp]:
    """SHA-256 of the content, size and mtime_ns of files; None for each where a file cannot be read."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(_stamp, paths, chunksize=64))


def _take(
    index: Index,
    files: Mapping[str, str],
    reader: Reader,
    label: str | None,
    attributes: Mapping[str, Any] | None,
    console: Console,
) -> Report:
    """Adds the files that are new, and embeds again those that have changed; `files` gives each one's own class."""
    ids = {file: _id(index.root, file) for file in files}
    known, bad = index.stamps(ids.values()), index.skipped()
    fresh, touched = [], []
    unread: dict[str, str] = {}
    for file, id in ids.items():
        status = _status(file)
        if id in known and known[id][1:] == status:
            touched.append(id)
        elif id in bad and bad[id][:2] == status:
            unread[id] = bad[id][2]
        elif id not in known and (other := _other_name(index, file, status)):
            touched.append(other)
        else:
            fresh.append(file)
    added = updated = 0
    size = max(1, min(CHUNK, CHUNK_BYTES // (3 * reader.size**2)))
    if fresh:
        batch = _Batch(index, reader, ids, files, known, index.own_classes(), label, attributes)
        with bar(f"embedding {len(fresh):,} images", len(fresh), console) as advance:
            for start in range(0, len(fresh), size):
                chunk = fresh[start : start + size]
                new, changed, failed = batch.take(chunk)
                added, updated, unread = added + new, updated + changed, unread | failed
                advance(len(chunk))
    if label is not None or attributes:
        for start in range(0, len(touched), CHUNK):
            part = touched[start : start + CHUNK]
            index.put([_old(index, id, None, label, attributes) for id in part], None)
    return Report(added, updated, len(files) - added - updated - len(unread), unread=unread)


@dataclass(frozen=True)
class _Batch:
    """Takes some new or changed files at a time into an index."""

    index: Index
    reader: Reader
    ids: Mapping[str, str]  # by path
    folders: Mapping[str, str]  # by path, the class that its folder gives it
    known: Mapping[str, Stamp]  # by id
    classes: set[str]
    label: str | None
    attributes: Mapping[str, Any] | None

    def take(self, files: Sequence[str]) -> tuple[int, int, dict[str, str]]:
        """How many were added and how many embedded again, and the ids that could not be read with their reasons."""
        index, ids, known = self.index, self.ids, self.known
        stamps = dict(zip(files, file_stamps(files), strict=True))
        # A file whose time has changed and whose content has not is not embedded again.
        same = {
            file for file in files if ids[file] in known and stamps[file][0] and known[ids[file]][0] == stamps[file][0]
        }
        if same:
            index.put([self._entry(file, stamps[file]) for file in files if file in same], None)
        other = [file for file in files if file not in same]
        pixels, failures = decode_files(other, self.reader.size, self.reader.resize)
        good = [row for row in range(len(other)) if row not in failures]
        if good:
            entries = [self._entry(other[row], stamps[other[row]]) for row in good]
            index.put(entries, self.reader.embed(pixels[good] if failures else pixels))
        self._keep_failures({other[row]: reason for row, reason in failures.items()}, stamps)
        changed = sum(ids[other[row]] in known for row in good)
        return len(good) - changed, changed, {ids[other[row]]: reason for row, reason in failures.items()}

    def _entry(self, file: str, stamp: Stamp) -> Entry:
        id = self.ids[file]
        if id in self.known:
            return _old(self.index, id, stamp, self.label, self.attributes)
        own = self.label or _class(id, self.classes, self.folders[file])
        return Entry(id, own, "", *stamp, dict(self.attributes or {}))

    def _keep_failures(self, failures: Mapping[str, str], stamps: Mapping[str, Stamp]) -> None:
        """Remembers what is no picture. What cannot be read at all now may be read later, and is no reason to forget
        what is known of it; nor is a decoder that is not installed."""
        broken = {
            self.ids[file]: (*stamps[file][1:], reason)
            for file, reason in failures.items()
            if stamps[file][0] is not None and not needs_decoder(reason)
        }
        if broken:
            self.index.skip(broken)
            self.index.remove([id for id in broken if id in self.known])  # what is there now is no image any more


def _other_name(index: Index, file: str, status: tuple[int | None, int | None]) -> str | None:
    """The id by which the index knows a file already, through a link or another path."""
    for id in index.ids_by_stamp(*status):
        try:
            if Path(file).samefile(os.path.join(index.root, id)):
                return id
        except OSError:
            continue  # that one is gone
    return None


def _old(index: Index, id: str, stamp: Stamp | None, label: str | None, attributes: Mapping[str, Any] | None) -> Entry:
    """An image of the index with what is new about it."""
    row = index.row(id)
    assert row is not None
    entry = index.entries([row])[0]
    hash, size, time = stamp or (entry.hash, entry.size, entry.mtime_ns)
    return replace(
        entry,
        hash=hash,
        size=size,
        mtime_ns=time,
        label=label or entry.label,
        attributes={**entry.attributes, **(attributes or {})},
    )


def _id(root: Path, file: str) -> str:
    """The id of a file: its path relative to the root where it lies below it, else its whole path."""
    inside = os.path.join(root, "")
    return file.removeprefix(inside).replace(os.sep, "/")


def _class(id: str, classes: set[str], first: str) -> str:
    folders = [part for part in id.split("/")[:-1] if part]
    return next((part for part in reversed(folders) if part in classes), first)


def _status(path: str) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except OSError:
        return None, None  # gone since it was listed, or a broken link; reading it will say so
    return status.st_size, status.st_mtime_ns


def _stamp(path: str) -> Stamp:
    size, time = _status(path)
    try:
        return sha256_of(path), size, time
    except OSError:
        return None, size, time
