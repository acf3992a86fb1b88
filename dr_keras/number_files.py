"""Archives of NumPy arrays (.npz): written atomically, read without pickle, errors in one line."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.errors import RunError


def write_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Writes arrays by name.

    Args:
        file: The file.
        arrays: The arrays.

    Raises:
        OSError: The file cannot be written.
    """
    with new_file(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def read_arrays(file: Path, kind: str) -> dict[str, np.ndarray]:
    """Reads all arrays of an archive, by name.

    Args:
        file: The file.
        kind: What it should be, for messages.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{file} cannot be read as {kind}: {error}") from error


def halved(array: np.ndarray) -> np.ndarray:
    """Returns an array in half precision if that loses nothing, and otherwise the array itself."""
    half = array.astype(np.float16)
    return half if np.array_equal(half, array) else array
