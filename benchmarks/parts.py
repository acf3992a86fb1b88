#!/usr/bin/env python3
"""Are small things found in pictures? Search by whole pictures against indexes that also keep parts.

    python benchmarks/parts.py --data tiny-imagenet-200

A gallery is `--pictures` held-out images, enlarged to 256 x 256, into each of which another held-out image is pasted at
a random place, at 1/4, 1/9 or 1/16 of its area. Each pasted image, as it was, is a query; the only right answer is the
picture that it was pasted into. Printed are recall@1 and @10 by whole pictures alone, and by indexes with parts down to
1/2, 1/3 and 1/4 of the sides (`index.py add --parts`); the time of `add`, the index's size, and the time of a search.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image

from dr_keras import load
from dr_keras.data.catalog import load_catalog
from dr_keras.data.parts import FINEST, windows
from dr_keras.data.splits import VALIDATION
from dr_keras.index.index import Index
from dr_keras.index.sync import add_files
from dr_keras.progress import stderr
from dr_keras.search_model import Model

SIDE = 256  # of the pictures
AREAS = (4, 9, 16)  # a pasted image has one of so many parts of the area


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the images, see train.py --data")
    parser.add_argument("--run", default="tiny-imagenet-64", help="the run to embed with (default: tiny-imagenet-64)")
    parser.add_argument("--head", default="general", help="the vectors to search by (default: general)")
    parser.add_argument("--pictures", type=int, default=1000, help="pictures in a gallery (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{machine()}; {options.run}, {options.head} head, {options.pictures} pictures, seed {options.seed}")
    random = np.random.default_rng(options.seed)
    catalog = load_catalog(options.data, monitor=0, validation=0.1, seed=0)
    rows = random.permutation(catalog.rows(VALIDATION))[: 2 * options.pictures]
    files = [catalog.root / catalog.ids[row] for row in rows]
    grounds, things = files[: options.pictures], files[options.pictures :]
    model = load(options.run, head=options.head)
    queries = model.embed([Image.open(file) for file in things])
    print("area | parts | vectors of a picture | recall@1 | recall@10 | add, s | index, MB | search, ms")
    for area in AREAS:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            paste(grounds, things, round(SIDE / area**0.5), place / "pictures", random)
            for parts in (0, *range(2, FINEST + 1)):
                measure(model, options.head, place, parts, queries, area)


def paste(
    grounds: Sequence[Path], things: Sequence[Path], side: int, folder: Path, random: np.random.Generator
) -> None:
    """Writes the pictures of a gallery; a thing has sides of `side` pixels."""
    folder.mkdir()
    for number, (ground, thing) in enumerate(zip(grounds, things, strict=True)):
        picture = Image.open(ground).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        left, top = random.integers(0, SIDE - side + 1, 2).tolist()
        picture.paste(Image.open(thing).convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (left, top))
        picture.save(folder / f"{number:05}.jpg", quality=92)


def measure(model: Model, head: str, place: Path, parts: int, queries: np.ndarray, area: int) -> None:
    """Makes an index of a gallery, searches it, and prints a line."""
    started = time.perf_counter()
    folder, dim = place / f"index-{parts}", queries.shape[1]
    with Index.create(folder, dim, root=place / "pictures", head=head, parts=parts) as index:
        add_files(index, [place / "pictures"], model.reader_for(index), console=stderr())
        added = time.perf_counter() - started
        model.index = index
        ranks, took = [], []
        for number, query in enumerate(queries):
            started = time.perf_counter()
            found = model.neighbors(query[None], 10)[0]
            took.append(1000 * (time.perf_counter() - started))
            names = [result.id for result in found]
            ranks.append(names.index(f"{number:05}.jpg") if f"{number:05}.jpg" in names else 10)
        first, ten = (np.mean(np.array(ranks) < most) for most in (1, 10))
        size = index.stats()["bytes"] / 1e6
    kept = f"to 1/{parts}" if parts else "none"
    vectors, milliseconds = 1 + len(windows(parts)), statistics.median(took)
    print(
        f"1/{area} | {kept} | {vectors} | {first:.3f} | {ten:.3f} | {added:.1f} | {size:.1f} | {milliseconds:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
