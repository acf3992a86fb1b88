"""Makes a released model from a run: small enough for the package, and evaluated exactly as released.

A released model is a run folder without any image: config.json, classes.json, weights.npz, general.npz and
embedding.tflite (all three in half precision), and README.md, the model card, written by hand. The weights are rounded
first, so that what is evaluated is what is released. Needs TensorFlow. `dr-keras release` is its command line.
"""

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dr_keras.atomic_files import new_file, read_json, write_json
from dr_keras.backend import import_framework
from dr_keras.config import BACKBONES, Config
from dr_keras.errors import RunError
from dr_keras.heads import GENERAL, TRAINED, GeneralHead
from dr_keras.invocation import program
from dr_keras.runs import Run

MAX_BYTES = 16 << 20  # of a file
ROUNDING = 2e-2  # largest change of any component of an embedding from rounding the weights


def release(run: Run, place: Run) -> dict[str, float]:
    """Writes the released model of `run` to `place`.

    Args:
        run: A finished run.
        place: The folder of the released model; created if needed. Of an earlier model in it, only the card is kept.

    Returns:
        The largest differences of any component of an embedding, on the run's sample images: `rounding`, between the
        rounded network and the run's; `litert`, between the LiteRT file and the rounded network.

    Raises:
        RunError: The run is not finished, a file exceeds 16 MiB, or the rounded network or its export differs too much
            from the network. `place` is left unchanged.
    """
    import_framework()
    from dr_keras.embedders import embed_with_network
    from dr_keras.export.write import HALF_TOLERANCE, TOLERANCE, check_litert, half_litert
    from dr_keras.model.general_head import with_general_head
    from dr_keras.model.half_precision import round_weights
    from dr_keras.model.maps import map_tensors, projection_of
    from dr_keras.model.released import run_network, write_weights

    if not (run.finished and (run.network_file.is_file() or run.weights_file.is_file())):
        raise RunError(f"{run.path} is not a finished run; finish it with {program('train')} --resume first")
    network, samples = run_network(run), np.load(run.samples_file, allow_pickle=False)
    general = run.general_head() if run.general_file.is_file() else None

    def vectors(general: GeneralHead | None) -> dict[str, np.ndarray]:
        networks = {TRAINED: network}
        if general is not None:
            networks[GENERAL] = with_general_head(network, general, alone=True)
        return {head: embed_with_network(one, samples) for head, one in networks.items()}

    tolerance = TOLERANCE if run.config().backbone in BACKBONES else HALF_TOLERANCE
    before = vectors(general)
    round_weights(network)
    if general is not None:
        general = general.rounded()
    expected = vectors(general)
    place.path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:  # kept only if all checks pass
        weights, litert = (files.enter_context(new_file(file)) for file in (place.weights_file, place.litert_file))
        write_weights(weights, network)
        litert.write_bytes(half_litert(network, general, run.config().resize))
        differences = {
            "rounding": max(float(np.abs(expected[head] - before[head]).max()) for head in before),
            "litert": check_litert(litert, samples, expected, tolerance),
        }
        if not differences["rounding"] <= ROUNDING:
            raise RunError(
                f"rounding the weights to half precision moves an embedding by {differences['rounding']:.1e}, "
                f"more than {ROUNDING:.0e}; this network cannot be released"
            )
        for file, name in ((weights, place.weights_file.name), (litert, place.litert_file.name)):
            if file.stat().st_size > MAX_BYTES:
                raise RunError(f"{name} has {file.stat().st_size:,} bytes; a released file has at most {MAX_BYTES:,}")
    limits = [place.calibration_file(head) for head in (TRAINED, GENERAL)]
    for file in (place.general_file, place.projection_file, place.classes_file, *limits):  # of an earlier model
        file.unlink(missing_ok=True)
    if general is not None:
        general.save(place.general_file)
    if map_tensors(network) is not None:
        projection_of(network).save(place.projection_file)
    if run.classes_file.is_file():
        write_json(place.classes_file, read_json(run.classes_file))
    place.write_config(public_config(run.config()))
    return differences


def public_config(config: Config) -> Config:
    """Returns the settings without the run's name and the paths and addresses of the machines it was trained on."""
    public = dataclasses.replace(config, run=None, data=None, weights=None, initial_weights=None)
    public = dataclasses.replace(public, hosts=1, host_index=0, coordinator=None)
    triplets = Path(config.triplets).name if config.triplets else None
    return dataclasses.replace(public, triplets=triplets, relevance=Path(config.relevance).name)
