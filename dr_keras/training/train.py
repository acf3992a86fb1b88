"""The `train` function of the library. Importing it imports no framework, because `config` decides which is used."""

import os
from pathlib import Path

from dr_keras.backend import import_framework
from dr_keras.config import Config
from dr_keras.runs import RUNS
from dr_keras.search_model import Model


def train(
    config: Config, *, runs: str | os.PathLike[str] = RUNS, overwrite: bool = False, resume: bool = False
) -> Model:
    """Trains a model and leaves a finished run folder in `runs`.

    Args:
        config: The settings.
        runs: The folder of all run folders.
        overwrite: Whether to replace an earlier run of the same name.
        resume: Whether to continue the run of that name, or start it; a finished run is only loaded.

    Returns:
        The trained model, as `load` returns it.

    Raises:
        InputError: The data cannot be used, or a run of that name exists and `overwrite` is False.
        Interrupted: Ctrl-C or SIGTERM; the run is saved and can be resumed.

    Example:
        >>> model = train(Config(data="my-pictures", run="first", epochs=2))
        >>> model.embed(["my-pictures/apples/red.png"]).shape
        (1, 256)
    """
    import_framework(config.backend)
    from dr_keras.training.run import run_training

    return Model(run_training(config, runs=Path(runs), overwrite=overwrite, resume=resume))
