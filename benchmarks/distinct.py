#!/usr/bin/env python3
"""How well are copies of a result folded into it? `retrieve.py --distinct` on pictures with altered copies.

    python benchmarks/distinct.py --data FOLDER

`--pictures` images of a folder, and four copies of each: resized to 75 to 125%, brightened or darkened by a tenth, and
saved as JPEG of quality 60 to 90; or cropped by up to a tenth on each side instead (`dr_keras.index.cutoff.altered`),
which `duplicates` does not take for a copy. Each picture is searched for, 10 results, with and without
`--distinct`: which share of the results shows a picture that an earlier one has shown; which share of the query's own
copies, beyond the one that is a result, was folded into it; how many images were folded into a result that they are not
a copy of; and how long a search takes.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image, ImageEnhance

from dr_keras import Model, load
from dr_keras.data.folders import Walker
from dr_keras.data.images import read
from dr_keras.index.cutoff import altered
from dr_keras.search_results import Result

COPIES, K = 4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER")
    parser.add_argument("--run", default="tiny-imagenet-64", help="the run to embed with (default: tiny-imagenet-64)")
    parser.add_argument("--pictures", type=int, default=500, help="how many pictures (default: 500)")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    files = sorted(Walker().pictures(options.data))
    files = [files[number] for number in random.permutation(len(files))[: options.pictures]]
    model = load(options.run, head="general")
    print(f"{machine()}; {options.run}; {len(files)} pictures with {COPIES} copies each\n")
    print("| copies | | results shown before | own copies folded | folded wrongly | ms |")
    print("|---|---|---|---|---|---|")
    for kind, change in (("saved again", saved_again), ("cropped", altered)):
        with tempfile.TemporaryDirectory() as folder:
            names = []
            for number, file in enumerate(files):
                original = read(file)
                names.append(f"{number:04}_0.png")
                original.save(Path(folder) / names[-1])
                for copy in range(1, COPIES + 1):
                    change(original, random).save(Path(folder) / f"{number:04}_{copy}.png")
            model.use_gallery(folder)
            for distinct in (False, True):
                measure(model, names, kind, distinct=distinct)


def saved_again(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Returns a picture resized, brightened or darkened, and saved as JPEG."""
    size = [max(1, round(side * random.uniform(0.75, 1.25))) for side in image.size]
    picture = ImageEnhance.Brightness(image.resize((size[0], size[1]))).enhance(random.choice([0.9, 1.1]))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=int(random.integers(60, 90)))
    return read(stream.getvalue())


def measure(model: Model, names: list[str], kind: str, *, distinct: bool) -> None:
    """Searches for each picture, and prints a line."""
    again, found, own, folded, wrong, took = 0, 0, 0, 0, 0, []
    for name in names:
        started = time.perf_counter()
        results = model.retrieve(name, K, distinct=distinct).results
        took.append(1000 * (time.perf_counter() - started))
        of = [picture(result.id) for result in results]
        again += len(of) - len(set(of))
        found += len(results)
        for result in results:
            good, bad = counts(result)
            folded, wrong = folded + good, wrong + bad
            own += good if picture(result.id) == picture(name) else 0
    title, share = "`--distinct`" if distinct else "nearest first", own / (len(names) * (COPIES - 1))
    print(
        f"| {kind} | {title} | {again / found:.3f} | {share:.3f} | {wrong} of {folded + wrong:,} | "
        f"{statistics.median(took):.1f} |"
    )


def picture(id: str) -> str:
    """What an image is a copy of."""
    return id.partition("_")[0]


def counts(result: Result) -> tuple[int, int]:
    """How many of the images that were folded into a result are copies of it, and how many are not."""
    same = sum(picture(copy) == picture(result.id) for copy in result.copies)
    return same, len(result.copies) - same


if __name__ == "__main__":
    main()
