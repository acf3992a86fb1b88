"""The only folder walker: finds the images below a folder, each of them once.

Names that begin with a dot, and the names in `PASSED_OVER`, which operating systems and NAS devices put next to
people's images, are skipped silently. A file counts as an image if its suffix or its first bytes say so; any other file
is skipped, too. A file with an image's suffix but other content is reported by the decoder. Only regular files are
opened, so no pipe or device can block.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dr_keras.atomic_files import open_regular
from dr_keras.data.formats import HEAD_BYTES, says_picture, sniff

PASSED_OVER = frozenset(  # in upper or lower case
    (
        *("@eaDir", "@SynoEAStream", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),  # Synology, QNAP
        *("$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information", "Thumbs.db"),  # Windows
        *("__MACOSX", "lost+found"),
    )
)
_PASSED_OVER = frozenset(name.casefold() for name in PASSED_OVER)

Trouble = tuple[str, str]
"""A folder or a file that could not be read, and the reason."""


def passed_over(name: str) -> bool:
    """Returns whether files and folders with this name are skipped."""
    return name.startswith(".") or name.casefold() in _PASSED_OVER


class Walker:
    """Walks through folders and remembers what it has seen.

    Attributes:
        troubles: The folders and files that could not be read.
    """

    def __init__(self) -> None:
        self.troubles: list[Trouble] = []
        self._folders: set[tuple[int, int]] = set()
        self._files: list[str] = []
        self._places: list[int] = []  # identify the files on their disks; see `_place`
        self._linked: list[bool] = []

    def pictures(self, folder: str | os.PathLike[str]) -> list[str]:
        """Returns the images at any depth below a folder, sorted, skipping folders that were already walked.

        Symbolic links are followed, those to folders last, so that images are found under their real paths.
        """
        found = sorted(self._walk(os.fspath(folder)))
        self._files += [path for path, _, _ in found]
        self._places += [place for _, place, _ in found]
        self._linked += [linked for _, _, linked in found]
        return [path for path, _, _ in found]

    def again(self) -> dict[str, str]:
        """Returns the paths that are links, symbolic or hard, to the file of an earlier path, each with that path."""
        places = np.array(self._places, np.uint64)
        # A file's own path comes before links to it; otherwise paths stay in the order in which they were found.
        order = np.lexsort((np.arange(len(places)), np.array(self._linked, bool), places))
        same = np.flatnonzero(places[order][1:] == places[order][:-1]) + 1
        kept: dict[int, list[str]] = {}  # by place; several if different files share it or cannot be compared
        found = {}
        for place in same.tolist():
            row, before = int(order[place]), int(order[place - 1])
            file, earlier = self._files[row], kept.setdefault(self._places[row], [self._files[before]])
            if file in earlier:
                continue
            first = next((one for one in earlier if _same_file(file, one)), None)
            if first is None:
                earlier.append(file)
            else:
                found[file] = first
        return found

    def add(self, file: str) -> None:
        """Registers a file that was named directly rather than found by walking."""
        try:
            status = os.stat(file)
        except OSError:
            return  # reading it will report the error
        self._files.append(file)
        self._places.append(_place(status.st_dev, status.st_ino))
        self._linked.append(Path(file).is_symlink())

    def folders(self, folder: str | os.PathLike[str]) -> list[str]:
        """Returns the names of the subfolders of a folder, sorted, links last, without those that are skipped."""
        found = [(linked, name) for name, _, kind, linked in self._entries(os.fspath(folder)) if kind == "folder"]
        return [name for _, name in sorted(found)]

    def _walk(self, top: str) -> Iterator[tuple[str, int, bool]]:
        """Yields the path and the place of each image, and whether it is a link."""
        waiting, links = [top], list[str]()
        while waiting or links:
            here = waiting.pop() if waiting else links.pop(0)
            try:
                status = os.stat(here)
            except OSError as error:
                self.troubles.append((here, error.strerror or str(error)))
                continue
            if (status.st_dev, status.st_ino) in self._folders:
                continue
            self._folders.add((status.st_dev, status.st_ino))
            for name, inode, kind, linked in self._entries(here):
                path = os.path.join(here, name)
                if kind == "folder":
                    (links if linked else waiting).append(path)
                elif says_picture(name) or (kind == "file" and self._looks_like_one(path)):
                    yield path, self._place_of(path, status.st_dev, inode, linked), linked

    def _entries(self, folder: str) -> Iterator[tuple[str, int, str, bool]]:
        """Yields the name, inode, kind ('file', 'folder' or 'other') and link flag of each entry not skipped."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not passed_over(entry.name):
                        yield entry.name, entry.inode(), _kind(entry), entry.is_symlink()
        except OSError as error:
            self.troubles.append((folder, error.strerror or str(error)))

    def _looks_like_one(self, path: str) -> bool:
        """Whether the first bytes of a file are those of an image."""
        try:
            with open_regular(path) as file:
                return sniff(file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size, path) is not None
        except OSError as error:
            self.troubles.append((path, error.strerror or str(error)))
            return False

    def _place_of(self, path: str, device: int, inode: int, linked: bool) -> int:
        if linked:
            try:
                status = os.stat(path)
            except OSError:
                return _place(device, inode)  # a broken link; the decoder will report it
            return _place(status.st_dev, status.st_ino)
        return _place(device, inode)


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link to itself, or into a folder without access
        return "other"


def _place(device: int, inode: int) -> int:
    """A 64-bit number for a file on its disk. Different files may share one, so equal numbers need a comparison."""
    return (inode ^ (device * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        pass  # a broken link can have several paths, too
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def has_pictures(folder: str | os.PathLike[str]) -> bool:
    """Returns whether there is, or may be because part of it is unreadable, an image anywhere below a folder."""
    walker = Walker()
    return next(walker._walk(os.fspath(folder)), None) is not None or bool(walker.troubles)


def folders_with_pictures(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the subfolders of a folder that have images below them, sorted, links last."""
    return [name for name in Walker().folders(folder) if has_pictures(os.path.join(folder, name))]


def pictures_in(folder: str | os.PathLike[str]) -> bool:
    """Returns whether there is an image directly in a folder."""
    walker = Walker()
    return any(
        says_picture(name) or walker._looks_like_one(os.path.join(folder, name))
        for name, _, kind, _ in walker._entries(os.fspath(folder))
        if kind == "file"
    )


def all_pictures(folders: Iterable[str | os.PathLike[str]]) -> tuple[list[str], Sequence[Trouble]]:
    """Returns the images below the given folders, each once and sorted, and what could not be read."""
    walker = Walker()
    files = [file for folder in folders for file in walker.pictures(folder)]
    again = walker.again()
    return sorted(file for file in files if file not in again), walker.troubles


def contents(folder: str | os.PathLike[str]) -> dict[str, bool]:
    """Returns the names of all entries of a folder, sorted, and whether each is a folder; nothing is skipped."""
    with os.scandir(folder) as entries:
        return {entry.name: _kind(entry) == "folder" for entry in sorted(entries, key=lambda entry: entry.name)}
