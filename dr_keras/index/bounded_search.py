"""Exact search that reads a quarter of an index: 8-bit copies of the vectors rule out most of them.

A vector x is kept as s c + e, where c are 8-bit integers, s is a step, and e is what rounding leaves; a query q is
t d + f likewise. By Cauchy and Schwarz,

    |q . x - s t (d . c)| <= |f| |s c| + |q| |e|,

so the copies bound each squared distance |q|^2 + |x|^2 - 2 q . x from both sides. A vector whose lower bound is above
the k-th smallest upper bound is not among the k nearest. The others, usually a few hundred, are ranked by the vectors
themselves. The result is the exact one, with ties ranked by row, whatever the vectors are; if the bounds rule out
little, as among thousands of equal images, it only takes longer.

The file is made from the vectors and can be made again at any time. It holds, for the first rows of an index, the codes
c, (N, D) int8, and then three arrays of (N,) float32: s, and |q| |e| plus and minus half of |x|^2, for unit queries.
"""

import os
import threading
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

from dr_keras.index.exact_search import distances
from dr_keras.index.vector_file import LENGTH_TOLERANCE
from dr_keras.runtimes import threads

LEAST_ROWS = 20_000  # fewer are compared in a millisecond without
FEW_SEARCHES = 4  # a process that searches less often need not open the file
LEVELS = 127
LONGEST = 1 + LENGTH_TOLERANCE  # of vectors, and of queries but for special ones
# Half of a squared distance is computed in float32 with an error of at most (D + 2) 2^-24 times 2, twice: for a vector
# that is ruled out and for the k-th. The rest is for the few other roundings.
ROUNDING = 8 * 2.0**-24  # times D
FIRST_ROWS = 1 << 12
BLOCK_ROWS = 1 << 16  # at a time; their products stay in the cache
FEW_PRODUCTS = 4  # queries
EXACT_ROWS = 1 << 14  # candidates that are compared at a time
BUILD_ROWS = 1 << 14
ROW_BYTES = 12  # of the three arrays


def is_useful(rows: int) -> bool:
    """Whether an index of so many rows is searched faster with copies, here."""
    return rows >= LEAST_ROWS and is_available()


def is_available() -> bool:
    """Whether the kernels for 8-bit integers are installed."""
    return find_spec("numkong") is not None


def write_copies(file: Path, vectors: np.ndarray) -> None:
    """Writes the copies of vectors to a file, which should not exist.

    Args:
        file: The file.
        vectors: (N, D) float32, of length 1 within `LENGTH_TOLERANCE`.

    Raises:
        OSError: It cannot be written.
    """
    from concurrent.futures import ThreadPoolExecutor  # which a single search need not import

    count = len(vectors)
    about = np.empty((3, count), np.float32)
    with open(file, "wb") as stream, ThreadPoolExecutor(threads()) as pool:
        starts = range(0, count, BUILD_ROWS)
        made = pool.map(lambda start: _copied(vectors[start : start + BUILD_ROWS]), starts)
        for start, (codes, numbers) in zip(starts, made, strict=True):
            about[:, start : start + BUILD_ROWS] = numbers
            stream.write(codes.data)
        stream.write(about.data)
        stream.flush()
        os.fsync(stream.fileno())


def _copied(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes (n, D) of vectors, and the three numbers of each, (3, n)."""
    steps = np.maximum(np.abs(vectors).max(axis=1) / LEVELS, np.finfo(np.float32).tiny)
    values = vectors / steps[:, None]
    codes = np.rint(values, out=values).astype(np.int8)
    values *= steps[:, None]
    values -= vectors
    errors = LONGEST * np.sqrt(np.einsum("nd,nd->n", values, values))
    halves = np.einsum("nd,nd->n", vectors, vectors) / 2
    return codes, np.stack([steps, errors + halves, errors - halves])


class BoundedSearch:
    """Searches by copies, which it holds in memory.

    Args:
        file: The file of the copies.
        rows: N, how many vectors they are of.
        dim: D.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has another size.
    """

    def __init__(self, file: Path, rows: int, dim: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        import numkong

        if file.stat().st_size != rows * (dim + ROW_BYTES):
            raise ValueError(f"{file} has another size")
        self._rows = rows
        self._parts = [slice(0, min(FIRST_ROWS, rows))]
        rest = max(0, rows - FIRST_ROWS)
        shares = threads() * -(-rest // (threads() * BLOCK_ROWS))
        ends = np.linspace(FIRST_ROWS, rows, shares + 1).astype(int).tolist()
        self._parts += [slice(*share) for share in pairwise(ends)] if shares else []
        codes = np.memmap(file, np.int8, "r", shape=(rows, dim))
        self._codes = [numkong.dots_pack(np.array(codes[part])) for part in self._parts]  # as the kernels read them
        self._steps, below, self._above = np.fromfile(file, np.float32, offset=rows * dim).reshape(3, rows)
        self._most_above = [float(self._above[part].max(initial=-np.inf)) for part in self._parts]
        self._spread = below + self._above
        self._error = float(self._spread.max(initial=0)) / 2  # of a copy, at most
        self._allowed: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        ends = np.linspace(1, len(self._parts), threads() + 1).astype(int).tolist()
        self._shares = [range(*share) for share in pairwise(ends)]  # of the parts after the first, for each thread
        self._pool = ThreadPoolExecutor(threads())

    def search(self, queries: np.ndarray, k: int, vectors: np.ndarray, searchable: np.ndarray | None) -> np.ndarray:
        """Finds the k nearest rows of each query.

        Args:
            queries: (Q, D) float32, finite.
            k: At least 1; capped at the number of rows.
            vectors: (N or more, D) float32, of which the first N have been copied.
            searchable: (n,) int64 ascending, the rows that may be returned; None for all.

        Returns:
            (Q, K) int64, nearest first and ties by row.
        """
        allowed = self._mask(searchable)
        k = min(k, self._rows if searchable is None else len(searchable))
        candidates = self._candidates(queries, k, allowed)
        return np.stack([_nearest_of(*one, vectors, k) for one in zip(queries, candidates, strict=True)])

    def _mask(self, searchable: np.ndarray | None) -> np.ndarray | None:
        """Which rows may be returned, (N,) bool; None for all. Those of the last search are remembered."""
        if searchable is None or len(searchable) == self._rows:
            return None
        rows, mask = self._allowed
        if rows is not searchable:
            mask = np.zeros(self._rows, bool)
            mask[searchable] = True
            self._allowed = searchable, mask
        return mask

    def _candidates(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> list[np.ndarray]:
        """The rows that may be among the k nearest of each query, ascending.

        Nearness is q . x - |x|^2 / 2, which the copies bound.
        """
        import numkong

        steps = np.maximum(np.abs(queries).max(axis=1) / LEVELS, np.finfo(np.float32).tiny)
        codes = np.rint(queries / steps[:, None]).astype(np.int8)
        errors = np.linalg.norm(queries - codes * steps[:, None], axis=1)
        lengths = np.linalg.norm(queries, axis=1)
        slack = (LONGEST + self._error) * errors + np.maximum(lengths - LONGEST, 0) * self._error
        slack = 2 * (slack + ROUNDING * queries.shape[1] * np.maximum(lengths, 1) ** 2).astype(np.float32)  # (Q,)
        best = _Best(len(queries), k)
        looked: list[list[tuple[np.ndarray, np.ndarray]]] = [[]] * len(self._parts)

        def multiply(numbers: range) -> list[np.ndarray]:
            return [np.asarray(numkong.dots_packed(codes, self._codes[number])) for number in numbers]

        def look(number: int, products: np.ndarray) -> None:
            """Finds the rows of a part that may be near enough by what is known, and how near they may be."""
            part = self._parts[number]
            row_steps = self._steps[part]
            scaled = np.empty(len(row_steps), np.float32)  # one at a time stays in the processor's cache
            # No row of the part is nearer than this makes of it, so that most need no more than a comparison.
            with np.errstate(over="ignore"):  # the steps of a query of zeros are as small as can be
                least = (best.bounds - slack - self._most_above[number]) / steps
            found = []
            for query, row in enumerate(products):
                np.copyto(scaled, row, casting="unsafe")
                scaled *= row_steps
                near = scaled >= least[query]
                if allowed is not None:
                    near &= allowed[part]
                rows = np.flatnonzero(near)
                most = scaled[rows] * steps[query]
                rows += part.start
                most += self._above[rows]
                best.add(query, most - self._spread[rows])
                found.append((rows, most))
            looked[number] = found

        def look_at(numbers: range) -> list[np.ndarray]:
            for number in numbers:
                look(number, *multiply(range(number, number + 1)))
            return []

        # With few queries, the other threads only multiply: taking turns at the interpreter would take as long.
        work = multiply if len(queries) <= FEW_PRODUCTS else look_at
        theirs = [self._pool.submit(work, numbers) for numbers in self._shares[1:]]
        look_at(range(1))  # which gives the others a bound to begin with
        look_at(self._shares[0])
        for numbers, future in zip(self._shares[1:], theirs, strict=True):
            for number, products in zip(numbers, future.result(), strict=False):
                look(number, products)
        least = best.bounds - slack
        return [
            np.concatenate([found[query][0][found[query][1] >= bound] for found in looked])
            for query, bound in enumerate(least)
        ]


class _Best:
    """The k greatest values for each query until now. Threads may share it.

    Args:
        queries: How many.
        k: At least 1.

    Attributes:
        bounds: (Q,) the k-th greatest value of each query; -inf while there are fewer.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.bounds = np.full(queries, -np.inf, np.float32)
        self._values = [np.empty(0, np.float32)] * queries
        self._k = k
        self._guard = threading.Lock()

    def add(self, query: int, values: np.ndarray) -> None:
        """Takes more values of a query."""
        with self._guard:
            values = np.concatenate([self._values[query], values])
            if len(values) >= self._k:
                values = np.partition(values, len(values) - self._k)[-self._k :]
                self.bounds[query] = values[0]
            self._values[query] = values


def _nearest_of(query: np.ndarray, rows: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """The k nearest of some rows (n,), which are ascending: (k,), ties by row."""
    best, found = np.empty(0, np.int64), np.empty(0, np.float32)
    for start in range(0, len(rows), EXACT_ROWS):
        some = rows[start : start + EXACT_ROWS]
        found = np.concatenate([found, distances(query[None], vectors, some[None])[0]])
        best = np.concatenate([best, some])
        order = np.argsort(found, kind="stable")[:k]
        best, found = best[order], found[order]
    return best
