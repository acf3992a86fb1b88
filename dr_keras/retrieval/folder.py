"""Images on the disk into an index: only what is new or has changed is read, and what is gone can be removed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dr_keras.console import bar
from dr_keras.data.catalog import HELD_OUT_FOLDERS, images_below
from dr_keras.data.pixels import decode_files
from dr_keras.errors import InputError, RunError
from dr_keras.retrieval.embed import Reader
from dr_keras.retrieval.index import NO_CLASS, Entry, Index

# Images decoded, embedded and committed together: what a killed process loses at most. Each time child processes start
# to decode, which takes a third of a second.
CHUNK = 8192
CHUNK_BYTES = 256 * 2**20  # of their pixels, where they are large

Stamp = tuple[bytes | None, int | None, int | None]


@dataclass(frozen=True)
class Report:
    """How many images were added, embedded again, left as they were and removed, and how many could not be read.

    `first_skipped` names one of those with the reason.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: int = 0
    first_skipped: str = ""

    def __str__(self) -> str:
        parts = [f"{self.added:,} added", f"{self.updated:,} updated", f"{self.unchanged:,} unchanged"]
        if self.removed:
            parts.append(f"{self.removed:,} removed")
        if self.skipped:
            parts.append(f"{self.skipped:,} could not be read, {self.first_skipped} first")
        return ", ".join(parts)


def add_files(
    index: Index,
    paths: Iterable[str | os.PathLike[str]],
    reader: Reader,
    *,
    label: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    console: Console,
) -> Report:
    """Adds files and all images below folders; those that are in the index and have not changed are left alone.

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
        InputError: a path does not exist, or a folder holds no image.
        RunError: the index cannot be written.
    """
    files: dict[str, str] = {}  # by path, the class that its folder gives it
    again = []  # those that were named themselves are tried although they could not be read before
    for path in paths:
        place = os.path.abspath(path)
        if Path(place).is_dir():
            found = _listed(place)
            if not found:
                raise InputError(f"{path} holds no images")
            files |= {file: _first_folder(os.path.relpath(file, place)) for file in found}
        elif Path(place).exists():
            files[place] = NO_CLASS
            again.append(_id(index.root, place))
        else:
            raise InputError(f"{path} does not exist")
    if again:
        index.unskip(again)
    return _take(index, files, reader, label, attributes, console)


def sync_folder(
    index: Index, folder: str | os.PathLike[str], reader: Reader, *, console: Console, empty: bool = False
) -> Report:
    """Makes the index agree with a folder: adds, embeds again what has changed, and removes what is gone from it.

    Args:
        index: open for writing.
        folder: the folder; images of the index that lie elsewhere stay.
        reader: how files become vectors.
        console: shows progress.
        empty: whether a folder without images may be meant; else it is taken for a disk that is not there.

    Raises:
        InputError: the folder does not exist, holds no image, or a folder below it cannot be listed.
        RunError: the index cannot be written.
    """
    place = os.path.abspath(folder)
    if not Path(place).is_dir():
        raise InputError(f"there is no folder {folder}")
    files = {file: _first_folder(os.path.relpath(file, place)) for file in _listed(place)}
    if not files and not empty:
        raise InputError(f"{folder} holds no images; if that is meant, remove them with index.py remove")
    report = _take(index, files, reader, None, None, console)
    present = {_id(index.root, file) for file in files}
    inside = os.path.join(place, "")

    def gone(id: str) -> bool:
        """Whether an image of this folder is not there any more; one that was named may have any ending."""
        file = os.path.join(index.root, id)
        return id not in present and file.startswith(inside) and not os.path.lexists(file)

    removed = [id for _, id, *_ in index.all_entries() if gone(id)]
    index.remove(removed)
    if forgotten := [id for id in index.skipped() if gone(id)]:
        index.unskip(forgotten)
    return replace(report, removed=len(removed))


def _listed(folder: str) -> list[str]:
    """The images below a folder; what cannot be listed must not look as if it were gone."""

    def stop(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed: {error.strerror}")

    return sorted(images_below(Path(folder), onerror=stop))


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
        report = replace(report, updated=done.updated, skipped=done.skipped, first_skipped=done.first_skipped)
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
    ids = {file: _id(index.root, file) for file in files}
    known, bad = index.stamps(ids.values()), index.skipped()
    classes = index.own_classes()
    fresh, touched = [], []
    skipped: dict[str, str] = {}
    for file, id in ids.items():
        status = _status(file)
        if id in known and known[id][1:] == status:
            if label is not None or attributes:
                touched.append(id)
        elif id in bad and bad[id][:2] == status:
            skipped[id] = bad[id][2]
        else:
            fresh.append(file)
    added = updated = 0
    if fresh:
        size = max(1, min(CHUNK, CHUNK_BYTES // (3 * reader.size**2)))
        with bar(f"embedding {len(fresh):,} images", len(fresh), console) as advance:
            for start in range(0, len(fresh), size):
                chunk = fresh[start : start + size]
                stamps = dict(zip(chunk, file_stamps(chunk), strict=True))
                # A file whose time has changed and whose content has not is not embedded again.
                same = [
                    file
                    for file in chunk
                    if ids[file] in known and stamps[file][0] and known[ids[file]][0] == stamps[file][0]
                ]
                if same:
                    index.put([_old(index, ids[file], stamps[file], label, attributes) for file in same], None)
                untouched = set(same)
                other = [file for file in chunk if file not in untouched]
                pixels, failures = decode_files(other, reader.size, reader.resize)
                good = [row for row in range(len(other)) if row not in failures]
                entries = []
                for row in good:
                    file = other[row]
                    if ids[file] in known:
                        entries.append(_old(index, ids[file], stamps[file], label, attributes))
                        updated += 1
                    else:
                        own = label or _class(ids[file], classes, files[file])
                        entries.append(Entry(ids[file], own, "", *stamps[file], dict(attributes or {})))
                        added += 1
                if good:
                    index.put(entries, reader.embed(pixels[good] if failures else pixels))
                # What cannot be read at all now may be read later, and is no reason to forget what is known of it.
                failed = {ids[other[row]]: (stamps[other[row]], reason) for row, reason in failures.items()}
                broken = {id: (*stamp[1:], why) for id, (stamp, why) in failed.items() if stamp[0] is not None}
                if broken:
                    index.skip(broken)
                    index.remove([id for id in broken if id in known])  # what is there now is no image any more
                skipped |= {id: why for id, (_, why) in failed.items()}
                advance(len(chunk))
    for start in range(0, len(touched), CHUNK):
        part = touched[start : start + CHUNK]
        index.put([_old(index, id, None, label, attributes) for id in part], None)
    first = next((f"{id} ({reason})" for id, reason in skipped.items()), "")
    return Report(added, updated, len(files) - added - updated - len(skipped), 0, len(skipped), first)


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


def _first_folder(path: str) -> str:
    folders = Path(path).parts[:-1]
    if len(folders) > 1 and folders[0] in ("train", *HELD_OUT_FOLDERS):
        folders = folders[1:]
    return folders[0] if folders else NO_CLASS


def _status(path: str) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except OSError:
        return None, None  # gone since it was listed, or a broken link; reading it will say so
    return status.st_size, status.st_mtime_ns


def _stamp(path: str) -> Stamp:
    size, time = _status(path)
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.sha256(file.read()).digest(), size, time
    except OSError:
        return None, size, time
