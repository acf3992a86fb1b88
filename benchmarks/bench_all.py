#!/usr/bin/env python3
"""Every benchmark, short, in one table, next to what is kept of this kind of machine.

    pip install -e '.[dev,bench,fast]' && apt-get install wrk
    python benchmarks/bench_all.py --data tiny-imagenet-200            # half an hour; nothing else should run meanwhile
    python benchmarks/bench_all.py --only exact serve                  # some of them
    python benchmarks/bench_all.py --only stale --keep                 # measures again what is older than its code
    python benchmarks/bench_all.py --render                            # only writes docs/benchmarks.md

--keep puts what was measured into benchmarks/kept.json, in place of what was kept of the same benchmark and kind of
machine, and writes docs/benchmarks.md, which is made from that file alone. With each benchmark goes a digest of the
code that it measures: `--stale` says which figures are older than that.

Values differ between machines, and from day to day on one; ratios are of two things measured in turns in one run.
"""

import argparse
import datetime
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import FIGURES, machine

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "benchmarks" / "kept.json"
PAGE = ROOT / "docs" / "benchmarks.md"
STALE = "stale"
MOST_SECONDS = 900  # that a benchmark may take

Figure = dict[str, Any]
Kept = dict[str, dict[str, dict[str, Any]]]  # by kind of machine and benchmark


@dataclass(frozen=True)
class Benchmark:
    """One of the scripts, at a length that fits among the others.

    Attributes:
        about: What is measured, for the page.
        command: Script and arguments; DATA stands for a folder of class folders, VAL for one of images, PLACE for a
            temporary folder.
        code: What is measured: files and folders of the package whose digest is kept.
        packages: Modules and programs without which it is left out.
    """

    about: str
    command: str
    code: tuple[str, ...]
    packages: tuple[str, ...] = ()


SEARCH = tuple(f"index/{name}.py" for name in ("bounded_search", "exact_search", "searcher", "local_engine"))
BENCHMARKS = {
    "exact": Benchmark(
        "Exact search, the 30 nearest of 256-d vectors, against FAISS's flat index.",
        "bench_index.py exact --rows 100000 --rounds 7 --peers",
        SEARCH,
        ("faiss", "numkong"),
    ),
    "copies": Benchmark(
        "Exact search with 8-bit copies of the vectors, against the same index without them.",
        "bench_index.py copies --rows 100000 1000000",
        SEARCH,
        ("numkong",),
    ),
    "approximate": Benchmark(
        "Approximate search, 1,000 queries at a time, against the fastest other library.",
        "bench_index.py approximate --rows 100000 --rounds 5",
        ("index/approximate_search.py", "index/searcher.py"),
        ("faiss", "hnswlib", "usearch"),
    ),
    "changes": Benchmark(
        "A growing index of 100,000 images.",
        "bench_index.py changes --rows 100000",
        ("index",),
    ),
    "retrieve": Benchmark(
        "Whole commands on 100,000 images, against `python -c 'import numpy, PIL.Image, sqlite3'`.",
        "bench_retrieve.py --rounds 9",
        ("cli/retrieve.py", "search_model.py", "run_embedder.py", "runs.py", "index"),
    ),
    "gallery": Benchmark(
        "`retrieve.py --gallery` on a folder of 1600 x 1200 photographs, the whole command.",
        "bench_gallery.py --data VAL --images 500 --rounds 3",
        ("cli/retrieve.py", "data/decoding.py", "embedders.py", "run_embedder.py"),
    ),
    "serve": Benchmark(
        "The server and 32 clients on the same cores, 100,000 images.",
        "bench_serve.py --workers 1 2 --seconds 8 --rounds 3",
        ("server", "index/bounded_search.py", "embedders.py", "run_embedder.py"),
        ("fastapi", "wrk"),
    ),
    "embed": Benchmark(
        "Files to index, against the fastest runtime on decoded pixels.",
        "bench_embed.py --data VAL --images 1024 --batches 32 128 --rounds 5 --runtimes LiteRT OpenVINO",
        ("embedders.py", "run_embedder.py", "data/decoding.py", "index/sync.py"),
        ("openvino",),
    ),
    "ranking": Benchmark(
        "All figures of `evaluate.py` against a million images, and the most memory that takes.",
        "bench_ranking.py",
        ("evaluation/metrics.py", "evaluation/triplet_metrics.py", "index/exact_search.py"),
    ),
    "evaluate": Benchmark(
        "The figures of `--protocol class-disjoint`, against pytorch-metric-learning.",
        "bench_evaluate.py --rounds 3",
        ("evaluation/metric_learning.py", "index/exact_search.py"),
        ("pytorch_metric_learning",),
    ),
    "gather": Benchmark(
        "An augmented batch of 192 images of 64 px.",
        "bench_gather.py",
        ("data/augment_pillow.py",),
    ),
    "pipeline": Benchmark(
        "Training with the real pipeline, against `fit` on one constant batch.",
        "bench_pipeline.py --data DATA --rounds 9 --seconds 4",
        ("data/batches.py", "data/augment_pillow.py", "data/samplers.py", "training/compile.py", "training/muon.py"),
    ),
    "start": Benchmark(
        "From the start of `train.py` until the first step is in `history.csv`, with decoded images.",
        "bench_start.py --data DATA --rounds 5 --steps 0",
        ("cli/train.py", "training", "data/pixel_store.py", "data/catalog.py"),
    ),
    "training": Benchmark(
        "A training step, against PyTorch with the same network.",
        "bench_training.py --widths 32 --rounds 3 --seconds 8",
        ("model", "training/compile.py", "training/phase_models.py"),
        ("torch",),
    ),
    "tuning": Benchmark(
        "Tuning MobileNet at 128 px, against plain Keras.",
        "bench_tuning.py --steps 6 --rounds 3",
        ("training/tuning.py", "training/compile.py", "training/muon.py"),
    ),
    "sampling": Benchmark(
        "Triplets by relevance from 100,000 images.",
        "bench_sampling.py --images 100000 --classes 200",
        ("data/relevance.py", "data/relevance_sampler.py"),
    ),
    "store": Benchmark(
        "Listing and decoding 50,000 small images.",
        "bench_store.py --images 50000 --folder PLACE",
        ("data/catalog.py", "data/pixel_store.py", "data/decoding.py"),
    ),
    "duplicates": Benchmark(
        "`index.py duplicates` among 20,000 images with planted copies.",
        "bench_duplicates.py --images 20000 --folder PLACE",
        ("duplicates",),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="an unpacked tiny-imagenet-200; without it, what needs it is left out"
    )
    parser.add_argument("--only", nargs="+", choices=[STALE, *BENCHMARKS], help="run only these")
    parser.add_argument("--keep", action="store_true", help=f"put the figures into {KEPT.name} and write {PAGE.name}")
    parser.add_argument("--stale", action="store_true", help="only say which kept figures are older than their code")
    parser.add_argument("--render", action="store_true", help=f"only write {PAGE.name}")
    options = parser.parse_args()
    kept: Kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kind = machine().rpartition(", Python")[0]
    if options.render:
        PAGE.write_text(page(kept), encoding="utf-8")
    elif options.stale:
        print("\n".join(stale(kept.get(kind, {}))) or "all figures are of this code")
    else:
        run_all(options, kept, kind)


def run_all(options: argparse.Namespace, kept: Kept, kind: str) -> None:
    before = kept.get(kind, {})
    names = options.only or list(BENCHMARKS)
    if STALE in names:
        names = [name for name in BENCHMARKS if name in names or name not in before or name in stale(before)]
    print(f"{machine()}; {len(before)} benchmarks are kept of this kind of machine\n", flush=True)
    failed = []
    for name in names:
        if missing := lacking(BENCHMARKS[name], options.data):
            print(f"{name}: left out, for want of {missing}\n", flush=True)
            continue
        result = run(BENCHMARKS[name], options.data)
        if not result["figures"]:
            failed.append(name)
            continue
        print("\n".join(table(result["figures"], before.get(name, {}).get("figures", []))) + "\n", flush=True)
        if options.keep:  # after each, or an interruption would lose them
            kept.setdefault(kind, {})[name] = result
            KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            PAGE.write_text(page(kept), encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def lacking(benchmark: Benchmark, data: Path | None) -> str:
    """What is needed but not there, or nothing."""
    if data is None and ("DATA" in benchmark.command or "VAL" in benchmark.command):
        return "--data"
    found = [name for name in benchmark.packages if not (importlib.util.find_spec(name) or shutil.which(name))]
    return ", ".join(found)


def run(benchmark: Benchmark, data: Path | None) -> dict[str, Any]:
    """Runs a benchmark; what is kept of it."""
    print(f"{benchmark.command}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "figures"
        file.touch()
        places = {"PLACE": place} | ({"DATA": str(data), "VAL": str(data / "val" / "images")} if data else {})
        script, *arguments = (places.get(word, word) for word in benchmark.command.split())
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
            cwd=ROOT,
            env=os.environ | {FIGURES: str(file), "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=MOST_SECONDS,
            check=False,
        )
        figures = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if result.returncode:
        print(f"{result.stdout[-2000:]}\nexit status {result.returncode}\n", flush=True)
        figures = []
    return {
        "date": datetime.date.today().isoformat(),
        "command": benchmark.command,
        "seconds": round(time.perf_counter() - started),
        "code": digest(benchmark),
        "figures": figures,
    }


def digest(benchmark: Benchmark) -> str:
    """Of the measured code, as text."""
    summed = hashlib.sha256()
    for name in benchmark.code:
        place = ROOT / "dr_keras" / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            summed.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return summed.hexdigest()[:16]


def stale(kept: dict[str, dict[str, Any]]) -> list[str]:
    """The benchmarks whose code or command is another than that of the kept figures."""
    return [
        name
        for name, one in kept.items()
        if name not in BENCHMARKS
        or one["code"] != digest(BENCHMARKS[name])
        or one["command"] != BENCHMARKS[name].command
    ]


# Tables


def table(figures: list[Figure], before: list[Figure] | None = None) -> list[str]:
    """Lines of a Markdown table, with the kept figures and how much faster or slower it is now if there are some."""
    earlier = {one["name"]: one for one in before or []}
    compared = before is not None
    lines = [
        "| | median (range, n) | ratio | goal |" + (" kept | now / kept |" if compared else ""),
        "|---|---|---|---|" + ("---|---|" if compared else ""),
    ]
    for one in figures:
        ratio = "" if one["ratio"] is None else f"{short(one['ratio'])} of {one['to']}"
        goal = f"{one['goal']}: {'held' if holds(one) else '**missed**'}" if one["goal"] else ""
        line = f"| {one['name']} | {value(one)} | {ratio} | {goal} |"
        if compared:
            old = earlier.get(one["name"])
            line += f" {value(old)} | {one['median'] / old['median']:.2f} |" if old else " | |"
        lines.append(line)
    return lines


def value(one: Figure) -> str:
    """The median with its unit, range and n."""
    unit, times = ("ms", 1000) if one["unit"] == "s" and one["median"] < 1 else (one["unit"], 1)
    middle, low, high = (short(times * one[key]) for key in ("median", "low", "high"))
    return f"{middle} {unit} ({f'{low} to {high}, ' if one['n'] > 1 else ''}n = {one['n']})"


def short(number: float) -> str:
    """Three digits, as one would write them."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def holds(one: Figure) -> bool:
    """Whether the ratio, or else the value, is what it should be."""
    sign, bound = one["goal"].split()
    measured = one["median"] if one["ratio"] is None else one["ratio"]
    return measured <= float(bound) if sign == "<=" else measured >= float(bound)


def page(kept: Kept) -> str:
    """docs/benchmarks.md, of what is kept and nothing else."""
    parts = [HEAD]
    for kind, found in kept.items():
        parts.append(f"## {kind}\n")
        for name, benchmark in BENCHMARKS.items():
            if name not in found:
                continue
            one = found[name]
            parts.append(f"### {name}\n")
            parts.append(f"{benchmark.about} `{one['command']}`, {one['date']}.\n")
            parts.append("\n".join(table(one["figures"])) + "\n")
    return "\n".join(parts)


HEAD = """# Benchmarks

Made by `python benchmarks/bench_all.py --data tiny-imagenet-200 --keep` from `benchmarks/kept.json`; do not edit it.
Each benchmark is short here; its script takes more rounds. A value is the median of n rounds with its range. Ratios are
of two things measured in turns in one run, so they differ less between machines. DATA is Tiny ImageNet, VAL its
validation images, PLACE a temporary folder. `bench_all.py --stale` says which figures are older than their code.

What takes longer than a few minutes, larger collections, and what was tried: [Measurements](measurements.md). Quality:
[Quality](quality.md). GPUs: [GPUs](gpu.md). Milvus: [Milvus](milvus.md).
"""

if __name__ == "__main__":
    main()
