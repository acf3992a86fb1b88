"""The judgments that `--triplets` trains on."""

from pathlib import Path

import numpy as np
from rich.console import Console

from dr_keras.config import Config
from dr_keras.data.catalog import Catalog
from dr_keras.data.image_lookup import ImageLookup
from dr_keras.data.judgments import Judgments, JudgmentSampler, read_judgments
from dr_keras.errors import InputError


def judgment_sampler(config: Config, catalog: Catalog, rows: np.ndarray, console: Console) -> JudgmentSampler:
    """Returns the sampler of the judgments about the training images, and says how many cannot be used.

    Args:
        config: The settings; `triplets` names the file, whose paths may be relative to its folder.
        catalog: The images of all splits.
        rows: (n,) the rows of the training images.
        console: Where the counts are shown.

    Raises:
        InputError: The file cannot be read, names an unknown image, or has no judgment to train on.
    """
    assert config.triplets
    file = Path(config.triplets).expanduser()
    judgments = read_judgments(file, ImageLookup(catalog, file.parent).row)
    place = np.full(len(catalog), -1)
    place[rows] = np.arange(len(rows))
    images = place[judgments.images]
    usable = (images >= 0).all(axis=1)
    if not usable.any():
        raise InputError(f"{file} has no judgment about three training images")
    kept = Judgments(images, judgments.votes, judgments.against).take(usable)
    decided = len(kept.decided())
    parts = [f"training on {decided:,} judgments"]
    if len(kept) > decided:
        parts.append(f"{len(kept) - decided:,} more have no majority")
    if not usable.all():
        parts.append(f"{(~usable).sum():,} are about held-out images")
    console.print("; ".join(parts), highlight=False)
    return JudgmentSampler(kept, catalog.labels[rows], config.batch_size, config.seed)
