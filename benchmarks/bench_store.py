#!/usr/bin/env python3
"""What a large dataset costs before the first step: time and memory of the catalog and of each pixel store.

    python benchmarks/bench_store.py --images 1000000

Writes that many small PNGs (32 x 32, 50 distinct ones per class) in 1,000 class folders, once, below --folder. Each
figure comes from one run of a new process; memory is peak resident memory, including shared pages of files.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from machine import machine, record
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

CLASSES = 1000
PICTURES = 50  # distinct ones per class; drawing every file would take most of the time
STAGES = ("catalog", "disk, first", "disk, again", "stream, first", "stream, again", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=16, help="side length in pixels in the store")
    parser.add_argument("--folder", type=Path, default=Path("bench-store"), help="where to write the images")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="run only these, in this order")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # in the child process
    options = parser.parse_args()
    data = options.folder / f"{options.images}"
    if options.stage:
        print(json.dumps(measure(options.stage, data, options.size)))
        return
    print(machine())
    draw(data, options.images)
    cache = options.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    print(f"{options.images:,} images, kept at {options.size} px; seconds and peak memory of the process, MiB")
    for stage in options.stages:
        command = [sys.executable, __file__, "--stage", stage, "--images", str(options.images), "--size"]
        child = subprocess.run(
            [*command, str(options.size), "--folder", str(options.folder)],
            env=os.environ | {"DR_KERAS_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        result = json.loads(child.stdout.splitlines()[-1])
        print(f"  {stage:14} {result['seconds']:8.1f} s   {result['own']:7,.0f}   each decoder {result['child']:,.0f}")
        record(f"{stage}, {options.images:,} images", [result["seconds"]], "s")


def measure(stage: str, data: Path, size: int) -> dict[str, float]:
    """Seconds and peak memory (MiB) of listing the images and, except in 'catalog', creating or opening their store."""
    from dr_keras.data.catalog import load_catalog
    from dr_keras.data.pixel_store import load_pixels

    started = time.perf_counter()
    catalog = load_catalog(data, monitor=0.01, validation=0.0, seed=0)
    if stage != "catalog":
        load_pixels(catalog, size, store=stage.partition(",")[0])
    seconds = time.perf_counter() - started
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "own": own, "child": child}


def draw(data: Path, count: int) -> None:
    """Draws the images unless they exist."""
    if (data / "done").exists():
        return
    started = time.perf_counter()
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw_class, [data] * CLASSES, range(CLASSES), [count // CLASSES] * CLASSES))
    (data / "done").touch()
    print(f"drawn in {time.perf_counter() - started:.0f} s")


def draw_class(data: Path, label: int, count: int) -> None:
    folder = data / f"class_{label:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(label)
    encoded = []
    for _ in range(PICTURES):
        cells = random.integers(0, 256, (4, 4, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(cells.repeat(8, 0).repeat(8, 1)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    for number in range(count):
        (folder / f"{label:04d}_{number:05d}.png").write_bytes(encoded[number % PICTURES])


if __name__ == "__main__":
    main()
