"""Reads all files of a collection by a Ray cluster, for what needs them at once: duplicates and evaluations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras.data.decoding import decode_with_parts
from dr_keras.duplicates.fingerprints import HASHED_SIDE, Fingerprints
from dr_keras.progress import bar
from dr_keras.ray_jobs.cluster import Lost, RayCluster
from dr_keras.ray_jobs.messages import Work
from dr_keras.ray_jobs.model import SharedModel, decoding_processes

MOST_FILES = 256  # in a block

Reasons = dict[int, str]
"""Why files could not be read, by row."""


@dataclass(frozen=True)
class EmbedFiles:
    """Embeds files; black ones for those that cannot be read."""

    model: SharedModel

    @property
    def gpu(self) -> bool:
        return self.model.gpu

    def start(self, cores: int) -> Callable[[list[str]], tuple[np.ndarray, Reasons]]:
        reader, processes = self.model.reader(cores), decoding_processes(cores)

        def embed(files: list[str]) -> tuple[np.ndarray, Reasons]:
            block = decode_with_parts(files, reader.size, reader.resize, facts=False, processes=processes)
            return reader.embed(block.pixels), block.failures

        return embed


@dataclass(frozen=True)
class FingerprintFiles:
    """Computes the fingerprints of files; unspecified ones for those that cannot be read."""

    gpu = False

    def start(self, cores: int) -> Callable[[list[str]], tuple[Fingerprints, Reasons]]:
        def fingerprints(files: list[str]) -> tuple[Fingerprints, Reasons]:
            block = decode_with_parts(files, HASHED_SIDE, facts=False, processes=decoding_processes(cores))
            made = Fingerprints.empty(len(files))
            made.set(0, block.pixels)
            return made, block.failures

        return fingerprints


def embed_files(cluster: RayCluster, model: SharedModel, files: Sequence[str]) -> tuple[np.ndarray, Reasons]:
    """Embeds files.

    Args:
        cluster: The cluster.
        model: What to embed with.
        files: N paths.

    Returns:
        (N, D) float32, unspecified for files that cannot be read, and why those cannot.
    """
    vectors, reasons = np.empty((len(files), 0), np.float32), Reasons()
    for rows, (made, failed) in _results(cluster, EmbedFiles(model), files, "embedding images", reasons):
        if not vectors.shape[1]:
            vectors = np.empty((len(files), made.shape[1]), np.float32)
        vectors[rows] = made
        reasons |= {rows[row]: reason for row, reason in failed.items()}
    return vectors, reasons


def fingerprint_files(cluster: RayCluster, files: Sequence[str]) -> tuple[Fingerprints, Reasons]:
    """Computes the fingerprints of files, as `dr_keras.duplicates.grouping.compute_fingerprints` does."""
    prints, reasons = Fingerprints.empty(len(files)), Reasons()
    for rows, (made, failed) in _results(cluster, FingerprintFiles(), files, "reading images", reasons):
        prints.hashes[rows], prints.thumbnails[rows], prints.flat[rows] = made.hashes, made.thumbnails, made.flat
        reasons |= {rows[row]: reason for row, reason in failed.items()}
    return prints, reasons


def _results(
    cluster: RayCluster, work: Work, files: Sequence[str], text: str, reasons: Reasons
) -> Iterator[tuple[list[int], tuple[Any, Reasons]]]:
    """Yields rows, and what was made of their files; adds to `reasons` the files that kill their reader."""
    with bar(text, len(files), cluster.console) as advance:
        rows = range(len(files))
        for some, made in cluster.results(work, rows, lambda block: [files[row] for row in block], MOST_FILES):
            if isinstance(made, Lost):
                reasons |= dict.fromkeys(some, made.reason)
            else:
                yield list(some), made
            advance(len(some))
