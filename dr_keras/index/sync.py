"""Syncs an index with images on disk: reads only new or changed files, and can remove images whose files are gone."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dr_keras.data.catalog import data_folder
from dr_keras.data.decoding import decode_with_parts, pixels_shape
from dr_keras.data.exif import merged, without_facts
from dr_keras.data.folders import Walker, folders_with_pictures, has_pictures
from dr_keras.data.formats import needs_decoder
from dr_keras.data.image_ids import image_id, image_path
from dr_keras.data.splits import meaning
from dr_keras.errors import InputError
from dr_keras.index.file_stamps import file_stamps, file_status
from dr_keras.index.index import NO_CLASS, Entry, Index
from dr_keras.index.records import Stamp
from dr_keras.index.sync_report import SyncReport
from dr_keras.invocation import command
from dr_keras.progress import bar

# Images that are decoded, embedded and committed together: the most that a killed process loses. Each chunk starts
# child processes for decoding, which takes a third of a second. The first chunk shows how long an image takes.
CHUNK_IMAGES = 8192
FIRST_CHUNK_IMAGES = 256
CHUNK_SECONDS = 15.0
CHUNK_BYTES = 256 * 2**20  # of pixels per chunk; large images come in smaller chunks


@dataclass(frozen=True)
class Reader:
    """How image files become vectors.

    Attributes:
        embed: (n, size, size, 3) uint8 -> (n, D) float32 of unit length.
        size, resize: How images are decoded, see `dr_keras.data.images.decode`.
        exif: Whether what a file says of itself becomes attributes, see `dr_keras.data.exif`.
        parts: Which parts of a file are embedded too, see `dr_keras.data.parts.windows`; 0 for none.
    """

    embed: Callable[[np.ndarray], np.ndarray]
    size: int
    resize: str
    exif: bool = True
    parts: int = 0

    def vectors(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds decoded files: (n, D), or with parts (n, 1 + P, D) of (n, 1 + P, size, size, 3), as an index takes."""
        if not self.parts:
            return self.embed(pixels)
        return self.embed(pixels.reshape(-1, *pixels.shape[2:])).reshape(*pixels.shape[:2], -1)


def chunk_images(reader: Reader) -> int:
    """Returns how many images are decoded and embedded together at most."""
    return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(pixels_shape(reader.size, reader.parts))))


def timed_chunks(files: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """Yields all files in chunks, each of which takes the caller about `CHUNK_SECONDS` after the first.

    Args:
        files: The files.
        most: The largest chunk.
    """
    start, size = 0, min(FIRST_CHUNK_IMAGES, most)
    while start < len(files):
        chunk = files[start : start + size]
        started = time.monotonic()
        yield chunk
        start += len(chunk)
        per_image = (time.monotonic() - started) / len(chunk)
        size = max(1, min(most, 8 * size, round(CHUNK_SECONDS / max(per_image, 1e-6))))


def add_files(
    index: Index,
    paths: Iterable[str | os.PathLike[str]],
    reader: Reader,
    *,
    label: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    console: Console,
) -> SyncReport:
    """Adds files and all images below folders; indexed images that have not changed are left alone.

    A file that can be reached by several paths, through symbolic or hard links, is one image and is added once.

    Args:
        index: Open for writing.
        paths: Files and folders.
        reader: How files become vectors.
        label: The class of all of them. By default the innermost folder that is a class of the run's own data, else the
            first folder below the given one; train/, val/ and the like are skipped.
        attributes: Set on all of them; an image keeps its other attributes.
        console: Shows progress.

    Returns:
        What was done. Images are committed in chunks of some seconds; after an interruption, the next call continues.

    Raises:
        InputError: A path does not exist, or a folder holds no image.
        RunError: The index cannot be written.
    """
    walker = Walker()
    files: dict[str, str] = {}  # by path, the class given by its folder
    again = []  # files that were named explicitly are tried even if they could not be read before
    for path in paths:
        place = os.path.abspath(path)
        if os.path.isdir(place):
            known = len(walker.troubles)
            found = walker.pictures(place)
            if not found and len(walker.troubles) == known and not has_pictures(place):  # nor walked before
                raise InputError(f"{path} holds no images")
            files |= _classes(found, place)
        elif os.path.lexists(place):
            files.setdefault(place, NO_CLASS)
            walker.add(place)
            again.append(image_id(place, index.root))
        else:
            raise InputError(f"{path} does not exist")
    if again:
        index.image_files.unskip(again)
    for other in walker.again():
        files.pop(other, None)
    report = take_files(index, files, reader, label, attributes, console)
    return replace(report, unlisted=walker.troubles)


def sync_folder(
    index: Index,
    folder: str | os.PathLike[str],
    reader: Reader,
    *,
    console: Console,
    empty: bool = False,
    remove_missing: bool = False,
) -> SyncReport:
    """Syncs the index with a folder: adds images, embeds changed ones again, and finds those that are gone.

    Args:
        index: Open for writing.
        folder: The folder; the index keeps images that are elsewhere, or in folders that cannot be read.
        reader: How files become vectors.
        console: Shows progress.
        empty: Accept a folder without images; else it is taken for a disk that is not mounted.
        remove_missing: Remove from the index the images that are gone.

    Returns:
        What was done.

    Raises:
        InputError: The folder does not exist, cannot be read, or holds no image.
        RunError: The index cannot be written.
    """
    place = os.path.abspath(folder)
    if not os.path.isdir(place):
        raise InputError(f"there is no folder {folder}")
    walker = Walker()
    found = walker.pictures(place)
    if walker.troubles and walker.troubles[0][0] == place:
        raise InputError(f"{folder} cannot be read: {walker.troubles[0][1]}")
    if not found and not walker.troubles and not empty:
        raise InputError(f"{folder} holds no images; if that is meant, remove them with {command('index')} remove")
    links = walker.again()
    files = _classes((file for file in found if file not in links), place)
    report = take_files(index, files, reader, None, None, console)
    gone = _gone(index.root, place, found, [name for name, _ in walker.troubles])
    missing = [id for _, id, *_ in index.records.listing() if gone(id)]
    if remove_missing:
        index.remove(missing)
    if forgotten := [id for id in index.image_files.skipped() if gone(id)]:
        index.image_files.unskip(forgotten)
    removed = len(missing) if remove_missing else 0
    return replace(report, removed=removed, missing=missing, unlisted=walker.troubles)


def folder_classes(folder: str | os.PathLike[str]) -> frozenset[str]:
    """Returns the classes of the images in a folder: its subfolders, or those of its splits' folders."""
    place = Path(folder)
    names = folders_with_pictures(place)
    splits = _split_test(place)
    return frozenset(
        name
        for outer in names
        for name in ((folders_with_pictures(place / outer) or [outer]) if splits(outer) else [outer])
    )


def _gone(root: Path, folder: str, found: Iterable[str], unlisted: Sequence[str]) -> Callable[[str], bool]:
    """Returns a function that tells whether the image with an id was in a folder and is no longer there.

    Args:
        root: The folder that ids are relative to.
        folder: The absolute path of the folder.
        found: The images found in it.
        unlisted: Files and folders in it that could not be accessed, so their content may still be there.
    """
    present = {image_id(file, root) for file in found}
    inside = os.path.join(folder, "")
    unknown = tuple(os.path.join(name, "") for name in unlisted)

    def gone(id: str) -> bool:
        file = image_path(id, root)
        if id in present or not file.startswith(inside) or os.path.lexists(file):  # a named file may have any suffix
            return False
        return file not in unlisted and not file.startswith(unknown)

    return gone


def _classes(files: Iterable[str], place: str) -> dict[str, str]:
    """The class of each file below a folder: the first folder in its path, or the first one below a split's folder."""
    is_split = _split_test(Path(place))

    def class_of(file: str) -> str:
        folders = Path(os.path.relpath(file, place)).parts[:-1]
        if len(folders) > 1 and is_split(folders[0]):
            folders = folders[1:]
        return folders[0] if folders else NO_CLASS

    return {file: class_of(file) for file in files}


def _split_test(place: Path) -> Callable[[str], bool]:
    """Returns a function that tells whether the name of a subfolder of a folder is that of a split, not a class."""
    try:
        splits = data_folder(place)[1]
    except InputError:  # ambiguous, which matters for training, but here a class is only a name
        splits = None

    def is_split(folder: str) -> bool:
        if splits:
            return splits.kind(folder) is not None
        known = meaning(folder)
        return known is not None and not known[1]

    return is_split


def take_files(
    index: Index,
    files: Mapping[str, str],
    reader: Reader,
    label: str | None,
    attributes: Mapping[str, Any] | None,
    console: Console,
) -> SyncReport:
    """Adds new files and embeds changed ones again.

    Args:
        index: Open for writing.
        files: The class that each file gets from its folder, by absolute path.
        reader, label, attributes, console: As in `add_files`.

    Returns:
        What was done.
    """
    root = index.root
    ids = {file: image_id(file, root) for file in files}
    known, bad = index.image_files.stamps(ids.values()), index.image_files.skipped()
    fresh, touched = [], []
    unread: dict[str, str] = {}
    unknown: dict[str, tuple[int | None, int | None]] = {}
    for file, id in ids.items():
        status = file_status(file)
        if id in known and known[id][1:] == status:
            touched.append(id)
        elif id in bad and bad[id][:2] == status:
            unread[id] = bad[id][2]
        else:
            fresh.append(file)
            if id not in known:
                unknown[file] = status
    others = _other_names(index, unknown)
    if others:
        touched += others.values()
        fresh = [file for file in fresh if file not in others]
    added = updated = 0
    if fresh:
        batch = _Batch(index, reader, ids, files, known, index.records.own_classes(), label, attributes)
        with bar(f"embedding {len(fresh):,} images", len(fresh), console) as advance:
            for chunk in timed_chunks(fresh, chunk_images(reader)):
                new, changed, failed = batch.take(chunk)
                added, updated, unread = added + new, updated + changed, unread | failed
                advance(len(chunk))
    if label is not None or attributes:
        for start in range(0, len(touched), CHUNK_IMAGES):
            part = touched[start : start + CHUNK_IMAGES]
            old = _entries(index, part).values()
            index.put([_with(entry, None, label, attributes) for entry in old], None)
    return SyncReport(added, updated, len(files) - added - updated - len(unread), unread=unread)


@dataclass(frozen=True)
class _Batch:
    """Adds new and changed files to an index, one chunk at a time."""

    index: Index
    reader: Reader
    ids: Mapping[str, str]  # by path
    folder_classes: Mapping[str, str]  # by path
    known: Mapping[str, Stamp]  # by id
    own_classes: set[str]
    label: str | None
    attributes: Mapping[str, Any] | None

    def take(self, files: Sequence[str]) -> tuple[int, int, dict[str, str]]:
        """Returns how many were added, how many were embedded again, and the reason for each id that was not read."""
        index, ids, known = self.index, self.ids, self.known
        stamps = dict(zip(files, file_stamps(files), strict=True))
        # A file is not embedded again if its time has changed but its content has not.
        old = _entries(index, [ids[file] for file in files if ids[file] in known])
        same = {
            file for file in files if ids[file] in old and stamps[file][0] and old[ids[file]].hash == stamps[file][0]
        }
        if same:
            index.put([self._entry(file, stamps[file], old) for file in files if file in same], None)
        other = [file for file in files if file not in same]
        pixels, failures, facts = self._decoded(other)
        good = [row for row in range(len(other)) if row not in failures]
        if good:
            entries = [self._entry(other[row], stamps[other[row]], old, facts.get(row)) for row in good]
            index.put(entries, self.reader.vectors(pixels[good] if failures else pixels))
        self._keep_failures({other[row]: reason for row, reason in failures.items()}, stamps)
        changed = sum(ids[other[row]] in known for row in good)
        return len(good) - changed, changed, {ids[other[row]]: reason for row, reason in failures.items()}

    def _decoded(self, files: Sequence[str]) -> tuple[np.ndarray, dict[int, str], dict[int, dict[str, Any]]]:
        """Pixels, failures by row, and what each file says of itself by row."""
        reader = self.reader
        block = decode_with_parts(files, reader.size, reader.resize, facts=reader.exif, parts=reader.parts)
        return block.pixels, block.failures, block.facts

    def _entry(
        self, file: str, stamp: Stamp, known: Mapping[str, Entry], facts: Mapping[str, Any] | None = None
    ) -> Entry:
        """The entry of a file.

        Args:
            file: The file.
            stamp: Its stamp.
            known: The entries of the images that are in the index, by id.
            facts: What it says of itself, or None if it is as before.
        """
        id = self.ids[file]
        if id in known:
            old = _with(known[id], stamp, None, None)
            kept = old.attributes if facts is None else merged(facts, without_facts(old.attributes))
            return replace(old, label=self.label or old.label, attributes=merged(kept, self.attributes or {}))
        own = self.label or _class(id, self.own_classes, self.folder_classes[file])
        return Entry(id, own, "", *stamp, merged(facts or {}, self.attributes or {}))

    def _keep_failures(self, failures: Mapping[str, str], stamps: Mapping[str, Stamp]) -> None:
        """Records files that are not valid images, and removes them from the index.

        A file that cannot be opened now, or whose decoder is not installed, may become readable later, so the index
        keeps its entry.
        """
        broken = {
            self.ids[file]: (*stamps[file][1:], reason)
            for file, reason in failures.items()
            if stamps[file][0] is not None and not needs_decoder(reason)
        }
        if broken:
            self.index.image_files.skip(broken)
            self.index.remove([id for id in broken if id in self.known])


def _other_names(index: Index, files: Mapping[str, tuple[int | None, int | None]]) -> dict[str, str]:
    """The ids by which the index already knows files, through a link or another path; `files` has their status."""
    found: dict[str, str] = {}
    stamps = {(size, time) for size, time in files.values() if size is not None and time is not None}
    known = index.image_files.ids_by_stamp(stamps) if stamps else {}
    for file, (size, mtime_ns) in files.items():
        for id in known.get((size or 0, mtime_ns or 0), ()):
            try:
                if Path(file).samefile(image_path(id, index.root)):
                    found[file] = id
                    break
            except OSError:
                continue  # that file is gone
    return found


def _entries(index: Index, ids: Sequence[str]) -> dict[str, Entry]:
    """The entries of the images that are in the index, by id."""
    rows = index.records.rows_of(ids)
    return dict(zip(rows, index.records.entries(list(rows.values())), strict=True))


def _with(entry: Entry, stamp: Stamp | None, label: str | None, attributes: Mapping[str, Any] | None) -> Entry:
    """An entry, updated with the given values."""
    hash, size, time = stamp or (entry.hash, entry.size, entry.mtime_ns)
    return replace(
        entry,
        hash=hash,
        size=size,
        mtime_ns=time,
        label=label or entry.label,
        attributes=merged(entry.attributes, attributes or {}),
    )


def _class(id: str, classes: set[str], default: str) -> str:
    """The innermost folder of an id that is in `classes`, else the default."""
    folders = [part for part in id.split("/")[:-1] if part]
    return next((part for part in reversed(folders) if part in classes), default)
