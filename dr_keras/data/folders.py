"""The only walker of folders: which pictures lie below a folder, each of them once.

Passed over without a word: names that begin with a dot, and `PASSED_OVER`, what network disks and systems keep beside
people's pictures. A file is a picture if its ending says so or, whatever its ending, if its first bytes do; any other
file is passed over too. What a picture's ending promises and its content does not hold is found by the decoder, which
says so. Only regular files are opened, so that no pipe or device blocks.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dr_keras.atomic_files import open_regular
from dr_keras.data.formats import HEAD_BYTES, says_picture, sniff

PASSED_OVER = frozenset(  # in any case
    (
        *("@eaDir", "@SynoEAStream", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),  # Synology, QNAP
        *("$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information", "Thumbs.db"),  # Windows
        *("__MACOSX", "lost+found"),
    )
)
_PASSED_OVER = frozenset(name.casefold() for name in PASSED_OVER)

Trouble = tuple[str, str]  # a folder or file that could not be looked at, and why


def passed_over(name: str) -> bool:
    """Whether what has this name is passed over."""
    return name.startswith(".") or name.casefold() in _PASSED_OVER


class Walker:
    """Walks through folders, and remembers what it has seen.

    Attributes:
        troubles: folders that could not be entered and files that could not be looked at.
    """

    def __init__(self) -> None:
        self.troubles: list[Trouble] = []
        self._folders: set[tuple[int, int]] = set()
        self._files: list[str] = []
        self._places: list[int] = []  # what tells files apart, of each of them
        self._linked: list[bool] = []

    def pictures(self, folder: str | os.PathLike[str]) -> list[str]:
        """The pictures at any depth, sorted; into a folder that was walked through before it does not go again.

        Links are followed, those to folders last, so that what has a path of its own keeps it.
        """
        found = sorted(self._walk(os.fspath(folder)))
        self._files += [path for path, _, _ in found]
        self._places += [place for _, place, _ in found]
        self._linked += [linked for _, _, linked in found]
        return [path for path, _, _ in found]

    def again(self) -> dict[str, str]:
        """Paths that lead to the same file as an earlier one, by symbolic or hard links, and that earlier path."""
        places = np.array(self._places, np.uint64)
        # A file's own path before links to it, then the order in which they were found.
        order = np.lexsort((np.arange(len(places)), np.array(self._linked, bool), places))
        same = np.flatnonzero(places[order][1:] == places[order][:-1]) + 1
        kept: dict[int, list[str]] = {}  # of one place: several where a path cannot be followed to compare it
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
        """Remembers a file that was named and not found."""
        try:
            status = os.stat(file)
        except OSError:
            return  # reading it will say so
        self._files.append(file)
        self._places.append(_place(status.st_dev, status.st_ino))
        self._linked.append(Path(file).is_symlink())

    def folders(self, folder: str | os.PathLike[str]) -> list[str]:
        """The names of the folders in a folder, sorted, links last, without those that are passed over."""
        found = [(linked, name) for name, _, kind, linked in self._entries(os.fspath(folder)) if kind == "folder"]
        return [name for _, name in sorted(found)]

    def _walk(self, top: str) -> Iterator[tuple[str, int, bool]]:
        """Path, place and whether it is a link, of each picture."""
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
        """Name, inode, kind ('file', 'folder' or 'other') and whether it is a link, of what is not passed over."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not passed_over(entry.name):
                        yield entry.name, entry.inode(), _kind(entry), entry.is_symlink()
        except OSError as error:
            self.troubles.append((folder, error.strerror or str(error)))

    def _looks_like_one(self, path: str) -> bool:
        """Whether a file is a picture by its first bytes."""
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
                return _place(device, inode)  # broken; the decoder will say so
            return _place(status.st_dev, status.st_ino)
        return _place(device, inode)


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link into what may not be entered, or to itself
        return "other"


def _place(device: int, inode: int) -> int:
    """One number of 64 bits; different files may share it, so equal ones are compared."""
    return (inode ^ (device * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        pass  # a link that leads nowhere can have several paths of its own, too
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def has_pictures(folder: str | os.PathLike[str]) -> bool:
    """Whether a picture lies anywhere below a folder, or may lie there: it cannot be read."""
    walker = Walker()
    return next(walker._walk(os.fspath(folder)), None) is not None or bool(walker.troubles)


def folders_with_pictures(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the folders in a folder that have pictures anywhere below them, sorted, links last."""
    return [name for name in Walker().folders(folder) if has_pictures(os.path.join(folder, name))]


def pictures_in(folder: str | os.PathLike[str]) -> bool:
    """Whether a picture lies directly in a folder."""
    walker = Walker()
    return any(
        says_picture(name) or walker._looks_like_one(os.path.join(folder, name))
        for name, _, kind, _ in walker._entries(os.fspath(folder))
        if kind == "file"
    )


def all_pictures(folders: Iterable[str | os.PathLike[str]]) -> tuple[list[str], Sequence[Trouble]]:
    """The pictures below folders, each once and sorted, and what could not be looked at."""
    walker = Walker()
    files = [file for folder in folders for file in walker.pictures(folder)]
    again = walker.again()
    return sorted(file for file in files if file not in again), walker.troubles
