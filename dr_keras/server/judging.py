"""People's judgments, collected by the page: which of two images is more like a third?"""

import csv
import io
import os
import threading
from pathlib import Path

import numpy as np

from dr_keras.data.sources.table import read_table
from dr_keras.errors import InputError

COLUMNS = ("query", "positive", "negative", "votes", "votes_against")
CANDIDATES = 256  # images that a query is compared with
NEAR = 32  # of them, the nearest are asked about
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
        if not file.parent.is_dir():
            raise InputError(f"--judge {file}: there is no folder {file.parent}")
        self.count = 0
        if file.exists():
            lines = list(read_table(file, *COLUMNS))
            self.count = len(lines)
            if lines and tuple(lines[0].values) != COLUMNS:
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
        with self._lock:
            if not self._file.exists() or not self._file.stat().st_size:
                writer.writerow(COLUMNS)
            writer.writerow([query, positive, negative, 1, 0])
            with open(self._file, "a", encoding="utf-8", newline="") as stream:
                stream.write(text.getvalue())
                stream.flush()
                os.fsync(stream.fileno())
            self.count += 1
            return self.count


def uncertain_triplet(vectors: np.ndarray, rows: np.ndarray, random: np.random.Generator) -> tuple[int, int, int]:
    """Chooses a random query, and two images near it of which the network is least sure which is nearer.

    These are images next to each other in the ranking, whose distances to the query differ the least, but which are
    not like each other: to tell near-copies apart teaches nothing.

    Args:
        vectors: (R, D) by row.
        rows: (N,) the rows to choose from, at least three.
        random: Draws the query and what it is compared with.

    Returns:
        The rows of the query and of the two images, in random order.
    """
    chosen = random.permutation(rows)[: CANDIDATES + 1]
    query, others = chosen[0], chosen[1:]
    found = np.asarray(vectors[others], np.float32)
    distance = np.linalg.norm(found - vectors[query], axis=1)
    order = np.argsort(distance, kind="stable")[: max(NEAR, 2)]
    others, found, distance = others[order], found[order], distance[order]
    unsure = np.diff(distance)
    alike = np.linalg.norm(np.diff(found, axis=0), axis=1) < APART * distance[:-1]
    if not alike.all():
        unsure = np.where(alike, np.inf, unsure)
    place = int(np.argmin(unsure))
    first, second = random.permutation(others[place : place + 2]).tolist()
    return int(query), int(first), int(second)
