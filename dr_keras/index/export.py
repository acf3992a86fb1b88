"""Exports an index to files that other programs can read: NumPy's .npy with a .json next to it, or Parquet."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dr_keras.atomic_files import new_file, write_json
from dr_keras.errors import InputError, MissingPackage
from dr_keras.index.database import one_line_errors

if TYPE_CHECKING:
    from dr_keras.index.index import Entry, Index

BLOCK_ROWS = 65536  # images written at a time


def export_index(index: "Index", file: str | os.PathLike[str]) -> None:
    """Exports an index's images with their vectors for other programs.

    Args:
        index: The index; its held-out images are exported, too.
        file: FILE.npy, for the vectors (M, D) float32 with FILE.json next to it for what is known about each image, or
            FILE.parquet for both (needs pyarrow).

    Raises:
        InputError: The file has another extension.
        MissingPackage: Pyarrow is not installed.
        RunError: It cannot be written.
    """
    file = Path(file)
    writers = {".npy": _write_npy, ".parquet": _write_parquet}
    if file.suffix not in writers:
        raise InputError(f"{file} ends in {file.suffix or 'nothing'}; an index is exported as FILE.npy or FILE.parquet")
    rows = np.array([row for row, *_ in index.records.listing()], np.int64)
    with one_line_errors(file.parent):
        writers[file.suffix](index, file, rows)


def _write_npy(index: "Index", file: Path, rows: np.ndarray) -> None:
    with new_file(file) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(rows), index.dim))
        for start in range(0, len(rows), BLOCK_ROWS):
            out[start : start + BLOCK_ROWS] = index.vectors[rows[start : start + BLOCK_ROWS]]
        out.flush()
        del out
    known = [
        {
            "id": entry.id,
            "label": entry.label,
            "split": entry.split,
            "sha256": entry.hash.hex() if entry.hash else None,
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
            "attributes": dict(entry.attributes),
        }
        for entries in _blocks(index, rows)
        for entry in entries
    ]
    write_json(file.with_suffix(".json"), {"root": str(index.root), "run": index.run, "images": known})


def _write_parquet(index: "Index", file: Path, rows: np.ndarray) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingPackage("Parquet needs pyarrow: pip install pyarrow, or export FILE.npy") from error
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("label", pa.string()),
            ("split", pa.string()),
            ("sha256", pa.string()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("attributes", pa.string()),  # as JSON: images may have different ones
            ("vector", pa.list_(pa.float32(), index.dim)),
        ]
    )
    with new_file(file) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for number, entries in enumerate(_blocks(index, rows)):
            vectors = index.vectors[rows[number * BLOCK_ROWS : number * BLOCK_ROWS + len(entries)]]
            columns = [
                [_readable(entry.id) for entry in entries],
                [_readable(entry.label) for entry in entries],
                [entry.split for entry in entries],
                [entry.hash.hex() if entry.hash else None for entry in entries],
                [entry.size for entry in entries],
                [entry.mtime_ns for entry in entries],
                [json.dumps(dict(entry.attributes)) for entry in entries],
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), index.dim))
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _blocks(index: "Index", rows: np.ndarray) -> Iterator[list["Entry"]]:
    for start in range(0, len(rows), BLOCK_ROWS):
        yield index.records.entries(rows[start : start + BLOCK_ROWS])


def _readable(name: str) -> str:
    """A name that Parquet can hold: bytes that are not UTF-8 become replacement characters."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
