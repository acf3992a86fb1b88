"""Fits a general head on the images that will be searched, which need no labels (`dr_keras.heads`)."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console

from dr_keras.data.decoding import decode_files
from dr_keras.data.folders import all_pictures
from dr_keras.errors import InputError
from dr_keras.heads import FIT_IMAGES, GENERAL_DIM, GeneralHead, fit_general_head
from dr_keras.index.sync import Reader, chunk_images, timed_chunks
from dr_keras.progress import bar


def fit_head_on(
    paths: Iterable[str | os.PathLike[str]],
    reader: Reader,
    *,
    dim: int = GENERAL_DIM,
    seed: int = 0,
    console: Console,
) -> GeneralHead:
    """Fits a general head on at most `FIT_IMAGES` images, drawn at random.

    Args:
        paths: Files and folders.
        reader: How files become the features (n, F) that the head starts from.
        dim: The length of a vector of the head.
        seed: Seeds the draw.
        console: Shows progress.

    Raises:
        InputError: There are fewer than two different images that can be read.
    """
    folders = [path for path in paths if Path(path).is_dir()]
    files = [os.fspath(path) for path in paths if not Path(path).is_dir()] + all_pictures(folders)[0]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(files))[:FIT_IMAGES])
    features = []
    with bar(f"fitting a general head on {len(chosen):,} images", len(chosen), console) as advance:
        for part in timed_chunks([files[number] for number in chosen], chunk_images(reader)):
            pixels, failures = decode_files(part, reader.size, reader.resize)
            good = np.array([row not in failures for row in range(len(part))])
            features.append(reader.embed(pixels[good] if failures else pixels))
            advance(len(part))
    if not features:
        raise InputError("a general head needs at least two different images to be fitted on")
    return fit_general_head(np.concatenate(features), dim)
