"""Exports of a trained embedding network, each compared with the network before it is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dr_keras.errors import RunError
from dr_keras.runs import Run


def export_in_child(run: Run) -> dict[str, float]:
    """Writes saved_model/ and embedding.tflite of a run, in a child process on TensorFlow in float32.

    A process of its own, because SavedModel and LiteRT need Keras on TensorFlow, whatever backend trained.

    Returns:
        The largest differences from the network, see `dr_keras.export.write.export`.

    Raises:
        RunError: an export failed or differs from the network; nothing of it is kept.
    """
    here = str(Path(__file__).parent.parent.parent)  # the package need not be installed
    settings = {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        "CUDA_VISIBLE_DEVICES": "-1",  # the training holds the GPU's memory, and a GPU may compute in TF32
    }
    result = subprocess.run(
        [sys.executable, "-m", "dr_keras.export", str(run.path)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        reason = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise RunError(f"the export of {run.path} failed: {reason[-1]}")
    return json.loads(result.stdout.splitlines()[-1])
