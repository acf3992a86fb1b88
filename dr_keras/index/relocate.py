"""Tells an index where its collection is now, without embedding anything again."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from dr_keras.atomic_files import sha256_of
from dr_keras.data.image_ids import image_path, is_outside_root
from dr_keras.errors import InputError
from dr_keras.index.file_stamps import file_stamps, file_status
from dr_keras.index.index import Index
from dr_keras.index.records import Stamp
from dr_keras.index.sync import CHUNK_IMAGES
from dr_keras.index.sync_report import and_more
from dr_keras.progress import bar

SAMPLE_IMAGES = 64  # images whose content is compared first, to make sure that it is the same collection
MIN_SAME_SHARE = 0.9  # of them that must be there and unchanged; a few may have been edited or removed


@dataclass(frozen=True)
class Moved:
    """What was found below the new root.

    Attributes:
        same: How many images are there, unchanged.
        missing: Ids of images that are not there.
        changed: Ids of images whose content differs.
        elsewhere: How many images have an absolute path as their id, so they do not depend on the root.
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
    """Changes the folder that the ids of an index are relative to.

    The content of `SAMPLE_IMAGES` images is compared first, then the size and time of every image, and the content of
    those whose time differs. Nothing is embedded: `sync_folder` embeds images that have changed.

    Args:
        index: Open for writing.
        root: Where its collection is now.
        console: Shows progress.
        seed: Chooses the sample.

    Returns:
        What was found there.

    Raises:
        InputError: There is no such folder, it holds a different collection, or no image depends on the root.
        RunError: The index cannot be written.
    """
    place = os.path.abspath(root)
    if not os.path.isdir(place):
        raise InputError(f"there is no folder {root}")
    stamps = index.image_files.stamps()
    known = {id: stamp for id, stamp in stamps.items() if not is_outside_root(id)}
    if not known:
        raise InputError(
            f"no image of {index.place} lies below its root; all have whole paths, which move cannot change"
        )
    _check_sample(index, place, known, seed)

    kept: dict[str, Stamp] = {}
    missing, changed = [], []
    ids = list(known)
    with bar(f"looking at {len(ids):,} images", len(ids), console) as advance:
        for start in range(0, len(ids), CHUNK_IMAGES):
            part = ids[start : start + CHUNK_IMAGES]
            for id, stamp in _found(place, part, known).items():
                if stamp is None:
                    missing.append(id)
                elif known[id][0] is None or stamp[0] == known[id][0]:
                    kept[id] = stamp
                else:
                    changed.append(id)
            advance(len(part))
    index.image_files.change_root(place, {id: stamp for id, stamp in kept.items() if stamp != known[id]})
    return Moved(len(kept), missing, changed, len(stamps) - len(known))


def _check_sample(index: Index, place: str, known: dict[str, Stamp], seed: int) -> None:
    hashed = [id for id, (hash, *_) in known.items() if hash is not None]
    chosen = np.random.default_rng(seed).permutation(len(hashed))[:SAMPLE_IMAGES].tolist()
    sample = [hashed[number] for number in chosen]
    other = [id for id in sample if not _same(image_path(id, place), known[id][0])]
    if len(sample) - len(other) < MIN_SAME_SHARE * len(sample):
        raise InputError(
            f"of {len(sample)} images of {index.place} {len(sample) - len(other)} are below {place} with their "
            f"content, and not {and_more(other)}. The index was made of {index.root}: give the folder that holds "
            "the same images now"
        )


def _same(file: str, hash: bytes | None) -> bool:
    try:
        return sha256_of(file) == hash
    except OSError:
        return False


def _found(place: str, ids: Sequence[str], known: dict[str, Stamp]) -> dict[str, Stamp | None]:
    """The stamps of files below the new root, None if gone; a file with its old size and time is not read."""
    files = {id: image_path(id, place) for id in ids}
    found: dict[str, Stamp | None] = {}
    for id, file in files.items():
        status = file_status(file)
        if status == (None, None):
            found[id] = None
        elif status == known[id][1:]:
            found[id] = known[id]
    other = [id for id in ids if id not in found]
    return found | dict(zip(other, file_stamps([files[id] for id in other]), strict=True))
