"""Syncs an index with images on disk: reads only new or changed files, and can remove images whose files are gone."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dr_keras.data.catalog import data_folder
from dr_keras.data.decoding import pixels_shape
from dr_keras.data.folders import Walker, folders_with_pictures, has_pictures
from dr_keras.data.image_ids import image_id, image_path, url_of
from dr_keras.data.remote_files import Status, remote_pictures
from dr_keras.data.splits import meaning
from dr_keras.errors import InputError
from dr_keras.index.batch import Done, Known, Through, entries_of, keep, look, with_values
from dr_keras.index.file_stamps import file_status
from dr_keras.index.index import NO_CLASS, Index
from dr_keras.index.reader import Reader
from dr_keras.index.sync_report import SyncReport
from dr_keras.invocation import command
from dr_keras.progress import bar

# Images that are decoded, embedded and committed together: the most that a killed process loses. Each chunk starts
# child processes for decoding, which takes a third of a second. The first chunk shows how long an image takes.
CHUNK_IMAGES = 8192
FIRST_CHUNK_IMAGES = 256
CHUNK_SECONDS = 15.0
CHUNK_BYTES = 256 * 2**20  # of pixels per chunk; large images come in smaller chunks


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
    through: Through | None = None,
) -> SyncReport:
    """Adds files and all images below folders; indexed images that have not changed are left alone.

    A file that can be reached by several paths, through symbolic or hard links, is one image and is added once.

    Args:
        index: Open for writing.
        paths: Files and folders, also on object stores: s3://bucket/folder.
        reader: How files become vectors.
        label: The class of all of them. By default the innermost folder that is a class of the run's own data, else the
            first folder below the given one; train/, val/ and the like are skipped.
        attributes: Set on all of them; an image keeps its other attributes.
        console: Shows progress.
        through: Takes the files that are new or have changed; by default, this process does.

    Returns:
        What was done. Images are committed in chunks of some seconds; after an interruption, the next call continues.

    Raises:
        InputError: A path does not exist, or a folder holds no image.
        RunError: The index cannot be written.
    """
    walker = Walker()
    files: dict[str, str] = {}  # by path, the class given by its folder
    again = []  # files that were named explicitly are tried even if they could not be read before
    statuses: dict[str, Status] = {}
    for path in paths:
        if (url := url_of(path)) is not None:
            listed = remote_pictures(url)
            if not listed:
                raise InputError(f"{url} holds no images")
            files |= _remote_classes(listed, url)
            statuses |= listed
            again += [url] if url in listed else []
            continue
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
    report = take_files(index, files, reader, label, attributes, console, statuses=statuses, through=through)
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
    if url_of(folder) is not None:
        raise InputError(
            f"sync takes a folder of this machine; {command('index')} add {folder} embeds what is new or has changed "
            "there, and images that are gone stay until they are removed"
        )
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
    return {file: _class_in(Path(os.path.relpath(file, place)).parts[:-1], is_split) for file in files}


def _remote_classes(files: Iterable[str], url: str) -> dict[str, str]:
    """The class of each file below an address, likewise; a folder is one of a split if its name alone says so."""
    top = f"{url.partition('://')[2].rstrip('/')}/"
    below = {file: file.partition("://")[2].removeprefix(top) for file in files}
    return {file: _class_in(path.split("/")[:-1], _means_split) for file, path in below.items()}


def _class_in(folders: Sequence[str], is_split: Callable[[str], bool]) -> str:
    if len(folders) > 1 and is_split(folders[0]):
        folders = folders[1:]
    return folders[0] if folders else NO_CLASS


def _split_test(place: Path) -> Callable[[str], bool]:
    """Returns a function that tells whether the name of a subfolder of a folder is that of a split, not a class."""
    try:
        splits = data_folder(place)[1]
    except InputError:  # ambiguous, which matters for training, but here a class is only a name
        splits = None

    def is_split(folder: str) -> bool:
        return splits.kind(folder) is not None if splits else _means_split(folder)

    return is_split


def _means_split(folder: str) -> bool:
    known = meaning(folder)
    return known is not None and not known[1]


def take_files(
    index: Index,
    files: Mapping[str, str],
    reader: Reader,
    label: str | None,
    attributes: Mapping[str, Any] | None,
    console: Console,
    *,
    statuses: Mapping[str, Status] | None = None,
    through: Through | None = None,
) -> SyncReport:
    """Adds new files and embeds changed ones again.

    Args:
        index: Open for writing.
        files: The class that each file gets from its folder, by absolute path or by address.
        reader, label, attributes, console, through: As in `add_files`.
        statuses: Of files on object stores, as far as they are known, by address.

    Returns:
        What was done.
    """
    root = index.root
    ids = {file: image_id(file, root) for file in files}
    known, bad = index.image_files.stamps(ids.values()), index.image_files.skipped()
    fresh, touched = [], []
    unread: dict[str, str] = {}
    unknown: dict[str, Status] = {}
    far: dict[str, Status] = {}
    for file, id in ids.items():
        status = (statuses or {}).get(file) or file_status(file)
        if id in known and known[id][1:] == status:
            touched.append(id)
        elif id in bad and bad[id][:2] == status:
            unread[id] = bad[id][2]
        else:
            fresh.append(file)
            if url_of(file) is not None:
                far[file] = status
            elif id not in known:
                unknown[file] = status
    others = _other_names(index, unknown)
    if others:
        touched += others.values()
        fresh = [file for file in fresh if file not in others]
    added = updated = 0
    if fresh:
        about = Known(ids, files, far, known, index.records.own_classes(), label, attributes)
        with bar(f"embedding {len(fresh):,} images", len(fresh), console) as advance:
            for done in (through or _through(reader))(index, about, fresh):
                added, updated = added + done.added, updated + done.updated
                unread |= done.unread
                advance(done.files)
    if label is not None or attributes:
        for start in range(0, len(touched), CHUNK_IMAGES):
            part = touched[start : start + CHUNK_IMAGES]
            index.put([with_values(entry, label, attributes) for entry in entries_of(index, part).values()], None)
    return SyncReport(added, updated, len(files) - added - updated - len(unread), unread=unread)


def _through(reader: Reader) -> Through:
    """How files are taken by this process."""

    def take(index: Index, known: Known, files: Sequence[str]) -> Iterator[Done]:
        for chunk in timed_chunks(files, chunk_images(reader)):
            yield keep(index, known, look(chunk, known, reader))

    return take


def _other_names(index: Index, files: Mapping[str, Status]) -> dict[str, str]:
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
