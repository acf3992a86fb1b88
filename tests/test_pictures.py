import numpy as np
from PIL import Image, ImageFont

from dr_keras.image_grid import (
    FAINT,
    FRAME,
    GAP,
    OTHER,
    PAPER,
    QUERY,
    SAME,
    Neighbor,
    grid,
    neighbor_tiles,
    open_or_missing,
    shorten,
)

SIDE = 50


def frame_colors(picture: Image.Image, count: int) -> list[float | tuple[int, ...] | None]:
    step = SIDE + 2 * FRAME + GAP
    return [picture.getpixel((GAP + number * step + 1, GAP + 1)) for number in range(count)]


def test_frames_tell_query_same_class_other_class_and_unknown():
    image = Image.new("RGB", (8, 8), "black")
    near = [Neighbor(image, name, 0.5, same) for name, same in (("cat", True), ("cat", False), ("dog", None))]
    picture = grid([neighbor_tiles(image, "cat", near)], side=SIDE)
    assert frame_colors(picture, 4) == [QUERY, SAME, OTHER, FAINT]


def test_images_keep_their_proportions_and_captions_are_drawn():
    wide = Image.new("RGB", (80, 20), "black")
    picture = np.asarray(grid([neighbor_tiles(wide, "a name that is far too long for its tile", [])], side=SIDE))
    inside = picture[GAP + FRAME : GAP + FRAME + SIDE, GAP + FRAME : GAP + FRAME + SIDE]
    black = (inside == 0).all(axis=2)
    assert black.any(axis=1).sum() in (12, 13)  # height is a quarter of the width
    assert black.any(axis=0).all()
    caption = picture[GAP + SIDE + 2 * FRAME :]
    assert (caption < 128).any()
    assert (picture[:, -GAP:] == PAPER).all()  # and the caption stays inside its tile


def test_shorten_fits():
    font = ImageFont.load_default(13)
    assert shorten("cat", 100, font) == "cat"
    cut = shorten("a very long class name indeed", 60, font)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 60


def test_a_missing_file_has_a_placeholder(tmp_path):
    assert open_or_missing(tmp_path / "gone.jpg").size == (112, 112)
