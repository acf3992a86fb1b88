"""Search for indexes of more than a million images: FAISS's approximate indexes over the first rows.

An engine only proposes neighbors: more than were asked for, using compressed copies of the vectors. The index then
ranks them by its own exact vectors, so distances are always exact, and only the set of neighbors is approximate. An
engine is built from the vectors and can be rebuilt at any time: its file is never the only copy of anything.

- hnsw: a graph (Malkov and Yashunin 2016) over 8-bit vectors. It uses more memory and is slow to build.
- ivfpq: lists of similar vectors (Jegou et al. 2011), each vector kept as 4-bit codes that are compared in registers.
  Small, quick to build, and on a trained network's vectors the faster of the two at every recall measured.

Neither supports removal: rows of removed images, and those that a condition excludes, are dropped from the proposals.
FAISS could skip them while it searches (IDSelector), but then it wanders through regions where everything is
excluded: with one class excluded and a query near that class, its graph found none of the true neighbors. So extra
neighbors are proposed, and if too few of them remain, the caller searches exactly. Rows added after the engine was
built are searched exactly, in addition.

The breadth of a search is tuned when the engine is built, by searching for some of the index's own vectors: it is the
smallest that finds `TARGET_RECALL` of the true neighbors. `Index.stats` shows the measured recall.
"""

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.errors import InputError, RunError
from dr_keras.index.bounded_search import BoundedSearch, write_copies
from dr_keras.index.exact_search import load_faiss, nearest, ranked
from dr_keras.index.vector_file import QUICK_CHECK_BYTES
from dr_keras.invocation import command

ENGINES = ("flat", "hnsw", "ivfpq")
MAX_FLAT_ROWS = 1_000_000  # searched exactly: one query reads 1 GB of 256-d vectors
MAX_HIDDEN_SHARE = 0.5  # of an engine's rows; beyond it, an exact search of the rest is cheaper and misses nothing
MIN_EXPECTED_SHARE = 0.75  # of the proposals expected to satisfy a condition; with fewer, the search is exact
MAX_TAIL_SHARE = 0.1  # rows added later, relative to those in the engine, before it is rebuilt
MIN_TAIL_ROWS = 50_000  # an exact search of this many takes a few milliseconds, so fewer never trigger a rebuild

MIN_ENGINE_IMAGES = 256  # an exact search of fewer takes no time
TUNING_QUERIES = 256
TUNING_K = 30
TARGET_RECALL = 0.985  # above the promised 0.98, because it is measured on only a few queries
BREADTHS = {
    "hnsw": (48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048),  # candidate nodes kept during a search
    "ivfpq": (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024),  # lists searched
}
GRAPH_NEIGHBORS = 32  # links per node, FAISS's M
GRAPH_BUILD_BREADTH = 100  # candidate nodes kept while the graph is built
GRAPH_TRAINING_VECTORS = 65536
LISTS_PER_ROOT_ROW = 4  # lists per square root of the number of rows
MAX_LISTS = 8192  # twice as many take twice as long to train and to fill
KMEANS_ITERATIONS = 10  # to find the lists' centers
TRAINING_VECTORS_PER_LIST = 64
ADD_BLOCK_ROWS = 1 << 18  # vectors added at a time
CRC_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class EngineInfo:
    """What an index stores about the file of its engine.

    Attributes:
        name: 'hnsw' or 'ivfpq', or 'flat' for the copies of `dr_keras.index.bounded_search`.
        file: The name of its file in the index's folder.
        rows: How many of the index's rows it holds, counted from the first.
        breadth: How widely it searches: FAISS's efSearch or nprobe; 0 for copies.
        recall: The share of the true 30 nearest neighbors found at this breadth.
        size, crc: The file's size in bytes and its CRC-32.
    """

    name: str
    file: str
    rows: int
    breadth: int
    recall: float
    size: int
    crc: int

    @property
    def exact(self) -> bool:
        """Whether nothing is missed."""
        return self.name == "flat"

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> Self | None:
        """Reads what `to_meta` wrote; None if there is no engine."""
        if "engine_file" not in meta:
            return None
        return cls(**{key: meta[f"engine_{key}"] for key in cls.__dataclass_fields__})

    def to_meta(self) -> dict[str, Any]:
        """The attributes as plain values by key, for the index's `meta` table."""
        return {f"engine_{key}": value for key, value in asdict(self).items()}


def choose_engine(engine: str, count: int) -> str:
    """The name of the engine for `count` images: `engine` itself, or, if that is 'auto', one chosen by their number.

    Raises:
        InputError: There is no such engine.
    """
    if engine == "auto":
        return "flat" if count <= MAX_FLAT_ROWS else "ivfpq"
    if engine not in ENGINES:
        raise InputError(f"engine is {engine!r}; choose one of auto, {', '.join(ENGINES)}")
    return engine


def is_worthwhile(searchable: int, rows: int) -> bool:
    """Whether an engine over `rows` rows helps when a search may return only `searchable` of them."""
    return searchable > (1 - MAX_HIDDEN_SHARE) * rows


def is_outgrown(engine: EngineInfo, rows: int) -> bool:
    """Whether an index of `rows` rows has grown so much since the engine was built that it should be rebuilt."""
    return rows - engine.rows > max(MIN_TAIL_ROWS, MAX_TAIL_SHARE * engine.rows)


def engine_damage(folder: Path, engine: EngineInfo) -> str | None:
    """What is wrong with an engine's file, or None."""
    try:
        crc = _crc(folder / engine.file)
    except OSError as error:
        return f"the engine {engine.file} cannot be read: {error.strerror}"
    return None if crc == engine.crc else f"the engine {engine.file} was altered: its checksum differs"


def build_engine(name: str, folder: Path, vectors: np.ndarray, number: int) -> EngineInfo:
    """Builds an engine over all rows and writes its file.

    Args:
        name: 'hnsw' or 'ivfpq'.
        folder: The index's folder.
        vectors: (R, D) float32 of unit length.
        number: Makes the file's name different from all previous ones.

    Raises:
        InputError: There are too few vectors.
        RunError: The file cannot be written.
    """
    faiss = load_faiss()
    if len(vectors) < MIN_ENGINE_IMAGES:
        raise InputError(f"{len(vectors)} images are too few for the engine {name}; search them with flat")
    index = _trained(name, vectors)
    for start in range(0, len(vectors), ADD_BLOCK_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + ADD_BLOCK_ROWS]))
    file = folder / f"engine-{name}-{number}.faiss"
    engine = ApproximateSearch(name, index, 0)
    breadth, recall = _tune(engine, name, vectors)
    try:
        with new_file(file) as temporary:
            faiss.write_index(index, str(temporary))
        return EngineInfo(name, file.name, len(vectors), breadth, recall, file.stat().st_size, _crc(file))
    except (OSError, RuntimeError) as error:  # FAISS raises the latter when the disk is full
        file.unlink(missing_ok=True)
        raise RunError(f"{file} cannot be written: {error}") from error


def build_copies(folder: Path, vectors: np.ndarray, number: int) -> EngineInfo:
    """Writes the copies by which all rows are searched exactly.

    Args:
        folder: The index's folder.
        vectors: (R, D) float32 of unit length.
        number: Makes the file's name different from all previous ones.

    Raises:
        RunError: The file cannot be written.
    """
    file = folder / f"engine-flat-{number}.i8"
    try:
        with new_file(file) as temporary:
            write_copies(temporary, vectors)
        return EngineInfo("flat", file.name, len(vectors), 0, 1.0, file.stat().st_size, _crc(file))
    except OSError as error:
        file.unlink(missing_ok=True)
        raise RunError(f"{file} cannot be written: {error}") from error


def load_copies(folder: Path, engine: EngineInfo, dim: int) -> BoundedSearch:
    """Opens the copies by which an index is searched exactly; raises as `load_engine` does."""
    return BoundedSearch(_checked(folder, engine), engine.rows, dim)


def load_engine(folder: Path, engine: EngineInfo) -> "ApproximateSearch":
    """Opens an engine.

    Raises:
        FileNotFoundError: Its file is gone: a writer has replaced it.
        RunError: It is damaged. For a large file only the size is checked; `engine_damage` checks all of it.
    """
    file = _checked(folder, engine)
    try:
        index = load_faiss().read_index(str(file))
    except RuntimeError as error:
        raise RunError(f"the engine {file} cannot be read; {_advice()}") from error
    if index.ntotal != engine.rows:
        raise RunError(f"the engine {file} holds {index.ntotal:,} rows, not {engine.rows:,}; {_advice()}")
    return ApproximateSearch(engine.name, index, engine.breadth)


def _checked(folder: Path, engine: EngineInfo) -> Path:
    file = folder / engine.file
    size = file.stat().st_size
    if size != engine.size or (size <= QUICK_CHECK_BYTES and _crc(file) != engine.crc):
        raise RunError(f"the engine {file} was altered or damaged; {_advice()}")
    return file


def _advice() -> str:
    return f"rebuild it with {command('index')} verify --repair"


class ApproximateSearch:
    """A loaded engine, which proposes neighbors.

    Args:
        name: 'hnsw' or 'ivfpq'.
        index: The FAISS index.
        breadth: How widely it searches, see `EngineInfo`.
    """

    def __init__(self, name: str, index: Any, breadth: int) -> None:
        self.breadth = breadth
        self._name, self._index = name, index

    def search(self, queries: np.ndarray, k: int, searchable: np.ndarray | None) -> np.ndarray:
        """Proposes rows that contain most of the `k` nearest.

        Args:
            queries: (Q, D) float32.
            k: How many are wanted; more are proposed.
            searchable: (n,) int64 ascending, the rows that may be returned; None for all.

        Returns:
            (Q, C) int64 rows in any order, padded with -1 where too few were found.
        """
        faiss, total = load_faiss(), self._index.ntotal
        # With 8 bits per value few neighbors are out of order; with 4 bits for two values many are.
        least = 2 * k if self._name == "hnsw" else max(5 * k, 150)
        share = 1.0 if searchable is None else max(len(searchable) / total, 1 - MAX_HIDDEN_SHARE)
        more = min(total, int(1.2 * least / share) if searchable is not None else least)
        if self._name == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(self.breadth, more))
            _, rows = self._index.search(queries, more, params=parameters)
        else:
            rows = self._search_lists(queries, more, min(k, total), int(self.breadth / share))
        rows = np.where((rows >= 0) & (rows < total), rows, -1)
        if searchable is not None:
            may = np.zeros(total + 1, bool)  # the last one stands for -1
            may[searchable] = True
            rows = np.where(may[rows], rows, -1)
            # If the excluded rows are unrelated to the query, their share of the proposals equals their share of all
            # rows. If the share is much higher, the allowed neighbors lie beyond what was searched.
            expected = more * len(searchable) / total
            rows[(rows >= 0).sum(axis=1) < MIN_EXPECTED_SHARE * expected] = -1
        return rows

    def _search_lists(self, queries: np.ndarray, more: int, enough: int, lists: int) -> np.ndarray:
        """Proposes `more` rows from the nearest lists of each query: (Q, more).

        Where these lists are so short that they do not hold `enough`, more of them are searched.
        """
        faiss = load_faiss()
        rows = np.full((len(queries), more), -1)
        short = np.arange(len(queries))
        while len(short):
            parameters = faiss.SearchParametersIVF(nprobe=lists)
            _, rows[short] = self._index.search(queries[short], more, params=parameters)
            if lists >= self._index.nlist:
                break
            short = short[(rows[short] >= 0).sum(axis=1) < enough]
            lists = min(4 * lists, self._index.nlist)
        return rows


def _trained(name: str, vectors: np.ndarray) -> Any:
    """An empty FAISS index, trained on a sample of the vectors."""
    faiss = load_faiss()
    count, dim = vectors.shape
    if name == "hnsw":
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, GRAPH_NEIGHBORS)
        index.hnsw.efConstruction = GRAPH_BUILD_BREADTH
        sample = GRAPH_TRAINING_VECTORS
    else:
        lists = min(MAX_LISTS, 2 ** max(4, round(np.log2(LISTS_PER_ROOT_ROW * count**0.5))))
        index = faiss.index_factory(dim, f"IVF{lists},PQ{_codes(dim)}x4fs")
        sample = TRAINING_VECTORS_PER_LIST * lists
        index.cp.niter = KMEANS_ITERATIONS
        index.cp.max_points_per_centroid = TRAINING_VECTORS_PER_LIST
        index.cp.min_points_per_centroid = 1
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:sample])
    index.train(np.ascontiguousarray(vectors[chosen]))
    return index


def _codes(dim: int) -> int:
    """How many 4-bit codes a vector gets: one for every two values, or fewer if D is odd."""
    return next(codes for codes in range(max(1, dim // 2), 0, -1) if dim % codes == 0)


def _tune(engine: ApproximateSearch, name: str, vectors: np.ndarray) -> tuple[int, float]:
    """The smallest breadth that reaches the target recall on a sample of the vectors themselves, and that recall."""
    rows = np.sort(np.random.default_rng(1).permutation(len(vectors))[:TUNING_QUERIES])
    queries = np.ascontiguousarray(vectors[rows])
    k = min(TUNING_K + 1, len(vectors))  # each query also finds itself
    truth, _ = nearest(queries, vectors, k)
    recall = 0.0
    for breadth in BREADTHS[name]:
        engine.breadth = breadth
        found, _ = ranked(queries, vectors, engine.search(queries, k, None), k)
        same = [len(np.intersect1d(a, b)) - 1 for a, b in zip(truth, found, strict=True)]
        recall = float(np.mean(same)) / (k - 1)
        if recall >= TARGET_RECALL:
            break
    return engine.breadth, recall


def _crc(file: Path) -> int:
    crc = 0
    with open(file, "rb") as stream:
        while block := stream.read(CRC_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc
