"""Pictures of explanations: a query and its neighbors, bright where they are alike."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dr_keras import image_grid
from dr_keras.data.images import PADDING, ImageInput, decode
from dr_keras.errors import ImageError
from dr_keras.explanation import Explanation
from dr_keras.image_grid import Tile

SIDE = 160  # pixels of an image
DARKEST = 0.15  # of the brightness that is left where a part adds nothing


def lit(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Darkens a picture where it adds little to a similarity.

    Args:
        picture: (H, W, 3) uint8.
        values: (G, G), what each part adds; parts that add nothing or less are the darkest.

    Returns:
        (H, W, 3) uint8.
    """
    light = np.clip(values, 0, None) / max(float(values.max()), 1e-12)
    light = Image.fromarray((255 * light).astype(np.uint8)).resize(picture.shape[1::-1], Image.Resampling.BICUBIC)
    share = DARKEST + (1 - DARKEST) * np.asarray(light, np.float32)[..., None] / 255
    return (picture * share).round().astype(np.uint8)


def why_picture(
    query: ImageInput, neighbors: Sequence[tuple[Path, str, Explanation]], resize: str, *, across: int = 6
) -> Image.Image:
    """Draws a query and its neighbors in pairs, bright where they are alike.

    Args:
        query: The query.
        neighbors: For each, its file, its caption and its explanation.
        resize: How the run makes images square.
        across: Pairs in a row.

    Returns:
        An RGB picture: in each column the query above a neighbor, after the two as they are.
    """
    plain = _square(query, resize)
    rows = []
    for start in range(0, len(neighbors), across):
        above = [Tile(Image.fromarray(plain), ("query", ""), image_grid.QUERY)]
        below = [Tile(Image.new("RGB", (SIDE, SIDE), image_grid.PAPER), ("", ""), image_grid.PAPER)]
        for file, caption, found in neighbors[start : start + across]:
            sums = f"bias {found.bias:+.3f}" if found.bias is not None else "approximate"
            above.append(Tile(Image.fromarray(lit(plain, found.query_map)), ("query", sums), image_grid.QUERY))
            picture = lit(_square(file, resize), found.neighbor_map)
            below.append(Tile(Image.fromarray(picture), (caption, f"cosine {found.cosine:.3f}"), image_grid.FAINT))
        rows += [above, below]
    return image_grid.grid(rows, SIDE)


def _square(file: ImageInput, resize: str) -> np.ndarray:
    try:
        return decode(file, SIDE, resize)
    except ImageError:
        return np.full((SIDE, SIDE, 3), PADDING, np.uint8)
