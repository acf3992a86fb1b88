"""Groups images that are copies of each other: by their content, by their fingerprints, and by their embeddings."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from dr_keras.atomic_files import sha256_of
from dr_keras.data.decoding import decode_files
from dr_keras.duplicates.fingerprints import (
    HASHED_SIDE,
    MAX_HASH_BITS,
    MIN_CORRELATION,
    SEARCHED_QUERIES,
    Fingerprints,
    close_hashes,
    close_vectors,
    edge_correlation,
)
from dr_keras.progress import bar

DECODED_BYTES = 256 * 2**20  # of pixels in memory at a time; with less, child processes would be started too often
EMBEDDED_IMAGES = 512  # images embedded between two steps of the progress bar
CONFIRMED_PAIRS = 4096  # pairs compared at a time: 2 x 1440 differences each, 47 MB

Embed = Callable[[np.ndarray], np.ndarray]
EmbedFiles = Callable[[Sequence[str]], tuple[np.ndarray, dict[int, str]]]
"""Takes N paths, and returns (N, D) vectors and why others could not be read, by row."""


@dataclass(frozen=True)
class EmbeddingSearch:
    """How near-duplicates are found by embeddings.

    Attributes:
        embed: Embeds files.
        max_distance: The largest Euclidean distance between the vectors of two copies.
    """

    embed: EmbedFiles
    max_distance: float


def group_by_content(files: Sequence[str], console: Console) -> tuple[np.ndarray, dict[int, str]]:
    """Groups files with equal content.

    Args:
        files: N paths.
        console: Shows progress.

    Returns:
        For each row the first row with the same content, (N,) int64, -1 if the file cannot be read; and the reason for
        each unreadable row.
    """
    sizes: list[int] = []
    reasons: dict[int, str] = {}
    for row, file in enumerate(files):
        try:
            sizes.append(os.stat(file).st_size)
        except OSError as error:
            sizes.append(-1)
            reasons[row] = f"cannot be read: {error.strerror or error}"
    counts = Counter(sizes)
    content = np.arange(len(files))
    content[list(reasons)] = -1
    shared = [row for row, size in enumerate(sizes) if size >= 0 and counts[size] > 1]
    first: dict[bytes, int] = {}
    with bar("comparing files", len(shared), console) as advance:
        for row in shared:
            try:
                content[row] = first.setdefault(sha256_of(files[row]), row)
            except OSError as error:
                content[row] = -1
                reasons[row] = f"cannot be read: {error.strerror or error}"
            advance(1)
    return content, reasons


def compute_fingerprints(files: Sequence[str], console: Console) -> tuple[Fingerprints, dict[int, str]]:
    """Reads images and computes their fingerprints.

    Args:
        files: N paths.
        console: Shows progress.

    Returns:
        The fingerprints, unspecified for images that cannot be read, and the reason for each unreadable row.
    """
    fingerprints = Fingerprints.empty(len(files))
    failures: dict[int, str] = {}
    with bar("reading images", len(files), console) as advance:
        for first, pixels, failed in _decoded(files, HASHED_SIDE, "stretch", advance):
            failures |= failed
            fingerprints.set(first, pixels)
    return fingerprints, failures


def _decoded(
    files: Sequence[str], size: int, resize: str, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """Decodes files in blocks: the first row, the pixels (n, size, size, 3) uint8, and the reasons by row."""
    block = max(1, DECODED_BYTES // (3 * size * size))
    for start in range(0, len(files), block):
        pixels, failures = decode_files(files[start : start + block], size, resize, advance=advance)
        yield start, pixels, {start + row: reason for row, reason in failures.items()}


def join_groups(group: np.ndarray, rows: np.ndarray, others: np.ndarray) -> None:
    """Joins the groups of each pair of rows, in place.

    Args:
        group: (N,) int64, the first row of each row's group.
        rows, others: (n,) int64, the pairs.
    """
    while True:
        left, right = group[rows], group[others]
        apart = left != right
        if not apart.any():
            return
        rows, others = rows[apart], others[apart]
        low, high = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
        np.minimum.at(group, high, low)
        while (further := group[group]).tobytes() != group.tobytes():
            group[:] = further


def join_by_fingerprints(group: np.ndarray, fingerprints: Fingerprints, rows: np.ndarray, console: Console) -> None:
    """Joins the groups of images with similar fingerprints, in place.

    Args:
        group: (N,) int64, the first row of each row's group.
        fingerprints: Of the N images.
        rows: (n,) int64, the images to compare.
        console: Shows progress.
    """
    with bar("looking for near-duplicates", len(rows), console) as advance:
        for one, other in close_hashes(fingerprints.hashes[rows], MAX_HASH_BITS):
            left, right = rows[one], rows[other]
            apart = group[left] != group[right]  # so of a million pairs among a thousand copies, few are compared
            left, right = left[apart], right[apart]
            for start in range(0, len(left), CONFIRMED_PAIRS):
                part = slice(start, start + CONFIRMED_PAIRS)
                same = edge_correlation(fingerprints.thumbnails, left[part], right[part]) >= MIN_CORRELATION
                join_groups(group, left[part][same], right[part][same])
            advance(SEARCHED_QUERIES)


def join_by_embedding(
    group: np.ndarray, files: Sequence[str], rows: np.ndarray, search: EmbeddingSearch, console: Console
) -> None:
    """Joins the groups of images with nearby embeddings, in place.

    Args:
        group: (N,) int64, the first row of each row's group.
        files: N paths.
        rows: (n,) int64, the images to compare.
        search: How they are compared.
        console: Shows progress.
    """
    vectors, failures = search.embed([files[row] for row in rows])
    kept = np.setdiff1d(np.arange(len(rows)), np.fromiter(failures, np.int64))  # files may be gone by now
    if not len(kept):
        return
    rows, vectors = rows[kept], vectors[kept]
    with bar("comparing embeddings", len(rows), console) as advance:
        for one, other in close_vectors(vectors, search.max_distance):
            join_groups(group, rows[one], rows[other])
            advance(SEARCHED_QUERIES)


def compute_vectors(
    files: Sequence[str], embed: Embed, size: int, resize: str, console: Console
) -> tuple[np.ndarray, dict[int, str]]:
    """Embeds files.

    Args:
        files: N paths.
        embed, size, resize: As for `dr_keras.duplicates.find.find_duplicates`.
        console: Shows progress.

    Returns:
        The vectors (N, D), unspecified for images that cannot be read, and the reason for each unreadable row.
    """
    parts: list[np.ndarray] = []
    reasons: dict[int, str] = {}
    with bar("embedding images", len(files), console) as advance:
        for _, pixels, failures in _decoded(files, size, resize):
            reasons |= failures
            for first in range(0, len(pixels), EMBEDDED_IMAGES):
                images = pixels[first : first + EMBEDDED_IMAGES]
                vectors = np.asarray(embed(images), np.float32)
                if vectors.ndim != 2 or len(vectors) != len(images):
                    raise ValueError(
                        f"embed returned {vectors.shape} for {len(images)} images; expected one vector for each"
                    )
                parts.append(vectors)
                advance(len(images))
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32), reasons
