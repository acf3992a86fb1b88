"""Grids of images with a caption below each: for `retrieve.py --save` and for TensorBoard."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dr_keras.data.crop import Crop, cropped
from dr_keras.data.images import read
from dr_keras.data.thumbnails import square_thumbnail
from dr_keras.errors import InputError

PAPER = (252, 252, 250)
INK = (32, 36, 42)
FAINT = (120, 126, 134)
QUERY = (45, 92, 190)
SAME = (31, 138, 84)  # green and orange-red also differ in lightness, for color-blind people
OTHER = (216, 96, 58)
PART, PART_EDGE = (255, 255, 255), (0, 0, 0)  # the frame of a part is seen on light and dark pictures
PART_LINE = 0.02  # its width, as a share of the longer side
TILE_PAPER = (236, 236, 232)
GAP = 10  # pixels
FRAME = 4  # pixels
LINE_HEIGHT = 16  # pixels


@dataclass(frozen=True)
class Tile:
    """One image of a grid.

    Attributes:
        image: The image.
        lines: The lines of the caption; the first is darker than the others.
        frame: RGB color of the frame.
    """

    image: Image.Image
    lines: Sequence[str]
    frame: tuple[int, int, int]


@dataclass(frozen=True)
class Neighbor:
    """One neighbor of a query.

    Attributes:
        image: Its image.
        class_name: The name of its class.
        distance: Its distance to the query.
        same: Whether it has the query's class, or None if that is unknown.
        copies: How many copies of it were folded into it.
    """

    image: Image.Image
    class_name: str
    distance: float
    same: bool | None
    copies: int = 0


def neighbor_tiles(query: Image.Image, class_name: str | None, neighbors: Sequence[Neighbor]) -> list[Tile]:
    """Makes the tiles of a query and its neighbors.

    Args:
        query: The image of the query.
        class_name: The name of its class, or None.
        neighbors: Nearest first. Those of the query's class are framed in green, others in orange.
    """
    frames = {True: SAME, False: OTHER, None: FAINT}
    tiles = [Tile(query, (class_name or "?", "query"), QUERY)]
    for one in neighbors:
        copies = f" and {one.copies} like it" if one.copies else ""
        tiles.append(Tile(one.image, (one.class_name, f"{one.distance:.3f}{copies}"), frames[one.same]))
    return tiles


def grid(rows: Sequence[Sequence[Tile]], side: int = 112) -> Image.Image:
    """Draws rows of tiles.

    Args:
        rows: The tiles, row by row.
        side: The side of each image in pixels; smaller images are enlarged.

    Returns:
        An RGB image.
    """
    font = ImageFont.load_default(13)
    lines = max(len(tile.lines) for row in rows for tile in row)
    cell = side + 2 * FRAME
    step = cell + lines * LINE_HEIGHT + GAP
    columns = max(len(row) for row in rows)
    canvas = Image.new("RGB", (columns * (cell + GAP) + GAP, len(rows) * (step + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for down, row in enumerate(rows):
        for across, tile in enumerate(row):
            left, top = GAP + across * (cell + GAP), GAP + down * (step + GAP)
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=tile.frame)
            canvas.paste(square_thumbnail(tile.image, side, TILE_PAPER), (left + FRAME, top + FRAME))
            for number, line in enumerate(tile.lines):
                place = (left + 1, top + cell + 3 + number * LINE_HEIGHT)
                draw.text(place, shorten(line, cell, font), INK if not number else FAINT, font)
    return canvas


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cuts a text that is wider than `width` pixels and ends it with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def open_or_missing(path: Path, side: int = 112, crop: Crop | None = None) -> Image.Image:
    """Reads an image file or a part of it; if it is missing or broken, returns a gray square that says so."""
    try:
        return read(path, draft=side) if crop is None else cropped(path, crop)
    except InputError:
        image = Image.new("RGB", (side, side), (228, 228, 224))
        ImageDraw.Draw(image).text((8, side // 2 - 8), "file not found", FAINT, ImageFont.load_default(12))
        return image


def framed(image: Image.Image, part: Crop | None) -> Image.Image:
    """Returns an image with a white frame around a part of it, or unchanged if there is none."""
    if part is None:
        return image
    image = image.copy()
    box, line = part.box(*image.size), max(1, round(max(image.size) * PART_LINE))
    left, top, right, bottom = box
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=PART_EDGE, width=2 * line)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=PART, width=line)
    return image


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """Makes an image of (H, W, 3) uint8 pixels."""
    return Image.fromarray(pixels)
