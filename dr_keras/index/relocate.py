"""Tells an index that its collection lies elsewhere by now, without embedding anything again."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from dr_keras.atomic_files import sha256_of
from dr_keras.errors import InputError
from dr_keras.index.index import Index
from dr_keras.index.sync import CHUNK, Stamp, file_stamps, named
from dr_keras.progress import bar

SAMPLE = 64  # images whose content is compared before anything else, to know that it is the same collection
LEAST_SAME = 0.9  # share of them that has to be there and the same; a few may have been edited or removed


@dataclass(frozen=True)
class Moved:
    """What was found below the new root.

    Attributes:
        same: how many images are there with their content.
        missing: ids of images that are not there.
        changed: ids of images whose content is another.
        elsewhere: how many images have a whole path, and stay where they are.
    """

    same: int
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    elsewhere: int = 0

    def __str__(self) -> str:
        parts = [f"{self.same:,} images found"]
        if self.missing:
            parts.append(f"{len(self.missing):,} missing, {self.missing[0]} first")
        if self.changed:
            parts.append(f"{len(self.changed):,} changed, {self.changed[0]} first")
        if self.elsewhere:
            parts.append(f"{self.elsewhere:,} elsewhere")
        return "; ".join(parts)


def move_index(index: Index, root: str | os.PathLike[str], *, console: Console, seed: int = 0) -> Moved:
    """Makes `root` the folder that the ids of an index are relative to.

    The content of `SAMPLE` images is compared first, then the size and time of every image, and the content of those
    that have another time. Nothing is embedded: `sync_folder` does that with images that have changed.

    Args:
        index: open for writing.
        root: where its collection lies now.
        console: shows progress.
        seed: chooses the sample.

    Raises:
        InputError: there is no such folder, it holds another collection, or no image depends on the root.
        RunError: the index cannot be written.
    """
    place = os.path.abspath(root)
    if not os.path.isdir(place):
        raise InputError(f"there is no folder {root}")
    stamps = index.stamps()
    known = {id: stamp for id, stamp in stamps.items() if not id.startswith("/")}
    if not known:
        raise InputError(
            f"no image of {index.folder} lies below its root; all have whole paths, which move cannot change"
        )
    _check_sample(index, place, known, seed)

    kept: dict[str, Stamp] = {}
    missing, changed = [], []
    ids = list(known)
    with bar(f"looking at {len(ids):,} images", len(ids), console) as advance:
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            for id, stamp in _found(place, part, known).items():
                if stamp is None:
                    missing.append(id)
                elif known[id][0] is None or stamp[0] == known[id][0]:
                    kept[id] = stamp
                else:
                    changed.append(id)
            advance(len(part))
    index.move(place, {id: stamp for id, stamp in kept.items() if stamp != known[id]})
    return Moved(len(kept), missing, changed, len(stamps) - len(known))


def _check_sample(index: Index, place: str, known: dict[str, Stamp], seed: int) -> None:
    hashed = [id for id, (hash, *_) in known.items() if hash is not None]
    chosen = np.random.default_rng(seed).permutation(len(hashed))[:SAMPLE].tolist()
    sample = [hashed[number] for number in chosen]
    other = [id for id in sample if not _same(os.path.join(place, id), known[id][0])]
    if len(sample) - len(other) < LEAST_SAME * len(sample):
        raise InputError(
            f"of {len(sample)} images of {index.folder} {len(sample) - len(other)} are below {place} with their "
            f"content; {named(other)} not. The index was made of {index.root}: give the folder that holds the same now"
        )


def _same(file: str, hash: bytes | None) -> bool:
    try:
        return sha256_of(file) == hash
    except OSError:
        return False


def _found(place: str, ids: Sequence[str], known: dict[str, Stamp]) -> dict[str, Stamp | None]:
    """What the files below the new root are like, None for one that is gone. Those of the old time are not read."""
    files = {id: os.path.join(place, id) for id in ids}
    found: dict[str, Stamp | None] = {}
    for id, file in files.items():
        try:
            status = os.stat(file)
        except OSError:
            found[id] = None
            continue
        if (status.st_size, status.st_mtime_ns) == known[id][1:]:
            found[id] = known[id]
    other = [id for id in ids if id not in found]
    return found | dict(zip(other, file_stamps([files[id] for id in other]), strict=True))
