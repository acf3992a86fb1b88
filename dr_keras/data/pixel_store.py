"""Decodes the images of a catalog once and stores them as (N, H, W, 3) uint8: in memory, on disk, or not at all.

All stores give the same images for the same rows:

- memory: an array.
- disk: a memory-mapped array in the cache. It is reused, so a second run starts at once, as long as the names, sizes
  and times of the files and the resizing are the same.
- stream: each image is decoded whenever it is used, for data sets that fit neither in memory nor on disk. All images
  are decoded once in advance to find those that cannot be.
"""

import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from filelock import FileLock, Timeout
from rich.console import Console

from dr_keras.atomic_files import cache_folder, new_folder, read_json, write_json
from dr_keras.data import held_out
from dr_keras.data.catalog import Catalog
from dr_keras.data.decoding import decode_files
from dr_keras.data.images import decode
from dr_keras.data.splits import GALLERY, SPLIT_NAMES
from dr_keras.errors import ImageError, InputError
from dr_keras.progress import bar, stderr

STORE_FORMAT = 2  # increase it whenever the decoder gives different pixels for the same file
SMALL_STORE_BYTES = 128 * 2**20  # a smaller store is decoded again rather than cached on disk
MOVE_CHUNK_IMAGES = 256
SPARE_BYTES = 2 * 2**30  # that a store leaves free on disk


class StreamedImages:
    """Acts like an (N, size, size, 3) uint8 array whose images are decoded whenever they are used.

    Args:
        files: N paths.
        size, resize: As for `dr_keras.data.images.decode`.

    Attributes:
        shape: (N, size, size, 3).
        lost: The files that can no longer be read; each is replaced by a gray square.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, files: Sequence[str], size: int, resize: str) -> None:
        self._files, self._size, self._resize = files, size, resize
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)
        self.shape = (len(files), size, size, 3)
        self.lost: set[str] = set()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Returns images by a number, a slice, or an array of numbers, as NumPy would."""
        chosen = np.arange(len(self))[rows]
        images = list(self._pool.map(self._decode, chosen.reshape(-1).tolist()))
        empty = np.empty((0, *self.shape[1:]), np.uint8)
        return (np.stack(images) if images else empty).reshape(*chosen.shape, *self.shape[1:])

    def _decode(self, row: int) -> np.ndarray:
        try:
            return decode(self._files[row], self._size, self._resize)
        except ImageError:
            self.lost.add(self._files[row])
            return np.full(self.shape[1:], 128, np.uint8)


Pixels = np.ndarray | StreamedImages


def load_pixels(
    catalog: Catalog, size: int, resize: str = "stretch", *, store: str = "memory", console: Console | None = None
) -> tuple[Catalog, Pixels, dict[str, Any]]:
    """Decodes the images of a catalog, leaving out those that cannot be decoded.

    Args:
        catalog: N images.
        size, resize: As for `dr_keras.data.images.decode`.
        store: One of `dr_keras.config.STORES`. 'auto' chooses memory for a small data set, else disk if it has room,
            else memory if half of what is available is enough, else stream.
        console: Shows the progress; standard error by default.

    Returns:
        The catalog of the usable images; their pixels, (n, size, size, 3) uint8, row by row; and the data report, with
        the counts per class and split, and the id of every skipped file with the reason.

    Raises:
        InputError: No image can be decoded, or the disk is full.
    """
    console = console or stderr()
    kind = _choose_store(len(catalog) * size * size * 3) if store == "auto" else store
    files = catalog.paths()
    pixels: Pixels
    if kind == "memory":
        with bar("reading images", len(files), console) as advance:
            pixels, failures = decode_files(files, size, resize, advance=advance)
        pixels = _without(pixels, failures)
    else:
        pixels, failures = _kept(catalog, files, size, resize, kind, console)
    skipped = [{"id": catalog.ids[row], "reason": reason} for row, reason in failures.items()]
    if len(failures) == len(catalog):
        raise InputError(f"none of the {len(catalog)} images can be read; {skipped[0]['id']} {skipped[0]['reason']}")
    if failures:
        catalog = catalog.take(np.setdiff1d(np.arange(len(catalog)), np.fromiter(failures, np.int64)))
    if kind == "stream":
        pixels = StreamedImages(catalog.paths(), size, resize)
    return catalog, pixels, _report(catalog, skipped) | {"store": kind}


def _choose_store(size: int) -> Literal["memory", "disk", "stream"]:
    if size <= SMALL_STORE_BYTES:
        return "memory"
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        if os.access(cache_folder(), os.W_OK) and size + SPARE_BYTES <= shutil.disk_usage(cache_folder()).free:
            return "disk"
    except OSError:
        pass  # there is no cache; the other stores need none
    return "memory" if size <= psutil.virtual_memory().available // 2 else "stream"


def _without(pixels: np.ndarray, failures: dict[int, str]) -> np.ndarray:
    """The rows that did not fail, compacted in place."""
    if not failures:
        return pixels
    good = np.setdiff1d(np.arange(len(pixels)), np.fromiter(failures, np.int64))
    for start in range(min(failures) // MOVE_CHUNK_IMAGES * MOVE_CHUNK_IMAGES, len(good), MOVE_CHUNK_IMAGES):
        rows = good[start : start + MOVE_CHUNK_IMAGES]
        pixels[start : start + len(rows)] = pixels[rows]
    return pixels[: len(good)]


def _kept(
    catalog: Catalog, files: list[str], size: int, resize: str, kind: str, console: Console
) -> tuple[np.ndarray, dict[int, str]]:
    """The cached pixels, decoded first if necessary, and the failures; no pixels for 'stream'."""
    place = f"{zlib.crc32(str(catalog.source).encode(errors='surrogateescape')):08x}-{size}-{resize}-{kind}"
    folder = cache_folder() / "pixels" / f"{place}-{_fingerprint(catalog, files, size, resize)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder.parent / f"{place}.lock", console):
            try:
                return _open_store(folder, size, kind)
            except (OSError, ValueError, KeyError):  # missing, or damaged
                shutil.rmtree(folder, ignore_errors=True)
            # Remove stores of files that have changed (open ones stay usable), and leftovers of killed processes.
            for old in (*folder.parent.glob(f"{place}-*"), *folder.parent.glob(f".{place}-*")):
                shutil.rmtree(old, ignore_errors=True)
            with new_folder(folder, replace=False) as temporary:
                _write_store(temporary, files, size, resize, kind, console)
            return _open_store(folder, size, kind)
    except OSError as error:
        raise InputError(
            f"the decoded images cannot be stored in {folder.parent}: {error.strerror}; use --store memory or stream, "
            "or set DR_KERAS_CACHE to another folder"
        ) from error


def _open_store(folder: Path, size: int, kind: str) -> tuple[np.ndarray, dict[int, str]]:
    description = read_json(folder / "store.json")
    shape = (description["images"] if kind == "disk" else 0, size, size, 3)
    failures = {int(row): reason for row, reason in description["failures"].items()}
    if not shape[0]:
        return np.empty(shape, np.uint8), failures
    if (folder / "pixels").stat().st_size < np.prod(shape):
        raise ValueError("the file is truncated")
    return np.memmap(folder / "pixels", np.uint8, "r", shape=shape), failures


def _write_store(folder: Path, files: list[str], size: int, resize: str, kind: str, console: Console) -> None:
    pixels = np.empty((0, size, size, 3), np.uint8)
    if kind == "disk":
        with open(folder / "pixels", "wb") as file:
            length = len(files) * size * size * 3
            _allocate(file.fileno(), length)
        pixels = np.memmap(folder / "pixels", np.uint8, "r+", shape=(len(files), size, size, 3))
    with bar("reading images" if kind == "disk" else "checking images", len(files), console) as advance:
        pixels, failures = decode_files(files, size, resize, out=pixels, advance=advance)
    if isinstance(pixels, np.memmap):
        _without(pixels, failures)
        pixels.flush()
    write_json(folder / "store.json", {"images": len(files) - len(failures), "failures": failures})


def _allocate(descriptor: int, length: int) -> None:
    """Allocates disk space for an empty file, so that a full disk is an error now rather than a SIGBUS later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, length)
        return
    if length > shutil.disk_usage(cache_folder()).free:  # macOS and Windows do not allocate in advance
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, length)


def _fingerprint(catalog: Catalog, files: list[str], size: int, resize: str) -> str:
    """A hash that changes if a file is added, removed, renamed or modified, or if the resizing is different."""
    described = np.full((len(files), 2), -1, np.int64)
    for row, file in enumerate(files):
        try:
            status = os.stat(file)
        except OSError:
            continue
        described[row] = status.st_size, status.st_mtime_ns
    digest = hashlib.sha256(f"{STORE_FORMAT} {size} {resize} {catalog.root}".encode(errors="surrogateescape"))
    digest.update("\0".join(catalog.ids).encode(errors="surrogateescape"))
    digest.update(described.data)
    return digest.hexdigest()[:32]


@contextmanager
def _one_at_a_time(file: Path, console: Console) -> Iterator[None]:
    """Waits while another process builds the same store."""
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        console.print("waiting for another run that is reading the same images")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _report(catalog: Catalog, skipped: list[dict[str, str]]) -> dict[str, Any]:
    table = np.zeros((len(catalog.classes), len(SPLIT_NAMES)), np.int64)
    np.add.at(table, (catalog.labels, catalog.splits), 1)
    names = SPLIT_NAMES if table[:, GALLERY].any() else SPLIT_NAMES[:GALLERY]  # most data sets have no such images
    notes = [*catalog.notes, *held_out.notes(catalog.classes, table)]
    if catalog.missing:
        notes.append(
            f"{len(catalog.missing)} held-out images do not exist or belong to a class without training images, "
            f"first {catalog.missing[0]}"
        )
    return {
        "root": str(catalog.root),
        "images": len(catalog),
        "splits": dict(zip(names, table.sum(axis=0).tolist(), strict=False)),
        "classes": {
            name: dict(zip(names, counts, strict=False))
            for name, counts in zip(catalog.classes, table.tolist(), strict=True)
        },
        "skipped_count": len(skipped),
        "skipped": skipped,
        "notes": notes,
    }
