"""Moves the copies of images to another folder, all but one of each group, and moves them back.

Before each move, a line of JSON is appended to `undo.jsonl` in that folder and flushed to disk: {"from": path, "to":
path}. So whatever happens, every file is in one of two known places.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dr_keras.atomic_files import new_file, sha256_of
from dr_keras.data.image_ids import image_path, is_outside_root
from dr_keras.data.images import look
from dr_keras.duplicates.find import Duplicates
from dr_keras.errors import ImageError, InputError

UNDO = "undo.jsonl"


@dataclass(frozen=True)
class Moves:
    """What was done.

    Attributes:
        moved: The paths of the files that were moved, as they were.
        left: Why other copies were left where they are, by path.
    """

    moved: list[str]
    left: dict[str, str]


def move_copies(found: Duplicates, folder: Path, *, near: bool = False) -> Moves:
    """Moves the copies of images to a folder; one of each group stays, and is never touched.

    Of equal files, the first by name stays; of nearly equal images, the one with the most pixels, and of several such,
    the largest file. A copy is moved only while that one is there and, for equal files, still equal.

    Args:
        found: The groups.
        folder: Where to move them, below the same names; outside the folder in which they were found.
        near: Also move nearly equal images.

    Raises:
        InputError: The folder is inside the one in which they were found.
        OSError: A file cannot be moved, or the folder cannot be written; what was moved before stays moved.
    """
    place, root = folder.absolute(), found.root.absolute()
    if place.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{folder} is inside {found.root}, where its images would be found again; choose another place"
        )
    moves = Moves([], {})
    for ids in found.exact:
        paths = [image_path(id, found.root) for id in ids]
        _move_all(paths[0], paths[1:], place, root, moves, equal=True)
    if near:
        gone = set(moves.moved)
        for ids in found.near:
            paths = [path for id in ids if (path := image_path(id, found.root)) not in gone]
            kept = min(paths, key=lambda path: (*(-size for size in _size(path)), path))
            _move_all(kept, [path for path in paths if path != kept], place, root, moves, equal=False)
    return moves


def undo(file: Path) -> int:
    """Moves files back to where they were, the last one first, and removes the list.

    Args:
        file: The `undo.jsonl` of an earlier `move_copies`.

    Returns:
        How many were moved back.

    Raises:
        InputError: The file cannot be read, or another file is now where one of them was; nothing was moved.
        OSError: A file cannot be moved; the list still names it.
    """
    moves = _listed(file)
    due = []
    for old, new in reversed(moves):
        if not os.path.lexists(new):
            continue  # it was about to be moved, or has been moved back
        if not os.path.lexists(old):
            due.append((old, new))
        elif not _equal(old, new):
            raise InputError(f"{new} cannot be moved back: there is another {old}")
        else:  # a copy to another disk, after which the first was not removed yet
            due.append((new, new))
    targets = [old for old, _ in due]
    if twice := [old for old in targets if targets.count(old) > 1]:
        raise InputError(f"several files would be moved back to {twice[0]}; move them by hand")
    for old, new in due:
        if old == new:
            Path(new).unlink()
            continue
        Path(old).parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(old):
            raise InputError(f"{new} cannot be moved back: there is another {old}")
        _rename(new, old)
    file.unlink()
    return len(due)


def _listed(file: Path) -> list[tuple[str, str]]:
    """The moves in a list: from and to. The last line may be incomplete; then its file was not moved."""
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    moves = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            move = json.loads(line)
            moves.append((move["from"], move["to"]))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}, line {number}, is not a move") from None
    return moves


def _move_all(kept: str, copies: Iterable[str], place: Path, root: Path, moves: Moves, *, equal: bool) -> None:
    for copy in copies:
        reason = _reason_to_leave(kept, copy, equal)
        if reason is not None:
            moves.left[copy] = reason
            continue
        _move(copy, _free_name(place, copy, root), place)
        moves.moved.append(copy)


def _reason_to_leave(kept: str, copy: str, equal: bool) -> str | None:
    """Why a copy is not moved, or None."""
    try:
        if Path(kept).is_symlink() or Path(copy).is_symlink() or Path(kept).samefile(copy):
            return "it is a link, or the other is"
        if equal and sha256_of(kept) != sha256_of(copy):
            return f"it is not equal to {kept} any more"
        if not equal:
            look(kept)
    except (OSError, ImageError) as error:
        return f"{kept} or it cannot be read: {getattr(error, 'strerror', None) or error}"
    return None


def _free_name(place: Path, copy: str, root: Path) -> str:
    """Where to move a file: below the name that it has in its folder, or one like it."""
    inside = os.path.relpath(copy, root)
    if is_outside_root(inside) or inside.startswith(os.pardir):
        inside = Path(copy).name
    stem, ending = os.path.splitext(os.path.join(place, inside))
    name, number = stem + ending, 1
    while os.path.lexists(name):
        name, number = f"{stem}-{number}{ending}", number + 1
    return name


def _move(old: str, new: str, place: Path) -> None:
    Path(new).parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"from": old, "to": new}) + "\n"
    with open(place / UNDO, "a+b") as log:
        log.seek(0)
        complete = log.read().rfind(b"\n") + 1
        log.truncate(complete)  # what a full disk left of an earlier line
        log.write(line.encode("ascii"))
        log.flush()
        os.fsync(log.fileno())
    _rename(old, new)


def _rename(old: str, new: str) -> None:
    """Moves a file; on another disk, its copy appears there complete or not at all, and then the first is removed."""
    try:
        os.rename(old, new)  # noqa: PTH104  # a path may hold any bytes
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with new_file(Path(new)) as temporary:
            shutil.copy2(old, temporary)
            with open(temporary, "rb") as copied:
                os.fsync(copied.fileno())
        Path(old).unlink()


def _equal(one: str, other: str) -> bool:
    try:
        return sha256_of(one) == sha256_of(other)
    except OSError:
        return False


def _size(path: str) -> tuple[int, int]:
    """Pixels and bytes of an image; none if it cannot be read."""
    with suppress(OSError, ImageError):
        _, (width, height) = look(path)
        return width * height, Path(path).stat().st_size
    return 0, 0
