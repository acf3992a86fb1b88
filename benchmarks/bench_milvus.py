"""An index in Milvus: how fast images are added and found, how well, and what they take, by engine.

    python benchmarks/bench_milvus.py --rows 100000 --engines flat hnsw ivfpq
    python benchmarks/bench_milvus.py --rows 1000000 --engines flat hnsw --server milvus://localhost:19530

Without --server, it starts the one of the package milvus. Vectors are clusters of unit length, as in bench_index.py.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from bench_index import Kind
from machine import machine

from dr_keras.index.exact_search import nearest
from dr_keras.index.index import Entry, Index
from dr_keras.index.milvus.collection import row_of

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

K = 30
QUERIES = 200
TRUE_QUERIES = 100
BLOCK = 5000
CALLS = 100
CONDITIONS = (0.5, 0.05, 0.005, 0.0005)  # shares of the images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--engines", nargs="+", default=["flat", "hnsw", "ivfpq"], choices=["flat", "hnsw", "ivfpq"])
    parser.add_argument("--server", metavar="milvus://HOST:PORT", help="a running server (default: start one)")
    parser.add_argument("--folder", type=Path, help="where a server that is started keeps its data")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    print(machine())
    with ExitStack() as opened:
        place, process = options.server, None
        if place is None:
            from milvus_server import MilvusProcess

            folder = options.folder or Path(opened.enter_context(tempfile.TemporaryDirectory()))
            server = opened.enter_context(MilvusProcess(folder))
            assert server.process is not None
            place, process = server.address, psutil.Process(server.process.pid)
        figures = measure(f"{place}/bench", options, process, opened)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def measure(place: str, options: argparse.Namespace, process: Any, opened: ExitStack) -> dict[str, Any]:
    """Fills an index and measures each engine."""
    kind = Kind(options.dim)
    queries = kind.make(QUERIES, 0)
    part = np.random.default_rng(1).permutation(options.rows)
    figures: dict[str, Any] = {"rows": options.rows, "dim": options.dim}
    empty = memory(process)
    index = opened.enter_context(Index.create(place, options.dim, root="/", replace=True))
    parts = []
    seconds, count = 0.0, 0
    for block in kind.parts(options.rows):
        parts.append(block)
        for start in range(0, len(block), BLOCK):
            some = block[start : start + BLOCK]
            entries = [
                Entry(f"{count + n}.jpg", f"class {(count + n) % 200}", attributes={"part": int(part[count + n])})
                for n in range(len(some))
            ]
            began = time.perf_counter()
            index.put(entries, some)
            seconds += time.perf_counter() - began
            count += len(some)
    vectors = np.concatenate(parts)
    figures["rows_per_s"] = round(count / seconds)
    print(f"{count:,} images of {options.dim} values were added in {seconds:.0f} s: {count / seconds:,.0f} a second")
    true, _ = nearest(queries[:TRUE_QUERIES], vectors, K, unit=True)
    for engine in options.engines:
        began = time.perf_counter()
        index.engine.build(engine)
        built = time.perf_counter() - began
        index.search(queries[:1], K)
        times = [timed(index, query[None]) for query in queries]
        many = timed(index, queries)
        rows, _ = index.search(queries[:TRUE_QUERIES], K)
        recall = share(rows, true)
        about = {
            "build_s": round(built, 1),
            "ms": round(1000 * statistics.median(times), 2),
            "ms_p95": round(1000 * float(np.quantile(times, 0.95)), 2),
            "ms_of_200_together": round(1000 * many / QUERIES, 2),
            "recall": round(recall, 4),
            "bytes": round((memory(process) - empty) / count) if process else None,
        }
        print(f"{engine}: {about}")
        for fraction in CONDITIONS:
            most = max(1, int(fraction * count))
            kept = np.flatnonzero(part < most)
            found = [index.search(query[None], K, where=f"part < {most}")[0][0] for query in queries[:20]]
            wanted, _ = nearest(queries[:20], vectors[kept], K, unit=True)
            again = [timed(index, query[None], f"part < {most}") for query in queries[:20]]
            about[f"ms_where_{fraction}"] = round(1000 * statistics.median(again), 2)
            about[f"recall_where_{fraction}"] = round(share(found, kept[wanted]), 4)
            print(
                f"    of {fraction:.2%} of the images: {about[f'ms_where_{fraction}']} ms, recall@{K} "
                f"{about[f'recall_where_{fraction}']}"
            )
        figures[engine] = about
        if process:
            calls(index, queries, process)
    return figures


def calls(index: Index, queries: np.ndarray, process: Any) -> None:
    """Prints what the calls of a search by id cost the server."""
    rows = index.search(queries[:1], K)[0][0]
    for name, call in {
        "the row of a name": lambda: index.records.rows_of(["0.jpg"]),
        "its vector": lambda: index.vectors[[int(rows[0])]],
        "a search": lambda: index.search(queries[:1], K),
        f"what is known of {K} images": lambda: index.records.entries(rows),
        "whether the index has changed": index.refresh,
    }.items():
        before, began = sum(process.cpu_times()[:2]), time.perf_counter()
        for _ in range(CALLS):
            call()
        seconds, cores = time.perf_counter() - began, sum(process.cpu_times()[:2]) - before
        print(f"    {name}: {1000 * seconds / CALLS:.1f} ms, of which the server computes {1000 * cores / CALLS:.1f}")


def timed(index: Index, queries: np.ndarray, where: str | None = None) -> float:
    began = time.perf_counter()
    index.search(queries, K, where=where)
    return time.perf_counter() - began


def share(rows: Any, true: np.ndarray) -> float:
    """The share of the true neighbors, which are numbers of images, among the rows found."""
    wanted = [{row_of(f"{number}.jpg") for number in some} for some in true.tolist()]
    return float(np.mean([len(set(map(int, found)) & own) / len(own) for found, own in zip(rows, wanted, strict=True)]))


def memory(process: Any) -> int:
    """The memory of the server in bytes; 0 of one that runs elsewhere."""
    return process.memory_info().rss if process else 0


if __name__ == "__main__":
    main()
