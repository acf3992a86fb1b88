"""A person's own folder as the gallery: embedded once, kept in the cache, refreshed when files change."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dr_keras.console import bar
from dr_keras.data.catalog import images_below
from dr_keras.data.pixels import decode_files
from dr_keras.errors import InputError, RunError
from dr_keras.files import cache_folder, read_json, write_json
from dr_keras.retrieval.index import Index

CHUNK = 2048  # images decoded and embedded at a time
NO_CLASS = "-"  # the class of a picture that lies in no subfolder

Stamp = list[int]  # size in bytes and time of the last change in nanoseconds


def gallery_index(
    folder: Path,
    model: str,
    embed: Callable[[np.ndarray], np.ndarray],
    *,
    size: int,
    resize: str,
    console: Console,
) -> Index:
    """The index of all images below a folder; a picture's class is the subfolder that it lies in.

    Args:
        folder: the folder.
        model: what the vectors depend on; another model has another index.
        embed: (N, size, size, 3) uint8 -> (N, D) float32.
        size, resize: see `dr_keras.data.images.decode`.
        console: shows progress and how many files could not be read.

    Returns:
        The index. It is kept in the cache; the next time only files that are new, or whose size or time has changed,
        are read, and those that are gone are left out. Ctrl-C keeps what is embedded by then.

    Raises:
        InputError: the folder is absent or holds no readable image.
    """
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        raise InputError(f"--gallery is {folder}; there is no such folder")
    paths = sorted(images_below(root))
    ids = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
    stamps = dict(zip(ids, map(_stamp, paths), strict=True))
    kept = (
        cache_folder()
        / "galleries"
        / hashlib.sha256(f"{root}\n{model}".encode(errors="surrogateescape")).hexdigest()[:20]
    )
    vectors, bad = _known(kept, stamps)
    before = set(vectors)
    fresh = [name for name in ids if name not in vectors and name not in bad]
    if fresh:
        try:
            with bar(f"embedding {len(fresh):,} images of {root}", len(fresh), console) as advance:
                for start in range(0, len(fresh), CHUNK):
                    names = fresh[start : start + CHUNK]
                    pixels, failures = decode_files([os.path.join(root, name) for name in names], size, resize)
                    good = [row for row in range(len(names)) if row not in failures]
                    vectors |= {names[row]: vector for row, vector in zip(good, embed(pixels[good]), strict=True)}
                    bad |= {names[row] for row in failures}
                    advance(len(names))
        except KeyboardInterrupt:
            if vectors:
                _keep(kept, _index(root, [name for name in ids if name in vectors], vectors), bad, stamps, console)
            raise
    if bad:
        console.print(f"{len(bad)} files could not be read, {min(bad)} first")
    if not vectors:
        raise InputError(f"{root} holds no image that can be read")
    names = [name for name in ids if name in vectors]
    index = _index(root, names, vectors)
    if fresh or before != set(names) or not kept.is_dir():
        _keep(kept, index, bad, stamps, console)
    return index


def _keep(kept: Path, index: Index, bad: set[str], stamps: dict[str, Stamp], console: Console) -> None:
    """Keeps the vectors for the next time; where that cannot be done, they are good for this one all the same."""
    try:
        index.save(kept)
        write_json(kept / "files.json", {name: stamps[name] for name in (*index.ids, *sorted(bad))})
    except OSError as error:
        console.print(f"the gallery's vectors are not kept: {kept}: {error.strerror}")


def _index(root: Path, names: Sequence[str], vectors: dict[str, np.ndarray]) -> Index:
    owners = [name.partition("/")[0] if "/" in name else NO_CLASS for name in names]
    classes = sorted(set(owners))
    number = {name: label for label, name in enumerate(classes)}
    return Index(
        vectors=np.stack([vectors[name] for name in names]).astype(np.float32),
        labels=np.array([number[owner] for owner in owners], np.int32),
        ids=names,
        classes=classes,
        class_names=classes,
        gallery=len(names),
        root=root,
    )


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return [0, 0]  # gone since it was listed, or a broken link; reading it will say so
    return [status.st_size, status.st_mtime_ns]


def _known(kept: Path, stamps: dict[str, Stamp]) -> tuple[dict[str, np.ndarray], set[str]]:
    """The kept vectors of the files that have not changed, and the unchanged files that could not be read."""
    try:
        index, seen = Index.open(kept), read_json(kept / "files.json")
    except (RunError, OSError, ValueError):
        return {}, set()  # none yet, or damaged: all are embedded again
    if not isinstance(seen, dict):
        return {}, set()
    same = {name for name, stamp in seen.items() if stamps.get(name) == stamp}
    vectors = {name: vector for name, vector in zip(index.ids, index.vectors, strict=True) if name in same}
    return vectors, same - set(index.ids)
