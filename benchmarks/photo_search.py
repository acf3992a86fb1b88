#!/usr/bin/env python3
"""Searches views of real photographs, and draws what is found.

    pip install -e .[demo]
    python benchmarks/photo_search.py --run mobilenet-224 --save docs/images/photographs.png

`--folder FOLDER` keeps the views, in a folder for each photograph; it must hold nothing else.

Of each of 14 photographs that come with scikit-image and scikit-learn, 8 views are searched: random crops of 35 to 60 %
of the shorter side, half of them mirrored, some darker and some lighter. Each is a query against all others. Printed is
how many of the 7 nearest are views of the same photograph; drawn are the 7 nearest of three of the queries.

Licenses: camera, chelsea and coffee CC0 by Lav Varshney, Stefan van der Walt and Rachel Michetti; brick, grass and
gravel CC0 by CC0Textures; retina CC0; astronaut, clock, coins, hubble and rocket in the public domain; china and flower
CC BY 2.0 by danielbuechele and vultilion (Flickr).
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image, ImageEnhance, ImageOps

from dr_keras import Model, load
from dr_keras.image_grid import Neighbor, grid, neighbor_tiles, open_or_missing

SKIMAGE = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "rocket.jpg",
)
SKLEARN = ("china.jpg", "flower.jpg")
VIEWS = 8  # of each photograph
SIDE = 384  # of a view
DRAWN = ("chelsea_0.jpg", "coffee_0.jpg", "china_0.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--folder", type=Path, help="keep the views here, and nothing else (default: nowhere)")
    options = parser.parse_args()
    model = load(options.run)
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place)
        names = write_views(folder)
        if other := {file.name for file in folder.rglob("*") if file.is_file()} - set(names):
            raise SystemExit(f"{folder} holds more than the views, such as {min(other)}; name another folder")
        model.use_gallery(folder)
        right = []
        for name in names:
            found = model.retrieve(name, k=VIEWS - 1).results
            right.append(np.mean([result.label == name.rpartition("_")[0] for result in found]))
        print(f"{machine()}; {options.run}, {len(names)} views of {len(SKIMAGE + SKLEARN)} photographs")
        print(f"precision@{VIEWS - 1}: {np.mean(right):.3f}")
        if options.save:
            draw(model, folder, options.save)


def draw(model: Model, folder: Path, file: Path) -> None:
    """Draws a row for each of `DRAWN`: the query and its neighbors."""
    rows = []
    for name in DRAWN:
        label = name.rpartition("_")[0]
        found = model.retrieve(name, k=VIEWS - 1).results
        neighbors = [
            Neighbor(open_or_missing(one.path), one.class_name, one.distance, one.label == label) for one in found
        ]
        rows.append(neighbor_tiles(open_or_missing(folder / label / name), label, neighbors))
    grid(rows).save(file)


def write_views(folder: Path) -> list[str]:
    """Writes the views of each photograph into a folder of its own; returns their names."""
    random = np.random.default_rng(0)
    files = [package("skimage") / "data" / name for name in SKIMAGE]
    files += [package("sklearn") / "datasets" / "images" / name for name in SKLEARN]
    names = []
    for file in files:
        with Image.open(file) as opened:
            photo = opened.convert("RGB")
        (folder / file.stem).mkdir(parents=True, exist_ok=True)
        for number in range(VIEWS):
            names.append(f"{file.stem}_{number}.jpg")
            view(photo, random).save(folder / file.stem / names[-1], quality=92)
    return names


def package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: pip install 'dr_keras[demo]'")
    return Path(spec.origin).parent


def view(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """A random square part of a photograph, perhaps mirrored, darker or lighter."""
    side = round(min(photo.size) * random.uniform(0.35, 0.6))
    left, top = (int(random.integers(0, length - side + 1)) for length in photo.size)
    part = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if random.random() < 0.5:
        part = ImageOps.mirror(part)
    return ImageEnhance.Brightness(part).enhance(random.uniform(0.75, 1.25))


if __name__ == "__main__":
    main()
