"""`train`, the library's way to a trained model. Importing it imports no framework: `config` decides which one."""

import os
from pathlib import Path

from dr_keras.backend import import_framework
from dr_keras.config import Config
from dr_keras.runs import RUNS
from dr_keras.search_model import Model


def train(
    config: Config, *, runs: str | os.PathLike[str] = RUNS, overwrite: bool = False, resume: bool = False
) -> Model:
    """Trains as `config` says and returns the finished model; its run folder is made in `runs`.

    Args:
        config: the settings.
        runs: the folder that run folders lie in.
        overwrite: replace an earlier run of the same name.
        resume: go on with the run of that name, or start it; a finished one is only loaded.

    Raises:
        InputError: the data cannot be used, or a run of that name exists and `overwrite` is off.
        Interrupted: Ctrl-C or SIGTERM; the run is saved and can be resumed.
    """
    import_framework(config.backend)
    from dr_keras.training.run import run_training

    return Model(run_training(config, runs=Path(runs), overwrite=overwrite, resume=resume))
