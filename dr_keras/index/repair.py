"""Repairs a damaged index from the files of its images."""

import os
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from dr_keras.data.image_ids import image_path, url_of
from dr_keras.errors import RunError
from dr_keras.index.file_stamps import file_status
from dr_keras.index.index import NO_CLASS, Index
from dr_keras.index.sync import Reader, take_files
from dr_keras.index.sync_report import SyncReport
from dr_keras.invocation import command


def repair_index(index: Index, reader: Callable[[], Reader], *, console: Console) -> SyncReport:
    """Repairs what `Index.verify` finds: embeds damaged images again, and removes those whose files are gone.

    Args:
        index: Open for writing, with `repair=True`.
        reader: Returns how files become vectors; called only if an image has to be embedded.
        console: Shows progress, and what was removed.

    Raises:
        InputError: An object store that has some of the images does not answer; nothing has changed.
        RunError: It also has damage that cannot be repaired.
    """
    damage = index.verify()
    ids = [one.id for one in damage if one.id is not None]
    again = {id for id in ids if _is_there(image_path(id, index.root))}
    gone = [id for id in ids if id not in again]
    report = SyncReport(unchanged=index.records.count() - len(ids), removed=len(gone))
    index.remove(gone)
    for id in gone:
        console.print(f"{id} was removed: its vector is damaged and its file is gone")
    if again:
        index.image_files.forget_stamps(again)
        files = {image_path(id, index.root): NO_CLASS for id in sorted(again)}
        done = take_files(index, files, reader(), None, None, console)
        report = replace(report, updated=done.updated, unread=done.unread)
    index.engine.repair()
    if damage:
        index.compact()  # so that the file no longer holds damaged vectors
    left = index.verify()
    if left:
        raise RunError(
            f"{index.place} cannot be repaired: {left[0].what}; move it away and recreate it with "
            f"{command('index')} add"
        )
    return report


def _is_there(path: str) -> bool:
    return os.path.isfile(path) if url_of(path) is None else file_status(path) != (None, None)
