"""People's judgments, collected by the page: which of two images is more like a third?"""

import csv
import io
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from dr_keras.data.sources.table import read_table
from dr_keras.errors import InputError
from dr_keras.index.index import Vectors

COLUMNS = ("query", "positive", "negative", "votes", "votes_against")
CANDIDATES = 256  # images that a query is compared with
NEAR = 32  # of them, the nearest are asked about
COPY = 0.05  # distance of near-copies, which are not asked about
APART = 0.5  # of their distance to the query: how far the two images are from each other, at least


class JudgmentFile:
    """The CSV file that judgments are appended to, as `train.py --triplets` reads it.

    Args:
        file: The file; it is created with the first judgment, in a folder that exists.

    Raises:
        InputError: The file exists with other columns, or its folder does not exist.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._counted_bytes = 0  # of the file, whose judgments are in `count`
        if not file.parent.is_dir():
            raise InputError(f"--judge {file}: there is no folder {file.parent}")
        self.count = 0
        if file.is_file() and file.stat().st_size:
            for _ in read_table(file, *COLUMNS):
                pass  # it checks each line
            with open(file, encoding="utf-8-sig", newline="") as stream:
                header = next(csv.reader(stream))
            if tuple(name.strip().lower() for name in header) != COLUMNS:
                raise InputError(f"--judge {file} has other columns than {', '.join(COLUMNS)}; name a new file")

    def append(self, query: str, positive: str, negative: str) -> int:
        """Adds one vote, in one write, and returns the number of judgments in the file.

        Args:
            query, positive, negative: The ids of the images.

        Raises:
            OSError: The file cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        with self._lock, open(self._file, "ab+") as stream:
            size = stream.seek(0, os.SEEK_END)
            self._count(stream, size)
            if not size:
                writer.writerow(COLUMNS)
            else:
                stream.seek(size - 1)
                if stream.read(1) != b"\n":  # a person has edited it
                    text.write("\n")
            writer.writerow([query, positive, negative, 1, 0])
            try:
                stream.write(text.getvalue().encode())
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                with suppress(OSError):
                    stream.truncate(size)  # half a line would spoil the next one
                raise
            self.count += 1
            self._counted_bytes = stream.tell()
            return self.count

    def _count(self, stream: IO[bytes], size: int) -> None:
        """Counts the judgments that others have added meanwhile, such as another worker of the server."""
        if size < self._counted_bytes:  # a person has removed some
            self.count = self._counted_bytes = 0
        stream.seek(self._counted_bytes)
        text = stream.read(size - self._counted_bytes).decode(errors="replace")
        rows = sum(bool(row) for row in csv.reader(io.StringIO(text, newline="")))
        self.count += rows - (rows > 0 and not self._counted_bytes)  # without the header
        self._counted_bytes = size


def uncertain_triplet(vectors: Vectors, rows: np.ndarray, random: np.random.Generator) -> tuple[int, int, int]:
    """Chooses a random query, and two images near it of which the network is least sure which is nearer.

    These are images next to each other in the ranking, whose distances to the query differ the least, but which are
    not like each other: to tell near-copies apart teaches nothing.

    Args:
        vectors: The vectors by row.
        rows: (N,) the rows to choose from, at least three.
        random: Draws the query and what it is compared with.

    Returns:
        The rows of the query and of the two images, in random order.
    """
    chosen = random.permutation(rows)[: CANDIDATES + 1]
    query, others = chosen[0], chosen[1:]
    own, found = np.split(np.asarray(vectors[chosen], np.float32), [1])
    distance = np.linalg.norm(found - own, axis=1)
    # Near-copies of the query only if there is nothing else.
    order = np.lexsort((distance, distance < COPY))[: max(NEAR, 2)]
    others, found, distance = others[order], found[order], distance[order]
    unsure = np.diff(distance)
    apart = np.linalg.norm(np.diff(found, axis=0), axis=1)
    askable = (apart > np.maximum(APART * distance[:-1], COPY)) & (unsure >= 0)
    unsure = np.where(askable, unsure, np.inf) if askable.any() else np.abs(unsure)
    place = int(np.argmin(unsure))
    first, second = random.permutation(others[place : place + 2]).tolist()
    return int(query), int(first), int(second)
