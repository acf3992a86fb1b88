#!/usr/bin/env python3
"""The index against what one might use instead: raw FAISS, hnswlib, usearch and NumPy, on the same vectors.

    pip install -e .[bench]
    python benchmarks/bench_index.py exact --rows 100000 1000000
    python benchmarks/bench_index.py copies --rows 100000 1000000
    python benchmarks/bench_index.py approximate --rows 1000000 --save docs/images/recall.png
    python benchmarks/bench_index.py approximate --index runs/NAME/index       # a trained network's vectors
    python benchmarks/bench_index.py ours --rows 10000000 --engine ivfpq      # inside 16 GiB
    python benchmarks/bench_index.py changes --rows 1000000

Each uses all threads of the machine. Vectors have unit length and form classes, like those of a trained network: 1,000
centers, each surrounded by a cloud along 24 directions of its own, plus a little noise in all directions. Queries come
from the same distribution. Contenders take turns in one process; recall is the fraction of the true 30 nearest found.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from index_peers import PEERS, THREADS, K, Search, exact_contenders
from machine import machine, record, spread

from dr_keras.index.bounded_search import FEW_SEARCHES
from dr_keras.index.exact_search import nearest
from dr_keras.index.index import Entry
from dr_keras.index.local_index import LocalIndex

QUERIES = 1000
CLASSES = 1000
DIRECTIONS = 24
PART = 100_000  # vectors generated and added at a time
BREADTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # graph nodes kept as candidates
ENOUGH = 0.98  # recall at which searches are compared
LISTS = (1, 2, 4, 8, *BREADTHS)  # lists probed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(TASKS))
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", choices=("hnsw", "ivfpq"), default="hnsw")
    parser.add_argument("--folder", type=Path, help="where to create the index (default: a temporary folder)")
    parser.add_argument("--index", type=Path, help="approximate: use this index's vectors, 1,000 of them as queries")
    parser.add_argument("--save", type=Path, help="where to save a plot of recall against queries per second")
    parser.add_argument("--engines", nargs="*", default=["hnsw", "ivfpq"], help="our engines to compare")
    parser.add_argument("--peers", nargs="*", default=["faiss", "faiss-ivfpq", "hnswlib", "usearch"])
    options = parser.parse_args()
    print(f"{machine()}; {THREADS} threads, {options.dim} values a vector, the {K} nearest", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        for rows in options.rows:
            folder = Path(place) / f"index-{rows}"
            print(f"\n{rows:,} vectors", flush=True)
            TASKS[options.what](options, rows, folder)


# Vectors


class Kind:
    """Generates vectors from one distribution: the same for the same seed."""

    def __init__(self, dim: int) -> None:
        random = np.random.default_rng(0)
        self.dim = dim
        self.centers = unit(random.standard_normal((CLASSES, dim), np.float32))
        self.directions = random.standard_normal((CLASSES, DIRECTIONS, dim), np.float32) / np.sqrt(dim)

    def make(self, count: int, seed: int) -> np.ndarray:
        """(count, D) float32 of unit length."""
        random = np.random.default_rng(seed)
        out = np.empty((count, self.dim), np.float32)
        label = np.sort(random.integers(0, CLASSES, count))
        for number in range(CLASSES):
            rows = slice(*np.searchsorted(label, (number, number + 1)))
            among = random.standard_normal((rows.stop - rows.start, DIRECTIONS), np.float32) * np.float32(0.17)
            out[rows] = self.centers[number] + among @ self.directions[number]
        out += 0.015 * random.standard_normal(out.shape, np.float32)
        return unit(out[random.permutation(count)])

    def parts(self, count: int) -> Iterator[np.ndarray]:
        for start in range(0, count, PART):
            yield self.make(min(PART, count - start), 1 + start)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_index(kind: Kind, rows: int, folder: Path) -> LocalIndex:
    """Our index of `rows` vectors, on disk; prints how long it took to build."""
    started = time.perf_counter()
    seconds = 0.0
    index = LocalIndex.create(folder, kind.dim, root="/")
    for number, part in enumerate(kind.parts(rows)):
        entries = [Entry(f"{number}/{n}.jpg", f"class_{n % CLASSES}") for n in range(len(part))]
        begun = time.perf_counter()
        index.add(entries, part)
        seconds += time.perf_counter() - begun
    print(
        f"  our index was made in {seconds:.1f} s (and its vectors in {time.perf_counter() - started - seconds:.1f} s)"
    )
    return index


def split_index(path: Path, folder: Path) -> tuple[LocalIndex, np.ndarray]:
    """An index of another index's vectors, and the ones left out as queries."""
    with LocalIndex.open(path) as other:
        vectors = np.array(other.vectors[np.random.default_rng(0).permutation(other.searched_rows())])
    index = LocalIndex.create(folder, vectors.shape[1], root="/")
    index.add([Entry(f"{row}.jpg") for row in range(len(vectors) - QUERIES)], vectors[QUERIES:])
    print(f"  in place of them {len(index):,} x {index.dim} of {path.name}", flush=True)
    return index, vectors[:QUERIES]


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, true, strict=True)])) / true.shape[1]


# Exact


def exact(options: argparse.Namespace, rows: int, folder: Path) -> None:
    kind = Kind(options.dim)
    with make_index(kind, rows, folder) as index:
        vectors = np.array(index.vectors)
        queries = kind.make(QUERIES, 0)
        contenders = exact_contenders(vectors, options.peers) | {"dr_keras": lambda q: index.search(q, K)[0]}
        true = contenders["FAISS"](queries)
        for count, repeats in ((1, max(options.rounds, 20)), (QUERIES, options.rounds)):
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for turn in range(repeats + 1):
                asked = queries if count == QUERIES else queries[turn : turn + 1]
                for name, search in contenders.items():
                    if name == "NumPy" and count > 1 and turn > 1:
                        continue  # so slow that two rounds are enough
                    started = time.perf_counter()
                    found = search(asked)
                    if turn:  # the first one is a warm-up
                        seconds[name].append(1e3 * (time.perf_counter() - started))
                    if count == 1:
                        assert recall(found, true[turn : turn + 1]) > 0.9  # ties may be cut off differently
            base = statistics.median(seconds["FAISS"])
            for name, values in seconds.items():
                ratio = statistics.median(values) / base
                print(f"  {count:,} at a time, {name}: {spread(values, 'ms', 1)}, {ratio:.3f} x FAISS", flush=True)
            ours = seconds["dr_keras"]
            title = f"{count:,} at a time among {rows:,}"
            record(title, ours, "ms", ratio=statistics.median(ours) / base, to="FAISS flat", goal="<= 1.05")


def copies(options: argparse.Namespace, rows: int, folder: Path) -> None:
    """Exact search with 8-bit copies against comparing all vectors: runs of queries in turns, the same for both."""
    kind = Kind(options.dim)
    with make_index(kind, rows, folder) as index:
        started = time.perf_counter()
        index.engine.update()
        [file] = folder.glob("engine-flat-*.i8")
        print(f"  copies: made in {time.perf_counter() - started:.2f} s, {file.stat().st_size / 2**20:,.0f} MiB")
        queries, before = kind.make(QUERIES, 0), held()
        for _ in range(FEW_SEARCHES + 1):
            index.search(queries[:1], K)
        print(f"  {held() - before:,.0f} MiB of memory")
        names = ("all compared", "with copies")
        with_copies = index._searcher._load_copies
        for count in (1, 8, 64, QUERIES):
            seconds: dict[str, list[float]] = {name: [] for name in names}
            repeats = max(1, 40 // count)
            for turn in range(options.rounds + 1):
                some = queries[turn * count % QUERIES :][:count]
                found = []
                for name in names:
                    index._searcher._load_copies = with_copies if name == names[1] else lambda _: None  # type: ignore[method-assign, assignment]
                    found.append(index.search(some, K)[0])
                    time.sleep(0.1)  # threads of the matrix product wait busily for a while
                    started = time.perf_counter()
                    for _ in range(repeats):
                        index.search(some, K)
                    seconds[name] += [1e3 * (time.perf_counter() - started) / repeats] * bool(turn)  # first: warm-up
                assert recall(*found) > 0.999  # equal distances are ranked by row only with copies
            base = statistics.median(seconds["all compared"])
            for name, values in seconds.items():
                ratio = statistics.median(values) / base
                print(f"  {count:,} at a time, {name}: {spread(values, 'ms', 2)}, {ratio:.3f}")
            goal = {1: "<= 0.5", 8: "<= 0.5", QUERIES: "<= 1.05"}.get(count, "")
            title = f"{count:,} at a time among {rows:,}"
            record(title, seconds["with copies"], "ms", ratio=ratio, to="all compared", goal=goal)


# Approximate


@dataclass
class Contender:
    """A search at every breadth, and its measurements."""

    at: Callable[[int], Search]
    breadths: list[int]
    recalls: dict[int, float] = field(default_factory=dict)
    rates: dict[int, list[float]] = field(default_factory=dict)


def approximate(options: argparse.Namespace, rows: int, folder: Path) -> None:
    if options.index:
        index, queries = split_index(options.index, folder)
    else:
        kind = Kind(options.dim)
        index, queries = make_index(kind, rows, folder), kind.make(QUERIES, 0)
    with ExitStack() as opened:
        opened.enter_context(index)
        vectors = index.vectors
        true, _ = nearest(queries, vectors, K)
        contenders = {f"dr_keras {engine}": ours_with(engine, index, opened) for engine in options.engines}
        for peer in options.peers:
            started, before = time.perf_counter(), held()
            at = PEERS[peer](vectors)
            print(
                f"  {peer}: built in {time.perf_counter() - started:.1f} s, {held() - before:,.0f} MiB of memory",
                flush=True,
            )
            contenders[peer] = Contender(at, list(LISTS if peer == "faiss-ivfpq" else BREADTHS))
        in_turns(contenders, queries, true, options.rounds)
    if options.save:
        curves = {
            name: [(one.recalls[breadth], statistics.median(one.rates[breadth])) for breadth in one.breadths]
            for name, one in contenders.items()
        }
        picture(curves, len(vectors), vectors.shape[1], options.save)


def ours_with(engine: str, index: LocalIndex, opened: ExitStack) -> Contender:
    """A copy of our index with the given engine, since an index has only one at a time."""
    place = index.folder.with_name(f"{index.folder.name}-{engine}")
    index.save(place)
    own = opened.enter_context(LocalIndex.open(place, write=True))
    started = time.perf_counter()
    own.engine.build(engine)
    size = next(place.glob("engine-*")).stat().st_size
    print(
        f"  dr_keras {engine}: built in {time.perf_counter() - started:.1f} s, {size / 2**20:,.0f} MiB, "
        f"measured itself at recall {own.stats()['engine']['recall']:.4f}",
        flush=True,
    )
    own.search(own.vectors[:1], K)  # loads the engine
    loaded: Any = own._searcher._loaded

    def at(breadth: int) -> Search:
        loaded.breadth = breadth
        return lambda q: own.search(q, K)[0]

    return Contender(at, sorted({*(LISTS if engine == "ivfpq" else BREADTHS), loaded.breadth}))


def in_turns(contenders: dict[str, Contender], queries: np.ndarray, true: np.ndarray, rounds: int) -> None:
    """Recall and queries per second at each breadth, up to a recall of 0.999; every contender once per round."""
    for one in contenders.values():
        for place, breadth in enumerate(one.breadths):
            one.recalls[breadth] = recall(one.at(breadth)(queries), true)
            if one.recalls[breadth] > 0.999:
                del one.breadths[place + 1 :]
                break
        one.rates = {breadth: [] for breadth in one.breadths}
    for turn in range(rounds):
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # rotates who goes first
            one = contenders[name]
            for breadth in one.breadths:
                search = one.at(breadth)
                search(queries[:100])  # warm-up
                started = time.perf_counter()
                search(queries)
                one.rates[breadth].append(len(queries) / (time.perf_counter() - started))
    best: dict[str, list[float]] = {}
    for name, one in contenders.items():
        enough = next((breadth for breadth in one.breadths if one.recalls[breadth] >= ENOUGH), None)
        if enough is not None:
            best[name] = one.rates[enough]
        for breadth in one.breadths:
            rates = spread(one.rates[breadth], "queries/s", 0)
            print(f"    {name} {breadth}: recall {one.recalls[breadth]:.4f}, {rates}", flush=True)
    peers = [name for name in best if not name.startswith("dr_keras")]
    peer = max(peers, key=lambda name: statistics.median(best[name]), default=None)
    for name in best.keys() - peers:
        ratio = statistics.median(best[name]) / statistics.median(best[peer]) if peer else None
        record(f"{name}, recall of {ENOUGH} or more", best[name], "queries/s", ratio=ratio, to=peer or "")


def picture(curves: dict[str, list[tuple[float, float]]], rows: int, dim: int, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", label=name, linewidth=2.5 if "dr_keras" in name else 1)
    axes.set(xlabel=f"recall@{K}", ylabel="queries a second", yscale="log", xlim=(0.8, 1.002))
    axes.set_title(f"{rows:,} x {dim}, {THREADS} threads, {QUERIES:,} queries at a time")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    print(f"saved {file}")


# Ours alone


def ours(options: argparse.Namespace, rows: int, folder: Path) -> None:
    """One engine at its default settings: recall, time per query, memory; for sizes too large to compare peers at."""
    kind = Kind(options.dim)
    queries = kind.make(QUERIES, 0)
    with make_index(kind, rows, folder) as index:
        true, _ = nearest(queries, index.vectors, K)
        started = time.perf_counter()
        index.engine.build(options.engine)
        seconds = time.perf_counter() - started
        about = index.stats()["engine"]
        size = next(folder.glob("engine-*")).stat().st_size / 2**20
        print(f"  {options.engine}: built in {seconds:.0f} s, {size:,.0f} MiB, own recall {about['recall']:.4f}")
        print(f"  recall {recall(index.search(queries, K)[0], true):.4f}")
        for count in (1, QUERIES):
            times = []
            for turn in range(max(options.rounds, 50) if count == 1 else options.rounds):
                asked = queries if count == QUERIES else queries[turn : turn + 1]
                started = time.perf_counter()
                index.search(asked, K)
                times.append(1e3 * (time.perf_counter() - started) / count)
            print(f"  {count:,} at a time: {spread(times, 'ms a query', 2)}", flush=True)
    print(f"  most memory of this process, its pages of the mapped file included: {memory():,.0f} MiB")


def memory() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def held() -> float:
    """Current memory of this process in MiB, without pages of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def changes(options: argparse.Namespace, rows: int, folder: Path) -> None:
    """Filtering, adding to and removing from a large index, and opening it, each time in a new process."""
    kind = Kind(options.dim)
    with make_index(kind, rows, folder) as index:
        size = (folder / "index.sqlite").stat().st_size
        print(f"  the database has {size / rows:.0f} bytes an image, the vectors {4 * options.dim}")
        asked = kind.make(1, 0)
        for where in (None, "label = class_7", "label != class_7"):
            times = []
            for _ in range(options.rounds):
                started = time.perf_counter()
                index.search(asked, K, where=where)
                times.append(1e3 * (time.perf_counter() - started))
            print(f"  one query, where {where}: {spread(times, 'ms', 1)}", flush=True)
            record(f"one query, {where or 'no condition'}", times, "ms")
        for what in ("add", "remove"):
            times = []
            for turn in range(options.rounds):
                ids = [f"new/{turn}/{n}.jpg" for n in range(1000)]
                vectors = kind.make(1000, 10_000_000 + turn)
                started = time.perf_counter()
                if what == "add":
                    index.add([Entry(id, "new") for id in ids], vectors)
                else:
                    index.remove(ids)
                times.append(time.perf_counter() - started)
            print(f"  {what} 1,000: {spread(times, 's')}", flush=True)
            record(f"{what} 1,000", times, "s")
    query = folder.parent / "query.npy"
    np.save(query, kind.make(1, 0))
    code = (
        "import json, sys, time; import numpy as np; from dr_keras.index.index import Index\n"
        "query = np.load(sys.argv[2]); started = time.perf_counter(); index = Index.open(sys.argv[1])\n"
        "opened = time.perf_counter(); rows, _ = index.search(query, 30); index.records.entries(rows[0])\n"
        "print(json.dumps([opened - started, time.perf_counter() - started]))\n"
    )
    found = []
    for _ in range(options.rounds + 1):
        result = subprocess.run([sys.executable, "-c", code, str(folder), str(query)], capture_output=True, check=True)
        found.append(json.loads(result.stdout))
    for name, values in zip(("open", "open and answer one query"), zip(*found[1:], strict=True), strict=True):
        print(f"  {name}: {spread(values, 's')}", flush=True)
        record(name, values, "s")


TASKS = {"exact": exact, "copies": copies, "approximate": approximate, "ours": ours, "changes": changes}

if __name__ == "__main__":
    main()
