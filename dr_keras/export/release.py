"""Makes a released model of a run: small enough to be part of the repository, and measured as it is released.

    python -m dr_keras.export.release runs/final models/tiny-imagenet-64

A released model is a run folder without any image: config.json, weights.npz (half precision), embedding.tflite (half
precision) and README.md, the model card, which people write. The weights are rounded first; what they give after that
is what is evaluated. Needs TensorFlow.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from dr_keras.atomic_files import new_file
from dr_keras.backend import import_framework
from dr_keras.errors import InputError, RunError
from dr_keras.runs import Run

MAX_BYTES = 16 << 20  # of a file
ROUNDING = 2e-2  # what rounding the weights may change in a component of an embedding


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("release", type=Path, help="the folder to make")
    options = parser.parse_args()
    try:
        for name, difference in release(Run(options.run), Run(options.release)).items():
            print(f"{name}: {difference:.1e}")
    except InputError as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    return 0


def release(run: Run, place: Run) -> dict[str, float]:
    """Writes the released model of `run` to `place`.

    Returns:
        The largest differences, on the run's sample images: `rounding`, of the rounded network from the run's; and
        `litert`, of the LiteRT file from the rounded network.

    Raises:
        RunError: the run is not finished, a file gets larger than 16 MiB, or the rounded network or its export differs
            from the network. What was in `place` stays as it was.
    """
    import_framework()
    from dr_keras.embedders import embed_with_network
    from dr_keras.export.write import HALF_TOLERANCE, check_litert, half_litert
    from dr_keras.model.released import rounded, run_network, write_weights

    if not (run.finished and (run.network_file.is_file() or run.weights_file.is_file())):
        raise RunError(f"{run.path} is no finished run; release one that train.py has brought to its end")
    network, samples = run_network(run), np.load(run.samples_file, allow_pickle=False)
    before = embed_with_network(network, samples)
    network.set_weights(rounded(network.get_weights()))
    expected = embed_with_network(network, samples)
    place.path.mkdir(parents=True, exist_ok=True)
    with new_file(place.weights_file) as weights, new_file(place.litert_file) as litert:  # kept when all is well
        write_weights(weights, network)
        litert.write_bytes(half_litert(network, run.config().resize))
        differences = {
            "rounding": float(np.abs(expected - before).max()),
            "litert": check_litert(litert, samples, expected, HALF_TOLERANCE),
        }
        if not differences["rounding"] <= ROUNDING:
            raise RunError(
                f"rounding the weights to half precision moves an embedding by {differences['rounding']:.1e}, "
                f"more than {ROUNDING:.0e}; this network cannot be released so"
            )
        for file, name in ((weights, place.weights_file.name), (litert, place.litert_file.name)):
            if file.stat().st_size > MAX_BYTES:
                raise RunError(f"{name} has {file.stat().st_size:,} bytes; a released file has at most {MAX_BYTES:,}")
    # Neither what it was called, nor what it was made from on that machine.
    place.write_config(dataclasses.replace(run.config(), run=None, data=None, weights=None, initial_weights=None))
    return differences


if __name__ == "__main__":
    sys.exit(main())
