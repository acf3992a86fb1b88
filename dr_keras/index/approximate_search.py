"""How an index of more than a million images is searched: FAISS's approximate indexes over its first rows.

An engine only proposes neighbours: more than were asked for, by vectors that it keeps in a shorter form. The index then
ranks them by its own exact vectors, so distances are always exact, and only the set of neighbours is approximate. What
an engine knows is made again from the vectors at any time; its file is never the only place of anything.

- hnsw: a graph (Malkov and Yashunin 2016) over 8-bit vectors. The graph takes memory, and time to build.
- ivfpq: lists of near vectors (Jegou et al. 2011), each kept in 4-bit codes, compared in registers. Small, quick
  to build, and on a trained network's vectors the faster one at every recall that was measured.

Neither removes anything: rows of removed images, and those that a condition leaves out, are dropped from what is
proposed. FAISS could leave them out while it searches (IDSelector), but then it keeps walking where everything is left
out: with one class excluded and a query near it, its graph found none of the true neighbours. So more are proposed, and
where too few of them remain the caller searches exactly. Rows that came after the engine was built are searched exactly
beside it.

How far a search goes is set when the engine is built, on vectors of the index itself: as far as it takes to find the
`RECALL` of the true neighbours. `Index.stats` shows what was measured.
"""

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.errors import InputError, RunError
from dr_keras.index.exact_search import load_faiss, nearest, ranked
from dr_keras.index.store import QUICK

ENGINES = ("flat", "hnsw", "ivfpq")
FLAT_ROWS = 1_000_000  # exact up to here: one query reads 1 GB of 256-d vectors
MOST_GAPS = 0.5  # of the rows left out: beyond, the rest is searched exactly, which costs less and misses nothing
ORDINARY = 0.75  # of the proposals that are expected to be left by a condition: with fewer the rest is searched exactly
TAIL = 0.1  # rows that came later, as a share of those in the engine, before it is built again
SHORT_TAIL = 50_000  # rows that are searched exactly in a few milliseconds anyway

FEWEST = 256  # images; fewer are searched exactly in no time
TUNING_QUERIES = 256
TUNING_K = 30
RECALL = 0.985  # above the 0.98 that is promised: it is measured on few queries
BREADTHS = {
    "hnsw": (48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048),  # nodes of the graph kept in view
    "ivfpq": (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024),  # lists looked at
}
NEIGHBOURS = 32  # links of a node, FAISS's M
CONSTRUCTION = 100  # nodes kept in view while the graph is built
LIST_FACTOR = 4  # lists a square root of the rows
MOST_LISTS = 8192  # twice as many take twice as long to train and to fill
ITERATIONS = 10  # of k-means, by which the lists' centres are found
TRAINING = 64  # vectors a list that the lists are trained on
PART = 1 << 18  # vectors added at a time


@dataclass(frozen=True)
class Described:
    """What an index keeps of its engine.

    Attributes:
        name: 'hnsw' or 'ivfpq'.
        file: its name in the index's folder.
        rows: how many of the index's rows it holds, the first ones.
        breadth: how far a search goes: efSearch or nprobe.
        recall: share of the true 30 nearest that was found at this breadth.
        size, crc: of the file, in bytes, and its CRC-32.
    """

    name: str
    file: str
    rows: int
    breadth: int
    recall: float
    size: int
    crc: int

    def to_meta(self) -> dict[str, Any]:
        """As keys and plain values, for the index."""
        return {f"engine_{key}": value for key, value in asdict(self).items()}


def described(meta: dict[str, Any]) -> Described | None:
    """The engine that `Described.to_meta` told of, or None."""
    if "engine_file" not in meta:
        return None
    return Described(**{key: meta[f"engine_{key}"] for key in Described.__dataclass_fields__})


class Engine(Protocol):
    """Proposes neighbours."""

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> np.ndarray:
        """Rows (Q, C) among which the `k` nearest mostly are, in any order; -1 where too few were found.

        Args:
            queries: (Q, D) float32.
            k: how many are wanted; more are proposed.
            allowed: (n,) int64 ascending, the rows that may be found; None for all.
        """
        ...


def choose(engine: str, count: int) -> str:
    """The engine for so many images: `engine` itself, or by their number where it is 'auto'."""
    if engine == "auto":
        return "flat" if count <= FLAT_ROWS else "ivfpq"
    if engine not in ENGINES:
        raise InputError(f"engine is {engine!r}; choose one of auto, {', '.join(ENGINES)}")
    return engine


def worth_it(allowed: int, rows: int) -> bool:
    """Whether an engine over `rows` rows helps where only `allowed` of them may be found."""
    return allowed > (1 - MOST_GAPS) * rows


def outgrown(engine: Described, rows: int) -> bool:
    """Whether so many rows came since the engine was built that it should be built again."""
    return rows - engine.rows > max(SHORT_TAIL, TAIL * engine.rows)


def damage(folder: Path, engine: Described) -> str | None:
    """What is wrong with an engine's file, or None."""
    try:
        crc = _crc(folder / engine.file)
    except OSError as error:
        return f"the engine {engine.file} cannot be read: {error.strerror}"
    return None if crc == engine.crc else f"the engine {engine.file} was altered: its checksum differs"


def make(name: str, folder: Path, vectors: np.ndarray, number: int) -> Described:
    """Builds an engine over all rows and writes its file.

    Args:
        name: 'hnsw' or 'ivfpq'.
        folder: the index's.
        vectors: (R, D) float32 of unit length.
        number: makes the file's name another one than any before.

    Raises:
        InputError: there are too few vectors.
        RunError: the file cannot be written.
    """
    faiss = load_faiss()
    if len(vectors) < FEWEST:
        raise InputError(f"{len(vectors)} images are too few for the engine {name}; search them with flat")
    index = _trained(name, vectors)
    for start in range(0, len(vectors), PART):
        index.add(np.ascontiguousarray(vectors[start : start + PART]))
    file = folder / f"engine-{name}-{number}.faiss"
    engine = _Approximate(name, index, 0)
    breadth, recall = _tune(engine, name, vectors)
    try:
        with new_file(file) as temporary:
            faiss.write_index(index, str(temporary))
        return Described(name, file.name, len(vectors), breadth, recall, file.stat().st_size, _crc(file))
    except (OSError, RuntimeError) as error:  # FAISS says by the latter that a disk is full
        file.unlink(missing_ok=True)
        raise RunError(f"{file} cannot be written: {error}") from error


def load(folder: Path, engine: Described) -> Engine:
    """Opens an engine.

    Raises:
        FileNotFoundError: its file is gone: a writer has replaced it.
        RunError: it is damaged. Of a large file only the size is looked at; `damage` compares it whole.
    """
    file = folder / engine.file
    advice = "build it again with index.py verify --repair"
    size = file.stat().st_size
    if size != engine.size or (size <= QUICK and _crc(file) != engine.crc):
        raise RunError(f"the engine {file} was altered or damaged; {advice}")
    try:
        index = load_faiss().read_index(str(file))
    except RuntimeError as error:
        raise RunError(f"the engine {file} cannot be read; {advice}") from error
    if index.ntotal != engine.rows:
        raise RunError(f"the engine {file} holds {index.ntotal:,} rows and not {engine.rows:,}; {advice}")
    return _Approximate(engine.name, index, engine.breadth)


class _Approximate:
    """An `Engine` by FAISS."""

    def __init__(self, name: str, index: Any, breadth: int) -> None:
        self.breadth = breadth
        self._name, self._index = name, index

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> np.ndarray:
        """See `Engine`."""
        faiss, total = load_faiss(), self._index.ntotal
        # 8 bits a value put few neighbours in the wrong order, 4 bits for two values many.
        least = 2 * k if self._name == "hnsw" else max(5 * k, 150)
        share = 1.0 if allowed is None else max(len(allowed) / total, 1 - MOST_GAPS)
        more = min(total, int(1.2 * least / share) if allowed is not None else least)
        if self._name == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(self.breadth, more))
        else:
            parameters = faiss.SearchParametersIVF(nprobe=int(self.breadth / share))
        _, rows = self._index.search(queries, more, params=parameters)
        rows = np.where((rows >= 0) & (rows < total), rows, -1)
        if allowed is not None:
            may = np.zeros(total + 1, bool)  # the last stands for -1
            may[allowed] = True
            rows = np.where(may[rows], rows, -1)
            # Where what is left out has little to do with the query, the share of it among the proposals is that among
            # all rows. Where much more is left out, neighbours that may be found are beyond what was looked at.
            expected = more * len(allowed) / total
            rows[(rows >= 0).sum(axis=1) < ORDINARY * expected] = -1
        return rows


def _trained(name: str, vectors: np.ndarray) -> Any:
    """An empty FAISS index, trained on some of the vectors."""
    faiss = load_faiss()

    count, dim = vectors.shape
    if name == "hnsw":
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, NEIGHBOURS)
        index.hnsw.efConstruction = CONSTRUCTION
        sample = 65536
    else:
        lists = min(MOST_LISTS, 2 ** max(4, round(np.log2(LIST_FACTOR * count**0.5))))
        index = faiss.index_factory(dim, f"IVF{lists},PQ{_codes(dim)}x4fs")
        sample = TRAINING * lists
        index.cp.niter = ITERATIONS
        index.cp.max_points_per_centroid = TRAINING
        index.cp.min_points_per_centroid = 1
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:sample])
    index.train(np.ascontiguousarray(vectors[chosen]))
    return index


def _codes(dim: int) -> int:
    """How many 4-bit codes a vector gets: one for two values, or fewer where D is not even."""
    return next(codes for codes in range(max(1, dim // 2), 0, -1) if dim % codes == 0)


def _tune(engine: _Approximate, name: str, vectors: np.ndarray) -> tuple[int, float]:
    """The smallest breadth that reaches the wanted recall on some of the vectors themselves, and that recall."""
    rows = np.sort(np.random.default_rng(1).permutation(len(vectors))[:TUNING_QUERIES])
    queries = np.ascontiguousarray(vectors[rows])
    k = min(TUNING_K + 1, len(vectors))  # each finds itself
    truth, _ = nearest(queries, vectors, k)
    recall = 0.0
    for breadth in BREADTHS[name]:
        engine.breadth = breadth
        found, _ = ranked(queries, vectors, engine.search(queries, k, None), k)
        same = [len(np.intersect1d(a, b)) - 1 for a, b in zip(truth, found, strict=True)]
        recall = float(np.mean(same)) / (k - 1)
        if recall >= RECALL:
            break
    return engine.breadth, recall


def _crc(file: Path) -> int:
    crc = 0
    with open(file, "rb") as stream:
        while part := stream.read(1 << 24):
            crc = zlib.crc32(part, crc)
    return crc
