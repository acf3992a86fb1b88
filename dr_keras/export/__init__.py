"""Exports of a trained embedding network, each compared with the network before it is kept."""

import json
import subprocess

from dr_keras import subprocesses as child
from dr_keras.errors import MissingPackage, RunError
from dr_keras.extras import how_to_install
from dr_keras.runs import Run

NO_TENSORFLOW = 3  # the child's exit status


def export_in_child(run: Run) -> dict[str, float]:
    """Writes saved_model/ and embedding.tflite of a run, in a child process on TensorFlow in float32.

    It needs its own process, because SavedModel and LiteRT need Keras on TensorFlow, whichever backend trained the run.

    Args:
        run: A run with a trained network and its sample images.

    Returns:
        The largest absolute differences from the network; see `dr_keras.export.write.export`.

    Raises:
        MissingPackage: TensorFlow is not installed.
        RunError: An export failed or differs from the network; it is not kept.
    """
    settings = {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",  # training occupies the GPU's memory, and a GPU may compute in TF32
    }
    result = subprocess.run(
        child.command("dr_keras.export", str(run.path)),
        env=child.environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == NO_TENSORFLOW:
        install = how_to_install("tensorflow")
        raise MissingPackage(f"the export of {run.path} needs TensorFlow, which is not installed; {install}")
    if result.returncode:
        reason = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise RunError(f"the export of {run.path} failed: {reason[-1]}")
    return json.loads(result.stdout.splitlines()[-1])
