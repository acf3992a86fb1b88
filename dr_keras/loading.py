"""Loads a finished run or a released model, with what it searches."""

import os

from dr_keras.heads import GENERAL
from dr_keras.index.index import Index
from dr_keras.runs import open_run
from dr_keras.search_model import Model


def load(
    run: str | os.PathLike[str] | None = None,
    *,
    runtime: str = "auto",
    head: str = "auto",
    index: str | os.PathLike[str] | None = None,
) -> Model:
    """Loads a finished run or a released model.

    Args:
        run: Its name or folder. By default the run that made `index`, or else the latest one in runs/.
        runtime, head: See `Model`.
        index: The index to search; the run's own by default.

    Returns:
        The model.

    Raises:
        RunError: There is no such run, or it is unfinished or damaged.

    Example:
        >>> model = load("tiny-imagenet-64")
        >>> model.config.embedding_dim
        256
    """
    if run is None and index is not None:
        with Index.open(index) as opened:
            run = opened.run or None
    model = Model(open_run(None if run is None else os.fspath(run)), runtime, head)
    if index is not None:
        return model.use_index(index)
    if model.run.has_gallery() and head != GENERAL:
        _ = model.index  # so that a damaged index is reported at once
    return model
