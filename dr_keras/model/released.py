"""The weights of a released model: half precision, in one compressed NumPy file."""

from pathlib import Path

import keras
import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.backend import keras_defaults
from dr_keras.config import NetworkConfig
from dr_keras.errors import RunError
from dr_keras.heads import GENERAL, TRAINED
from dr_keras.model.general_head import with_general_head
from dr_keras.model.network import embedding_network, load_network
from dr_keras.number_files import halved, read_arrays
from dr_keras.runs import Run


def write_weights(file: Path, network: keras.Model) -> None:
    """Writes the weights of a network, numbered in its own order, in half precision where that loses nothing.

    Args:
        file: The file.
        network: A network after `dr_keras.model.half_precision.round_weights`.
    """
    halves = [halved(w) if w.dtype.kind == "f" else w for w in network.get_weights()]
    with new_file(file) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{str(number): value for number, value in enumerate(halves)})


@keras_defaults()
def read_weights(file: Path, config: NetworkConfig) -> keras.Model:
    """Returns an embedding network with the weights of a file.

    Args:
        file: A file that `write_weights` wrote.
        config: The settings of the network.

    Raises:
        RunError: The file is missing, damaged, or from a different network.
    """
    arrays = read_arrays(file, "weights")
    try:
        values = [arrays[str(number)] for number in range(len(arrays))]
    except KeyError as error:
        raise RunError(f"{file} cannot be read as weights: {error}") from error
    network = embedding_network(config, weights=False)
    here, there = [w.shape for w in network.get_weights()], [value.shape for value in values]
    if here != there:
        raise RunError(f"{file} holds the weights of another network than its config.json says")
    network.set_weights(values)
    return network


def run_network(run: Run, head: str = TRAINED) -> keras.Model:
    """Returns the network of a finished run or a released model: (B, H, W, 3) uint8 -> (B, D) of unit length.

    Args:
        run: The run.
        head: TRAINED for the embedding, GENERAL for the general head.

    Raises:
        RunError: There is no network or no such head, or it cannot be read.
    """
    if run.weights_file.is_file():
        network = read_weights(run.weights_file, run.config())
    else:
        network = load_network(run.network_file)
    return with_general_head(network, run.general_head(), alone=True) if head == GENERAL else network
