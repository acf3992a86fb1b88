#!/usr/bin/env python3
"""How long does a released model take to search a user's own folder, the first time and after that?

    python benchmarks/bench_gallery.py --data tiny-imagenet-200/val/images [--images 1000] [--rounds 3]

Upscales images to 1600 x 1200 JPEGs in a temporary folder and times `retrieve.py --gallery` on it as whole processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, record
from PIL import Image

ROOT = Path(__file__).parent.parent
SIZE = (1600, 1200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--run", default="tiny-imagenet-64")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sources = sorted(path for path in options.data.iterdir() if path.is_file())[: options.images]
    print(f"{machine()}; {len(sources)} JPEGs of {SIZE[0]} x {SIZE[1]}")
    first, again = [], []
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        photos.mkdir()
        for number, source in enumerate(sources):
            with Image.open(source) as image:
                image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC).save(photos / f"{number}.jpg", quality=90)
        for number in range(options.rounds):
            cache = Path(place) / f"cache_{number}"
            first.append(seconds(options.run, photos, cache))
            again.append(seconds(options.run, photos, cache))
    for name, times in (("first time", first), ("again", again)):
        print(f"{name}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f}, n = {len(times)})")
        record(f"{len(sources):,} photographs, {name}", times, "s")


def seconds(run: str, photos: Path, cache: Path) -> float:
    """The time of one search, including Python startup."""
    command = [sys.executable, str(ROOT / "retrieve.py"), "--run", run, "--gallery", str(photos), "--query", "0.jpg"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"DR_KERAS_CACHE": str(cache)})
    return time.monotonic() - started


if __name__ == "__main__":
    main()
