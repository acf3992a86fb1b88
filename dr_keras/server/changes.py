"""Changes that clients make to the index: uploaded images are added, and images removed."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dr_keras.data.exif import merged
from dr_keras.data.image_ids import image_id, image_path
from dr_keras.errors import InputError, RunError, Unavailable
from dr_keras.index.index import NO_CLASS, Entry, Index
from dr_keras.index.writer_lock import Locked
from dr_keras.server.errors import Problem, busy
from dr_keras.server.image_files import Format, remove_upload, store_upload
from dr_keras.server.queries import Vector, check_model
from dr_keras.server.requests import Upload

log = logging.getLogger("uvicorn.error")


def add_upload(place: str, uploads: Path, upload: Upload, format: Format, vector: Vector) -> tuple[str, bool]:
    """Stores an image in the uploads folder and adds it to an index.

    Args:
        place: Where the index is.
        uploads: The uploads folder.
        upload, format, vector: As for `dr_keras.server.live_index.LiveIndex.add`.

    Returns:
        The id of the image, and whether it is new to the index.

    Raises:
        Problem: 503 while another process writes, 507 if the change cannot be written.
    """
    with _writing(place) as writer:
        check_model(writer, vector.model)
        file, digest, stored = store_upload(upload.image, format, uploads)
        id = image_id(os.path.abspath(file), writer.root)
        old = writer.records.row(id)
        status = file.stat()
        try:
            label, attributes = upload.label, upload.facts
            if old is not None:
                kept = writer.records.entries([old])[0]
                label = label or kept.label
                attributes = merged(attributes, kept.attributes)
            attributes = merged(attributes, upload.attributes)
            entry = Entry(id, label or NO_CLASS, "", digest, status.st_size, status.st_mtime_ns, attributes)
            writer.put([entry], vector.values[None])
        except BaseException:
            if stored and old is None:
                file.unlink(missing_ok=True)
            raise
    return id, old is None


def remove_image(place: str, uploads: Path | None, id: str) -> bool:
    """Removes an image from an index.

    Args:
        place: Where the index is.
        uploads: The uploads folder, or None.
        id: The image.

    Returns:
        Whether its file was removed too: only uploaded files are.

    Raises:
        Problem: 404 if the index has no such id, 503 while another process writes, 507 if the change cannot be written.
    """
    with _writing(place) as writer:
        if writer.records.row(id) is None:
            raise Problem(404, "the index has no image of this id")
        writer.remove([id])
        file = Path(image_path(id, writer.root))
        try:  # while no other client can send the same image
            return uploads is not None and remove_upload(file, uploads)
        except OSError as error:  # the index has forgotten it
            log.error("%s cannot be removed: %s", file, error)
            return False


def change_groups(place: str, change: Callable[[Index], int]) -> int:
    """Changes the groups of an index; returns what `change` does.

    Raises:
        Problem: 422 if the change is impossible; as for `add_upload` if it cannot be made.
    """
    try:
        with _writing(place) as writer:
            return change(writer)
    except RunError:
        raise
    except InputError as error:
        raise Problem(422, str(error)) from None


@contextmanager
def _writing(place: str) -> Iterator[Index]:
    """Opens an index for writing; turns what goes wrong into a Problem."""
    try:
        with Index.open(place, write=True) as writer:
            yield writer
    except Locked:
        raise busy("another process is writing to the index; try again", seconds=2) from None
    except Unavailable as error:
        log.error("%s", error)
        raise busy("the index cannot be reached at the moment; try again", seconds=5) from None
    except (OSError, RunError) as error:
        log.error("the index cannot be changed: %s", error)
        raise Problem(507, "the change could not be written; the server's log says why") from error
