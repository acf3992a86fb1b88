#!/usr/bin/env python3
"""Do the maps of an explanation say what matters? Covers cells of a query, the brightest first, and compares.

    python benchmarks/why.py --data tiny-imagenet-200 --run tiny-imagenet-64
    python benchmarks/why.py --picture chelsea_0.jpg --run tiny-imagenet-64 --save docs/images/why.png

Each of 200 validation images is a query, and its nearest of 4,000 training images is explained. Then 1, 2, 4 and 8 of
the cells of the query are covered in gray: the brightest of the map, random ones, or the darkest. Printed is the mean
cosine that is left, with a 95 % bootstrap interval over the queries. With `--picture`, views of the photographs of
photo_search.py are searched and explained, and drawn.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from machine import machine
from photo_search import write_views

from dr_keras import Model, load
from dr_keras.data.catalog import load_catalog
from dr_keras.data.decoding import decode_files
from dr_keras.data.images import PADDING
from dr_keras.data.splits import TRAIN, VALIDATION
from dr_keras.index.exact_search import nearest
from dr_keras.why_picture import why_picture

QUERIES, GALLERY = 200, 4000
COVERED = (1, 2, 4, 8)
ORDERS = ("brightest first", "at random", "darkest first")
SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="tiny-imagenet-64")
    parser.add_argument("--data")
    parser.add_argument("--picture", help="a view of a photograph, such as chelsea_0.jpg")
    parser.add_argument("--save", type=Path, default=Path("why.png"))
    options = parser.parse_args()
    for head in ("trained", "general") if options.data else ():
        measure(load(options.run, head=head), head, options.data)
    if options.picture:
        draw(load(options.run), options.picture, options.save)


def measure(model: Model, head: str, data: str) -> None:
    """Prints the table of one head."""
    random = np.random.default_rng(0)
    catalog = load_catalog(data, monitor=0, validation=0.1, seed=0)
    paths = np.array(catalog.paths(), object)
    queries = random.permutation(catalog.rows(VALIDATION))[:QUERIES]
    gallery = random.permutation(catalog.rows(TRAIN))[:GALLERY]
    config = model.config
    pixels, others = (decode_files(paths[rows], config.image_size, config.resize)[0] for rows in (queries, gallery))
    vectors, found = model.vectors(pixels, head), model.vectors(others, head)
    rows = nearest(vectors, found, 1)[0][:, 0]
    left = {order: np.empty((len(queries), len(COVERED))) for order in ORDERS}
    for number, row in enumerate(rows.tolist()):
        explanation = model.explain_pixels(pixels[number], others[row], head)
        count = explanation.query_map.size
        by_map = np.argsort(-explanation.query_map, axis=None)
        for name, order in zip(ORDERS, (by_map, random.permutation(count), by_map[::-1]), strict=True):
            covered = np.stack(
                [cover(pixels[number], order[:cells], explanation.query_map.shape[0]) for cells in COVERED]
            )
            left[name][number] = model.vectors(covered, head) @ found[row]
    before = float((vectors * found[rows]).sum(axis=1).mean())
    print(
        f"{machine()}; {config.run or model.run.path.name}, {head} head, {len(queries)} queries, cosine {before:.4f}\n"
    )
    print("| covered | " + " | ".join(f"{cells} of {count}" for cells in COVERED) + " |")
    print("|---|" + "---|" * len(COVERED))
    for name, values in left.items():
        drawn = values[random.integers(0, len(values), (1000, len(values)))].mean(axis=1)
        low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
        cells = [f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(values.mean(axis=0), low, high, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(flush=True)


def cover(picture: np.ndarray, cells: np.ndarray, side: int) -> np.ndarray:
    """The picture with these cells of a side x side grid in gray."""
    covered = picture.copy()
    edges = np.linspace(0, len(picture), side + 1).round().astype(int)
    for row, column in zip(*np.divmod(cells, side), strict=True):
        covered[edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = PADDING
    return covered


def draw(model: Model, name: str, file: Path) -> None:
    """Draws the explanation of a search among views of photographs."""
    with tempfile.TemporaryDirectory() as place:
        write_views(Path(place))
        model.use_gallery(place)
        answer = model.retrieve(name, k=SHOWN)
        found = [(one.path, one.class_name, model.explain(answer.path, one.path)) for one in answer.results]
        why_picture(answer.path, found, model.config.resize).save(file, optimize=True)


if __name__ == "__main__":
    main()
