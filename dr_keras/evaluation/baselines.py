"""The vectors of an evaluation: those of the run, and what they are compared with."""

from collections.abc import Callable

import numpy as np
from rich.console import Console

from dr_keras.backend import import_framework
from dr_keras.data.pixel_store import Pixels
from dr_keras.embedders import Advance, embed_with_network
from dr_keras.progress import bar
from dr_keras.search_model import Model

BLOCK_BYTES = 1 << 27  # of pixels that are embedded at a time


def vectors_of(
    model: Model, pixels: Pixels, head: str, *, mirrored: bool = False, advance: Advance | None = None
) -> np.ndarray:
    """Embeds decoded or streamed images by a head of a run, some at a time.

    Args:
        model: The run.
        pixels: (N, H, W, 3) uint8.
        head: TRAINED or GENERAL.
        mirrored: Whether to embed their mirror images.
        advance: Called after each block with the number of its images.

    Returns:
        (N, D) float32.
    """
    step = max(1, BLOCK_BYTES // int(np.prod(pixels.shape[1:])))
    parts = []
    for start in range(0, len(pixels), step):
        block = pixels[start : start + step]
        parts.append(model.vectors(np.ascontiguousarray(block[:, :, ::-1]) if mirrored else block, head))
        if advance:
            advance(len(block))
    return np.concatenate(parts)


def baselines_of(model: Model, pixels: Pixels, console: Console) -> dict[str, Callable[[], np.ndarray]]:
    """Returns, by name, functions that give the vectors of images: `pixels`, and those of the `untrained` network.

    Args:
        model: The run.
        pixels: (N, H, W, 3) uint8; there is no ranking by raw pixels if they are streamed, because it needs all of
            them at once.
        console: Shows progress.
    """

    def raw() -> np.ndarray:
        assert isinstance(pixels, np.ndarray)
        console.print("ranking by raw pixels")
        return pixels.reshape(len(pixels), -1)

    def untrained() -> np.ndarray:
        import_framework()
        from dr_keras.model.network import initial_network

        with bar("embedding with the untrained network", len(pixels), console) as advance:
            return embed_with_network(initial_network(model.config), pixels, advance=advance)

    if not isinstance(pixels, np.ndarray):
        console.print("no ranking by raw pixels: they do not fit into memory")
        return {"untrained": untrained}
    return {"pixels": raw, "untrained": untrained}
