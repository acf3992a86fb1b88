"""The models shipped with the repository."""

import re

import numpy as np
import pytest
from conftest import CLASSES, draw

from dr_keras import load
from dr_keras.export.release import MAX_BYTES
from dr_keras.runs import MODELS

NAMES = sorted(path.parent.name for path in MODELS.glob("*/config.json"))
CARD_PARTS = ("Data", "Recipe", "Figures", "Limits", "Not for", "Terms")


def test_there_is_one():
    assert "tiny-imagenet-64" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_and_no_image_is_among_them(name):
    files = {path.name: path.stat().st_size for path in (MODELS / name).iterdir()}
    wanted = {
        "README.md",
        "classes.json",
        "config.json",
        "embedding.tflite",
        "general.npz",
        "projection.npz",
        "weights.npz",
    }
    assert set(files) - {"calibration.json"} == wanted
    assert max(files.values()) <= MAX_BYTES
    with np.load(MODELS / name / "weights.npz") as archive:
        assert sum(archive[part].size for part in archive.files) <= 8_000_000
        assert {archive[part].dtype for part in archive.files} == {np.dtype(np.float16)}


@pytest.mark.parametrize("name", NAMES)
def test_all_files_embed_alike_and_to_unit_length(name):
    random = np.random.default_rng(0)
    images = [draw(kind, random, 64) for kind in CLASSES for _ in range(2)]
    for head in ("trained", "general"):
        litert, keras = (load(name, runtime=runtime, head=head).embed(images) for runtime in ("litert", "keras"))
        np.testing.assert_allclose(litert, keras, atol=2e-3)
        np.testing.assert_allclose(np.linalg.norm(keras, axis=1), 1, atol=1e-5)
        assert np.linalg.norm(keras[:, None] - keras, axis=-1).max() > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_a_user_must_know(name):
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
    assert set(CARD_PARTS) <= set(parts)
    assert re.search(r"python train\.py .*--run " + name, card)
    assert re.search(r"precision@30 \| \*{0,2}0\.\d{4}", card)
