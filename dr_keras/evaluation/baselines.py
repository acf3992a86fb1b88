"""What a trained network is compared with: raw pixels, and the network before training."""

from collections.abc import Callable

import numpy as np
from rich.console import Console

from dr_keras.backend import import_framework
from dr_keras.embedders import embed_with_network
from dr_keras.progress import bar
from dr_keras.search_model import Model


def baselines_of(model: Model, pixels: np.ndarray, console: Console) -> dict[str, Callable[[], np.ndarray]]:
    """Returns, by name, functions that give the vectors of images: `pixels`, and those of the `untrained` network.

    Args:
        model: The run.
        pixels: (N, H, W, 3) uint8.
        console: Shows progress.
    """

    def raw() -> np.ndarray:
        console.print("ranking by raw pixels")
        return pixels.reshape(len(pixels), -1)

    def untrained() -> np.ndarray:
        import_framework()
        from dr_keras.model.network import initial_network

        with bar("embedding with the untrained network", len(pixels), console) as advance:
            return embed_with_network(initial_network(model.config), pixels, advance=advance)

    return {"pixels": raw, "untrained": untrained}
