#!/usr/bin/env python3
"""A collection without classes: is a picture in it, in another form? One distance, against a limit for each query.

    python index.py add FOLDER --run tiny-imagenet-64 --index my-index
    python benchmarks/open_set_copies.py --index my-index --unknown OTHER-FOLDER

Queries are pictures cropped by up to a tenth on each side, brightened or darkened, and saved again (as
`dr_keras.index.cutoff.altered` does): of images of the index, other than those that `index.py calibrate --copies` is
fitted on, and as many of a folder whose images the index does not have. For each precision that is asked for: which was
reached over all results of all queries, which share of the copies was found, and which share of queries of known and
of unknown pictures had an answer. Then, whatever the limit, which share of unknown queries is refused where 90% of
known ones have an answer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import machine
from open_set import row

from dr_keras import load
from dr_keras.data.folders import Walker
from dr_keras.data.image_ids import image_path
from dr_keras.data.images import decode, read
from dr_keras.errors import InputError
from dr_keras.index.cutoff import (
    ALTERED,
    EQUAL_DISTANCE,
    KEPT,
    NEIGHBORS,
    SLOPES,
    Searched,
    altered,
    calibrate_copies,
    incoherence,
    nearest_places,
)
from dr_keras.index.sync import Reader

PRECISIONS = (0.9, 0.95, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True)
    parser.add_argument("--unknown", required=True, metavar="FOLDER")
    parser.add_argument("--queries", type=int, default=2000, help="of each kind (default: 2000)")
    options = parser.parse_args()
    model = load(index=options.index)
    index, random = model.index, np.random.default_rng(1)
    reader, rows = model.reader_for(index), index.searched_rows()
    fitted = np.random.default_rng(0).permutation(len(rows))[:ALTERED]  # as calibrate_copies draws them
    free = random.permutation(np.setdiff1d(np.arange(len(rows)), fitted))[: options.queries]
    entries = index.records.entries(rows[free])
    others = sorted(Walker().pictures(options.unknown))
    others = [others[number] for number in random.permutation(len(others))[: options.queries]]
    known = vectors_of([image_path(entry.id, index.root) for entry in entries], reader, random)
    unknown = vectors_of(others, reader, random)
    gallery = np.ascontiguousarray(index.vectors[rows])
    print(
        f"{machine()}; {model.run.path.name}, {index.head} head; {len(rows):,} images, {len(known):,} queries of them "
        f"and {len(unknown):,} of others\n"
    )
    searches = [searched(queries, gallery, own) for queries, own in ((known, gallery[free]), (unknown, None))]
    print("| limit | asked for | precision | recall | known answered | unknown answered | refused at 90% |")
    print("|---|---|---|---|---|---|---|")
    for title, tried in (("one distance for all", np.zeros(1)), ("by the incoherence of 100 neighbors", SLOPES)):
        for wanted in PRECISIONS:
            try:
                line = calibrate_copies(index, reader, wanted, slopes=tried)
            except InputError as error:
                print(f"| {title} | {wanted} | {error} | | | | |")
                continue
            print(row(title, wanted, line, *searches), flush=True)


def vectors_of(files: Sequence[str | Path], reader: Reader, random: np.random.Generator) -> np.ndarray:
    """Embeds altered pictures."""
    pixels = [decode(altered(read(file), random), reader.size, reader.resize) for file in files]
    return reader.embed(np.stack(pixels))


def searched(queries: np.ndarray, gallery: np.ndarray, own: np.ndarray | None) -> Searched:
    """Searches for queries; right are the pictures with the vectors `own`, if these are given."""
    away, right, apart = [], [], []
    for number, (near, far) in enumerate(nearest_places(queries, gallery, NEIGHBORS)):
        same = np.zeros(len(near), bool) if own is None else gallery[near] @ own[number] > 1 - EQUAL_DISTANCE**2 / 2
        away.append(far[:KEPT])
        right.append(same[:KEPT])
        apart.append(incoherence(gallery[near]))
    return Searched(np.stack(away), np.stack(right), np.array(apart))


if __name__ == "__main__":
    main()
