"""Grids of images with a caption under each: for retrieve.py --save, the demo and TensorBoard."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dr_keras.data.images import read
from dr_keras.errors import ImageError

PAPER = (252, 252, 250)
INK = (32, 36, 42)
FAINT = (120, 126, 134)
QUERY = (45, 92, 190)
SAME = (31, 138, 84)  # green and orange-red also differ in lightness, for eyes that confuse the hues
OTHER = (216, 96, 58)
GAP = 10
FRAME = 4


@dataclass(frozen=True)
class Tile:
    """One image of a grid: the image, the lines under it (the first in ink, the rest fainter), its frame's colour."""

    image: Image.Image
    lines: Sequence[str]
    frame: tuple[int, int, int]


@dataclass(frozen=True)
class Neighbour:
    """One neighbour: its image, the name of its class, its distance, and whether it has the query's class, if known."""

    image: Image.Image
    class_name: str
    distance: float
    same: bool | None


def neighbour_tiles(query: Image.Image, class_name: str | None, neighbours: Sequence[Neighbour]) -> list[Tile]:
    """The tiles of a query and its neighbours: framed green where the class is the query's, orange where another."""
    frames = {True: SAME, False: OTHER, None: FAINT}
    tiles = [Tile(query, (class_name or "?", "query"), QUERY)]
    tiles += [Tile(one.image, (one.class_name, f"{one.distance:.3f}"), frames[one.same]) for one in neighbours]
    return tiles


def grid(rows: Sequence[Sequence[Tile]], side: int = 112) -> Image.Image:
    """Draws rows of tiles; small images are enlarged without blurring their pixels' edges too much."""
    font = ImageFont.load_default(13)
    line_height = 16
    lines = max(len(tile.lines) for row in rows for tile in row)
    cell = side + 2 * FRAME
    step = cell + lines * line_height + GAP
    columns = max(len(row) for row in rows)
    canvas = Image.new("RGB", (columns * (cell + GAP) + GAP, len(rows) * (step + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for down, row in enumerate(rows):
        for across, tile in enumerate(row):
            left, top = GAP + across * (cell + GAP), GAP + down * (step + GAP)
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=tile.frame)
            canvas.paste(fit(tile.image, side), (left + FRAME, top + FRAME))
            for number, line in enumerate(tile.lines):
                place = (left + 1, top + cell + 3 + number * line_height)
                draw.text(place, shorten(line, cell, font), INK if not number else FAINT, font)
    return canvas


def fit(image: Image.Image, side: int) -> Image.Image:
    """The whole image on a square of `side` pixels, its proportions kept."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side), (236, 236, 232))
    small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def open_or_missing(path: Path, side: int = 112) -> Image.Image:
    """The image of a file; a grey square that says so where the file is gone or broken."""
    try:
        return read(path, draft=side)
    except ImageError:
        image = Image.new("RGB", (side, side), (228, 228, 224))
        ImageDraw.Draw(image).text((8, side // 2 - 8), "file not found", FAINT, ImageFont.load_default(12))
        return image


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 as a picture."""
    return Image.fromarray(pixels)
