"""The real dataset, if the shared copy is available."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dr_keras import load
from dr_keras.data.catalog import load_catalog
from dr_keras.data.decoding import decode_files
from dr_keras.data.splits import MONITOR, TRAIN, VALIDATION
from dr_keras.evaluation.metrics import evaluate

UNPACK = Path(__file__).parent.parent.parent / "shared" / "bin" / "tiny-imagenet"

pytestmark = pytest.mark.skipif(not os.access(UNPACK, os.X_OK), reason="needs the shared copy of Tiny ImageNet")


@pytest.fixture(scope="module")
def catalog():
    folder = subprocess.run([UNPACK], check=True, capture_output=True, text=True).stdout.strip()
    return load_catalog(folder, monitor=0.01, validation=0.1, seed=0)


def test_counts(catalog):
    assert len(catalog.classes) == 200
    assert (len(catalog.rows(TRAIN)), len(catalog.rows(MONITOR))) == (99_000, 1_000)
    assert np.bincount(catalog.labels[catalog.rows(MONITOR)]).tolist() == [5] * 200
    held = catalog.labels[catalog.rows(VALIDATION)]
    assert len(set(np.bincount(held).tolist())) == 1
    assert catalog.class_names[catalog.classes.index("n01443537")] == "goldfish"


def test_every_image_decodes_gray_ones_too(catalog):
    rows = np.random.default_rng(0).permutation(len(catalog))[:3000]
    pixels, failures = decode_files([catalog.root / catalog.ids[row] for row in rows], 64)
    assert not failures
    gray = (pixels == pixels[..., :1]).all(axis=(1, 2, 3)).mean()
    assert 0.005 < gray < 0.05


@pytest.mark.slow
def test_the_released_model_ranks_held_out_images_far_better_than_raw_pixels(catalog):
    chosen = {}
    for split, each in ((TRAIN, 20), (VALIDATION, 5)):
        rows = catalog.rows(split)
        chosen[split] = np.concatenate([rows[catalog.labels[rows] == label][:each] for label in range(200)])
    rows = np.concatenate([chosen[TRAIN], chosen[VALIDATION]])
    pixels, failures = decode_files([catalog.root / catalog.ids[row] for row in rows], 64)
    assert not failures
    labels, gallery = catalog.labels[rows], len(chosen[TRAIN])

    def recall(vectors):
        return evaluate(
            vectors[gallery:], labels[gallery:], vectors[:gallery], labels[:gallery], class_count=200, seed=0
        ).figures["recall@1"]

    assert recall(load("tiny-imagenet-64").embed(pixels)) > 8 * recall(pixels.reshape(len(pixels), -1))
