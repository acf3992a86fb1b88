#!/usr/bin/env python3
"""Exact search on a GPU with JAX, against FAISS on the CPUs of the same machine.

    python benchmarks/bench_gpu_search.py                              # 1,000,000 vectors of 256, 1,000 queries

The vectors are normal random numbers of length 1, the same for both; the 30 nearest of each query are found. A GPU
computes the distances as one matrix product and takes the nearest in two steps: of each group of 1,024 vectors it
looks at the smallest distance only, keeps the 30 groups whose smallest are smallest, and sorts their members. The 30
nearest cannot lie elsewhere, so the result is exact up to the rounding of the product, of which three are timed:

- `float32`: as FAISS computes.
- `tensor_float32`: inputs rounded to 10 bits by the matrix units.
- `bfloat16`: vectors stored in half the bytes and rounded to 7 bits.

The agreement is the share of FAISS's 30 nearest that were found. Times are those of a call with the queries in the
memory of the CPU, until the result is there again.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import faiss
import numpy as np
from machine import machine, spread

K = 30
GROUP = 1024
QUERIES_AT_ONCE = 250  # 250 x 1,000,000 distances are 1 GB
PRODUCTS = {"float32": ("float32", "highest"), "tensor_float32": ("float32", "default"), "bfloat16": ("bfloat16", None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="size of the index (default: 1000000)")
    parser.add_argument("--dim", type=int, default=256, help="length of a vector (default: 256)")
    parser.add_argument("--queries", type=int, default=1000, help="queries in a call (default: 1000)")
    parser.add_argument("--runs", type=int, default=10, help="calls on the GPU (default: 10); a third of that in FAISS")
    options = parser.parse_args()
    import jax

    print(f"{machine()}; jax {jax.__version__}: {jax.devices()[0].device_kind}; faiss {faiss.__version__}")
    random = np.random.default_rng(0)
    vectors = unit(random.standard_normal((options.vectors, options.dim), np.float32))
    queries = unit(random.standard_normal((options.queries, options.dim), np.float32))
    index = faiss.IndexFlatL2(options.dim)
    index.add(vectors)
    took, (_, nearest) = timed(lambda: index.search(queries, K), max(options.runs // 3, 1))
    print(f"FAISS, {faiss.omp_get_max_threads()} threads: {spread(took, 'ms', 1)}")
    byte_floor, operations = 4 * vectors.size, 2 * options.queries * vectors.size
    print(f"{operations:.3g} operations; the vectors take {byte_floor / 1e9:.2f} GB in float32")
    for name, (kind, precision) in PRODUCTS.items():
        search = searcher(vectors, kind, precision)
        took, (distances, found) = timed(partial(search, queries), options.runs)
        agree = np.mean([len(np.intersect1d(*pair)) for pair in zip(nearest, found, strict=True)]) / K
        rate = operations / (statistics.median(took) / 1000) / 1e12
        print(f"GPU, {name}: {spread(took, 'ms', 2)}, {rate:.1f} TFLOP/s, agreement {agree:.4f}", flush=True)
        assert np.all(np.diff(distances) >= 0)


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def timed(call: Callable[[], Any], runs: int) -> tuple[list[float], Any]:
    """Milliseconds of each of `runs` calls after one that is not counted, and the last result."""
    call()
    took = []
    for _ in range(runs):
        started = time.perf_counter()
        result = call()
        took.append(1000 * (time.perf_counter() - started))
    return took, result


def searcher(
    vectors: np.ndarray, kind: str, precision: str | None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Copies vectors to the device; returns a function that gives distances and rows of the nearest of some queries."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    rows = len(vectors)
    groups = max(-(-rows // GROUP), K)
    pad = groups * GROUP - rows
    stored = jax.device_put(np.pad(vectors, ((0, pad), (0, 0)))).astype(kind)
    squares = jax.device_put(np.pad((vectors**2).sum(axis=1), (0, pad), constant_values=np.inf))

    @jax.jit
    def nearest(stored: Any, squares: Any, queries: Any) -> tuple[Any, Any]:
        product = jnp.matmul(queries.astype(kind), stored.T, precision=precision, preferred_element_type=jnp.float32)
        distances = (squares - 2 * product).reshape(len(queries), groups, GROUP)
        _, best = lax.top_k(-distances.min(axis=2), K)
        kept = jnp.take_along_axis(distances, best[:, :, None], axis=1).reshape(len(queries), K * GROUP)
        smallest, place = lax.top_k(-kept, K)
        row = jnp.take_along_axis(best, place // GROUP, axis=1) * GROUP + place % GROUP
        return (queries**2).sum(axis=1, keepdims=True) - smallest, row

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            nearest(stored, squares, jnp.asarray(queries[start : start + QUERIES_AT_ONCE]))
            for start in range(0, len(queries), QUERIES_AT_ONCE)
        ]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    return search


if __name__ == "__main__":
    main()
