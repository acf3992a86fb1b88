#!/usr/bin/env python3
"""Draws photographs and the collages in which a search by parts finds them, with a frame around the part.

    pip install -e .[demo,serve]
    python benchmarks/parts_picture.py --save docs/images/parts.png

20 collages of six photographs each, drawn from 14 that come with scikit-image and scikit-learn (licenses:
photo_search.py), are an index with parts. A view of a photograph, as in photo_search.py, is a query.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from photo_search import SKIMAGE, SKLEARN, package, view
from PIL import Image, ImageOps

from dr_keras import load
from dr_keras.image_grid import Neighbor, framed, grid, neighbor_tiles, open_or_missing
from dr_keras.index.index import Index
from dr_keras.index.sync import add_files
from dr_keras.progress import stderr

COLLAGES, ACROSS, DOWN = 20, 3, 2
TILE = 200  # pixels
PARTS = 3
DRAWN = ("astronaut", "china", "chelsea", "coffee")
SHOWN = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="tiny-imagenet-64", help="the run to embed with (default: tiny-imagenet-64)")
    parser.add_argument("--save", type=Path, required=True)
    options = parser.parse_args()
    files = [package("skimage") / "data" / name for name in SKIMAGE]
    files += [package("sklearn") / "datasets" / "images" / name for name in SKLEARN]
    photos = {file.stem: Image.open(file).convert("RGB") for file in files}
    random, model, rows, right = np.random.default_rng(0), load(options.run), [], 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "collages"
        place.mkdir()
        members = [collage(photos, random, place / f"{number:02}.jpg") for number in range(COLLAGES)]
        with Index.create(
            Path(folder) / "index", model.run.embedding_dim("general"), root=place, parts=PARTS, head="general"
        ) as index:
            add_files(index, [place], model.reader_for(index), console=stderr())
            model.index = index
            for name in DRAWN:
                query = view(photos[name], random)
                found = model.search([query], SHOWN)[0]
                good = [name in members[int(result.id[:2])] for result in found]
                right += sum(good)
                pictures = [framed(open_or_missing(result.path, 4 * TILE), result.part) for result in found]
                neighbors = [
                    Neighbor(picture, "contains it" if same else "does not", result.distance, same)
                    for picture, same, result in zip(pictures, good, found, strict=True)
                ]
                rows.append(neighbor_tiles(query, name, neighbors))
    grid(rows, side=150).save(options.save)
    print(f"{right} of {SHOWN * len(DRAWN)} contain the photograph")


def collage(photos: dict[str, Image.Image], random: np.random.Generator, file: Path) -> list[str]:
    """Writes a collage; returns the names of its photographs."""
    names = random.permutation(sorted(photos))[: ACROSS * DOWN].tolist()
    picture = Image.new("RGB", (ACROSS * TILE, DOWN * TILE))
    for number, name in enumerate(names):
        piece = ImageOps.fit(photos[name], (TILE, TILE))
        picture.paste(piece, (number % ACROSS * TILE, number // ACROSS * TILE))
    picture.save(file, quality=92)
    return names


if __name__ == "__main__":
    main()
