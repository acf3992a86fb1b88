"""A folder as the gallery of a search: a cached index that is updated before each use."""

import hashlib
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console

from dr_keras.atomic_files import cache_folder
from dr_keras.errors import InputError, RunError
from dr_keras.index.index import Index
from dr_keras.index.sync import Reader, sync_folder
from dr_keras.index.writer_lock import Locked

POLL_SECONDS = 0.2  # between checks whether another process has finished


def gallery_index(
    folder: Path, model: str, dim: int, reader: Reader, *, head: str = "trained", console: Console
) -> Index:
    """Returns the index of all images below a folder; an image's class is the subfolder it is in.

    Args:
        folder: The folder.
        model: What the vectors depend on; each model has its own index.
        dim: D, the length of a vector.
        reader: How files become vectors.
        head: The head of the model, recorded in the index.
        console: Shows progress and which files could not be read.

    Returns:
        The index, open for reading. It is cached: the next time, only files that are new, or whose size or time has
        changed, are read, and those that are gone are removed. After Ctrl-C, what was embedded so far is kept.

    Raises:
        InputError: There is no such folder, or it contains no readable image.
    """
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        raise InputError(f"--gallery is {folder}; there is no such folder")
    key = hashlib.sha256(f"{root}\n{model}".encode(errors="surrogateescape")).hexdigest()[:20]
    kept = cache_folder() / "galleries" / key
    try:
        index = _opened(kept, dim, root, model, head, console)
    except RunError as error:
        console.print(f"the gallery's vectors will not be cached: {error}")
        kept = Path(tempfile.mkdtemp(prefix="dr_keras-")) / key
        index = _opened(kept, dim, root, model, head, console)
    with index:
        report = sync_folder(index, root, reader, console=console, empty=True, remove_missing=True)
        for line in report.details():
            console.print(line)
        if not len(index):
            raise InputError(f"{root} contains no image that can be read")
        index.engine.update()
    return Index.open(kept)


def _opened(kept: Path, dim: int, root: Path, model: str, head: str, console: Console) -> Index:
    """The cached index, open for writing; a new one if there is none or it is damaged."""
    told = False
    while True:
        try:
            try:
                return Index.open(kept, write=True)
            except Locked:
                raise
            except RunError:  # there is none, or it is damaged: all images will be embedded again
                return Index.create(kept, dim, root=root, model=model, head=head, replace=True)
        except Locked as error:
            if not told:
                console.print(f"waiting: {error}")
            told = True
            time.sleep(POLL_SECONDS)
