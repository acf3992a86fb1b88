#!/usr/bin/env python3
"""Duplicates among many images: time, memory, and whether all planted copies are found.

    python benchmarks/bench_duplicates.py --images 1000000 --folder PLACE

Draws pictures of colored blobs, of which every hundredth has a copy that is saved again at JPEG quality 70, and every
hundredth another that is equal byte for byte. The pictures stay in the folder, for a later run. Peak memory is that of
the process and its children, sampled ten times a second.
"""

import argparse
import io
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from machine import machine, record
from PIL import Image

from dr_keras.duplicates.find import find_duplicates
from dr_keras.progress import stderr

SIDE = 48
PER_FOLDER = 10_000
EVERY = 100  # pictures, of which one has a copy of each kind


def draw(number: int) -> Image.Image:
    """A picture of colored blobs, unlike all others."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
    return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def write(folder: Path, count: int) -> tuple[int, int]:
    """Writes `count` pictures, copies included; returns how many equal and how many similar copies there are."""
    equal = similar = written = number = 0
    while written < count:
        place = folder / str(written // PER_FOLDER)
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"{number}.jpg"
        if not file.exists():
            file.write_bytes(encoded(draw(number), 90))
        written += 1
        if number % EVERY == 0 and written + 1 < count:
            (place / f"{number}-equal.jpg").write_bytes(file.read_bytes())
            (place / f"{number}-similar.jpg").write_bytes(encoded(Image.open(file), 70))
            equal, similar, written = equal + 1, similar + 1, written + 2
        number += 1
    return equal, similar


class Peak:
    """The most memory that this process and its children have at any time."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        own = psutil.Process(os.getpid())
        while not self._stop.wait(0.1):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue  # it has just ended
            self.bytes = max(self.bytes, total)

    def stop(self) -> float:
        """Ends the watch; returns GiB."""
        self._stop.set()
        return self.bytes / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", required=True)
    options = parser.parse_args()
    started = time.perf_counter()
    equal, similar = write(Path(options.folder), options.images)
    print(f"{machine()}; {options.images:,} images, drawn in {time.perf_counter() - started:.0f} s", flush=True)
    peak, started = Peak(), time.perf_counter()
    found = find_duplicates(options.folder, console=stderr())
    seconds = time.perf_counter() - started
    exact = sum(len(group) - 1 for group in found.exact)
    pairs = {tuple(sorted(Path(id).stem.partition("-")[0] for id in group)) for group in found.near}
    right = sum(len(set(group)) == 1 for group in pairs)
    print(
        f"{seconds:.0f} s, {options.images / seconds:,.0f} images/s, at most {peak.stop():.2f} GiB; "
        f"{exact:,} of {equal:,} equal copies and {right:,} of {similar:,} similar ones found; "
        f"{len(pairs) - right:,} groups of others"
    )
    record(f"among {options.images:,} images", [options.images / seconds], "images/s")
    record("similar copies found", [right / max(similar, 1)], "of all", goal=">= 0.999")


if __name__ == "__main__":
    main()
