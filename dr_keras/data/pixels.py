"""Decodes a catalog's images once, in parallel, and keeps them: (N, H, W, 3) uint8 in memory."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dr_keras.data import SPLIT_NAMES
from dr_keras.data.catalog import Catalog
from dr_keras.data.images import decode
from dr_keras.errors import ImageError, InputError

BLOCK = 256  # images that a thread decodes between two progress reports

Advance = Callable[[int], None]


def decode_files(
    paths: Sequence[Path], size: int, *, threads: int | None = None, advance: Advance | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes files in parallel threads; Pillow lets go of the interpreter's lock while it decodes.

    Args:
        paths: N files.
        size: pixels a side.
        threads: how many; all cores by default.
        advance: called with the number of images done, after each block.

    Returns:
        (N, size, size, 3) uint8, zeros where a file failed; and the reason for each row that failed.
    """
    pixels = np.zeros((len(paths), size, size, 3), np.uint8)
    failures: dict[int, str] = {}

    def decode_block(start: int) -> None:
        rows = range(start, min(start + BLOCK, len(paths)))
        for row in rows:
            try:
                pixels[row] = decode(paths[row], size)
            except ImageError as error:
                failures[row] = str(error)
        if advance:
            advance(len(rows))

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(decode_block, range(0, len(paths), BLOCK)))  # list() raises what a thread raised
    return pixels, dict(sorted(failures.items()))


def load_pixels(
    catalog: Catalog, size: int, *, advance: Advance | None = None
) -> tuple[Catalog, np.ndarray, dict[str, Any]]:
    """Decodes a catalog's images and leaves out, by name, those that cannot be used.

    Returns:
        The catalog of the usable images; their pixels, (N, size, size, 3) uint8, row by row; and the data report:
        counts per class and split, and the name and reason of every file that was skipped.

    Raises:
        InputError: no image can be read.
    """
    pixels, failures = decode_files(catalog.paths(), size, advance=advance)
    skipped = [{"id": catalog.ids[row], "reason": reason} for row, reason in failures.items()]
    if failures:
        rows = np.setdiff1d(np.arange(len(catalog)), np.fromiter(failures, np.int64))
        if not len(rows):
            raise InputError(
                f"none of the {len(catalog)} images can be read; {skipped[0]['id']} {skipped[0]['reason']}"
            )
        catalog, pixels = catalog.take(rows), pixels[rows]
    return catalog, pixels, _report(catalog, skipped)


def _report(catalog: Catalog, skipped: list[dict[str, str]]) -> dict[str, Any]:
    table = np.zeros((len(catalog.classes), len(SPLIT_NAMES)), np.int64)
    np.add.at(table, (catalog.labels, catalog.splits), 1)
    single = [catalog.classes[label] for label in np.flatnonzero(table[:, 0] == 1)]
    empty = [catalog.classes[label] for label in np.flatnonzero(table[:, 0] == 0)]
    notes = []
    if single:
        notes.append(f"classes with one training image serve as negatives only: {', '.join(single)}")
    if empty:
        notes.append(f"classes without a training image take no part in training: {', '.join(empty)}")
    if catalog.missing:
        notes.append(
            f"{len(catalog.missing)} held-out images do not exist or have a class without training images, "
            f"{catalog.missing[0]} first"
        )
    return {
        "root": str(catalog.root),
        "images": len(catalog),
        "splits": dict(zip(SPLIT_NAMES, table.sum(axis=0).tolist(), strict=True)),
        "classes": {
            name: dict(zip(SPLIT_NAMES, counts, strict=True))
            for name, counts in zip(catalog.classes, table.tolist(), strict=True)
        },
        "skipped_count": len(skipped),
        "skipped": skipped,
        "notes": notes,
    }
