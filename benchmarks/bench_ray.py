#!/usr/bin/env python3
"""How fast does `index.py add --ray` embed, against the same command without it, on the same cores?

    pip install -e '.[fast,ray]'
    python benchmarks/bench_ray.py [--run tiny-imagenet-64] [--images 20000] [--side 64] [--rounds 3]

Both embed the same pictures into new indexes, in turns, on all cores of this machine, on which Ray starts a cluster.
What counts is the time of the whole command less that of the same command for a few pictures, which is what starting
takes: with Ray some ten seconds. The target is 0.85 of the rate without Ray. The vectors are compared, too.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine, spread
from PIL import Image

from dr_keras.index.index import Index

FEW = 64  # pictures of the command that only starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="tiny-imagenet-64")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=64, help="of a picture, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtime", default="auto")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pictures(place / "few", FEW, options.side)
        pictures(place / "many", options.images, options.side)
        rates: dict[str, list[float]] = {"without Ray": [], "with Ray": []}
        for number in range(options.rounds):
            for name, more in (("without Ray", []), ("with Ray", ["--ray"])):
                start = seconds(place, "few", f"{number} few {name}", options, more)
                whole = seconds(place, "many", f"{number} {name}", options, more)
                rates[name].append(options.images / (whole - start))
                print(f"{name}: {whole:.1f} s, of which {start:.1f} s to start", flush=True)
        for name, found in rates.items():
            print(f"{name}: {spread(found, 'images/s', 1)}")
        ratio = np.median(rates["with Ray"]) / np.median(rates["without Ray"])
        print(f"with Ray {ratio:.3f} of the rate without")
        print(f"largest difference of a vector: {difference(place / '0 without Ray', place / '0 with Ray'):.1e}")


def pictures(folder: Path, count: int, side: int) -> None:
    """Writes JPEGs of smooth noise, which take about as long to decode as photographs of that size."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        small = random.integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def seconds(place: Path, folder: str, index: str, options: argparse.Namespace, more: list[str]) -> float:
    """What the command takes."""
    script = Path(__file__).parent.parent / "index.py"
    flags = ["--run", options.run, "--runtime", options.runtime, "--index", index, *more]
    started = time.perf_counter()
    subprocess.run([sys.executable, script, "add", folder, *flags], cwd=place, check=True, capture_output=True)
    return time.perf_counter() - started


def difference(one: Path, other: Path) -> float:
    """The largest difference of a value between the vectors of two indexes."""
    with Index.open(one) as ours, Index.open(other) as theirs:
        listing = ours.records.listing()
        rows = theirs.records.rows_of([id for _, id, *_ in listing])
        assert len(rows) == len(listing) == theirs.records.count()
        mine = ours.vectors[[row for row, *_ in listing]]
        return float(np.abs(mine - theirs.vectors[[rows[id] for _, id, *_ in listing]]).max())


if __name__ == "__main__":
    main()
