"""The real data set, where the shared copy of it is at hand."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dr_keras.data import MONITOR, TRAIN, VALIDATION
from dr_keras.data.catalog import load_catalog
from dr_keras.data.pixels import decode_files

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


def test_every_image_decodes_grey_ones_too(catalog):
    rows = np.random.default_rng(0).permutation(len(catalog))[:3000]
    pixels, failures = decode_files([catalog.root / catalog.ids[row] for row in rows], 64)
    assert not failures
    grey = (pixels == pixels[..., :1]).all(axis=(1, 2, 3)).mean()
    assert 0.005 < grey < 0.05
