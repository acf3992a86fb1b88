"""Archives of NumPy arrays (.npz): written atomically, read without pickle, errors in one line."""

import io
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


def packed_arrays(**arrays: np.ndarray) -> bytes:
    """Returns the content of an archive of arrays, by name."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def read_arrays(file: Path | io.BytesIO, kind: str) -> dict[str, np.ndarray]:
    """Reads all arrays of an archive, by name.

    Args:
        file: The file, or its content.
        kind: What it should be, for messages.

    Raises:
        RunError: The file is missing or damaged.
    """
    import zipfile

    try:
        with open(file, "rb") if isinstance(file, Path) else file as stream, np.load(stream) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        name = file if isinstance(file, Path) else "what is kept with the index"
        raise RunError(f"{name} cannot be read as {kind}: {error}") from error


def to_half(array: np.ndarray) -> np.ndarray:
    """Returns an array rounded to half precision, as float32."""
    return array.astype(np.float16).astype(np.float32)


def halved(array: np.ndarray) -> np.ndarray:
    """Returns an array in half precision if that loses nothing, and otherwise the array itself."""
    half = array.astype(np.float16)
    return half if np.array_equal(half, array) else array
