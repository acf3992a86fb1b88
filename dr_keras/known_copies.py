"""Which images of an index are copies of a new file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_keras.atomic_files import sha256_of
from dr_keras.data.image_ids import image_path
from dr_keras.data.images import decode
from dr_keras.duplicates.copies import CopyFinder
from dr_keras.errors import ImageError, InputError
from dr_keras.index.index import Index
from dr_keras.index.sync import Reader

CHUNK_FILES = 256  # compared together
LOOKED_AT = 50  # nearest images that are compared with a new one


@dataclass(frozen=True)
class KnownCopies:
    """The copies of a file that an index has.

    Attributes:
        file: The file.
        exact: The ids of images with the same content.
        near: The ids of images that look the same, nearest first.
    """

    file: str
    exact: list[str]
    near: list[str]


def known_copies(index: Index, reader: Reader, files: Sequence[str | os.PathLike[str]]) -> list[KnownCopies]:
    """Finds the copies of files that an index has.

    Equal files are found by their hashes; others among the `LOOKED_AT` images with the nearest embeddings, by what they
    look like (`dr_keras.duplicates.copies`). A file is no copy of itself.

    Args:
        index: The index.
        reader: How its model reads files.
        files: The files.

    Raises:
        InputError: A file cannot be read; the message names it.
    """
    names = [os.fspath(file) for file in files]
    finder = CopyFinder()
    found = []
    for start in range(0, len(names), CHUNK_FILES):
        found += _known(index, reader, names[start : start + CHUNK_FILES], finder)
    return found


def _known(index: Index, reader: Reader, names: Sequence[str], finder: CopyFinder) -> list[KnownCopies]:
    pixels, hashes = [], []
    for name in names:
        try:
            pixels.append(decode(name, reader.size, reader.resize))
            hashes.append(sha256_of(name))
        except (ImageError, OSError) as error:
            raise InputError(f"{name} {getattr(error, 'strerror', None) or error}") from error
    vectors = reader.embed(np.stack(pixels))
    equal = index.image_files.ids_by_hash(hashes)
    rows, _ = index.search(vectors, LOOKED_AT)
    found = []
    for name, vector, hash, near in zip(names, vectors, hashes, rows, strict=True):
        near = near[near >= 0]
        entries = index.records.entries(near)
        paths = [image_path(entry.id, index.root) for entry in entries]
        group = finder.groups(
            [(name, hash), *((path, None) for path in paths)], np.concatenate([vector[None], index.vectors[near]])
        )
        exact = [id for id in equal.get(hash, []) if not _same_file(name, image_path(id, index.root))]
        alike = [
            entry.id
            for entry, path, first in zip(entries, paths, group[1:].tolist(), strict=True)
            if first == 0 and entry.hash != hash and not _same_file(name, path)
        ]
        found.append(KnownCopies(name, exact, alike))
    return found


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False
