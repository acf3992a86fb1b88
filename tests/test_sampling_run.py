"""Training with triplets that are drawn by relevance."""

from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from dr_keras.config import Config
from dr_keras.data.catalog import load_catalog
from dr_keras.data.pixel_store import load_pixels
from dr_keras.data.splits import MONITOR, TRAIN
from dr_keras.errors import InputError
from dr_keras.model.ranking import TripletRanking
from dr_keras.training import run as run_module
from dr_keras.training.relevance import pair_relevance, training_relevance
from dr_keras.training.train import train

pytestmark = pytest.mark.usefixtures("eagerly")

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def no_export(monkeypatch):
    monkeypatch.setattr(run_module, "_export", lambda *_: {})


def config(folders, **settings):
    network = {"image_size": 16, "backbone": "resnet10", "width": 4, "embedding_dim": 8, "precision": "float32"}
    steps = {"epochs": 1, "steps_per_epoch": 3, "batch_size": 8, "shift": 1, "pretrain_epochs": 0}
    return Config(**({"data": str(folders), "run": "r"} | network | steps | {"sampling": "relevance"} | settings))


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.csv"
    lines = [f"{name}/{name}_{n}.png,{name}_{n + 1}.png,0.{n + 1}" for name in ("bars", "disc") for n in range(0, 9, 2)]
    file.write_text("\n".join(["query,positive,relevance", *lines]))
    return file


@pytest.mark.nightly
def test_training_by_color_by_pairs_and_by_a_network(tmp_path, folders, pairs):
    by_color = train(config(folders, relevance="colour", out_of_class=0.2), runs=tmp_path)
    assert by_color.run.config().relevance == "color"
    train(config(folders, run="pairs", relevance=str(pairs), mining="none"), runs=tmp_path)
    again = train(config(folders, run="network", relevance="r", initial_weights="pairs"), runs=tmp_path)
    assert again.run.finished
    assert len(again.run.history_file.read_text().splitlines()) == 4


def test_what_relevance_is_measured_by(tmp_path, folders, pairs):
    catalog = load_catalog(folders, monitor=0.1, validation=0.2, seed=0)
    catalog, pixels, _ = load_pixels(catalog, 64)
    rows = catalog.rows(TRAIN)
    labels = catalog.labels[rows]
    same = np.flatnonzero(labels == labels[0])
    color, released = (
        training_relevance(config(folders, relevance=name, image_size=64), catalog, pixels, rows, tmp_path, QUIET)
        for name in ("color", "network")
    )
    for found in (color, released):
        values = found.row(0, same)
        assert values[0] == 0
        assert 0 < values[1:].min() < values.max() < 1
        assert found.totals[0] == pytest.approx(values.sum(), rel=1e-3)
    assert not np.allclose(color.row(0, same), released.row(0, same), atol=0.05)

    found = pair_relevance(pairs, catalog, rows)
    row = {id: number for number, id in enumerate(np.array(catalog.ids)[rows])}
    for id, number in row.items():
        name, _, place = Path(id).stem.partition("_")
        partner = f"{name}/{name}_{int(place) ^ 1}.png"
        listed = name in ("bars", "disc") and int(place) < 10 and partner in row
        assert found.totals[number] == pytest.approx((int(place) // 2 * 2 + 1) / 10 if listed else 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bars_0.png,bars_99.png,1", "line 2: no image of the data set is named 'bars_99.png'"),
        ("bars_0.png,disc_0.png,1", "line 2: relevance is between two images of one class"),
        ("bars_0.png,bars_0.png,1", "line 2: relevance is between two images of one class"),
        ("bars_0.png,bars_1.png,much", "line 2: relevance is 'much'; expected a number"),
        ("bars_0.png,bars_1.png,0", "line 2: relevance is 0; it must be a positive number"),
        ("bars_0.png,bars_1.png,nan", "line 2: relevance is nan; it must be a positive number"),
        ("", "has no pair of two training images"),
    ],
)
def test_a_bad_file_of_pairs_says_where(tmp_path, folders, line, message):
    catalog = load_catalog(folders, monitor=0, validation=0, seed=0)
    file = tmp_path / "pairs.csv"
    file.write_text(f"query,positive,relevance\n{line}\n")
    with pytest.raises(InputError, match=message):
        pair_relevance(file, catalog, catalog.rows(TRAIN))


def test_pairs_with_held_out_images_do_not_count(folders, pairs):
    catalog = load_catalog(folders, monitor=0.3, validation=0, seed=0)
    rows = catalog.rows(TRAIN)
    total = pair_relevance(pairs, catalog, rows).totals.sum()
    assert total < pair_relevance(pairs, catalog, catalog.rows(TRAIN, MONITOR)).totals.sum()


def test_settings_that_contradict_each_other(folders, tmp_path):
    with pytest.raises(InputError, match="--out-of-class below 1 needs --sampling relevance"):
        Config(out_of_class=0.5)
    with pytest.raises(InputError, match="--images-per-class is for --sampling uniform"):
        config(folders, images_per_class=2)
    with pytest.raises(InputError, match=r"--out-of-class is 1\.5"):
        config(folders, out_of_class=1.5)
    with pytest.raises(InputError, match="--relevance-gap is 0"):
        config(folders, relevance_gap=0.0)
    with pytest.raises(InputError, match="needs images of 64 px, but --image-size is 16"):
        train(config(folders, relevance="network"), runs=tmp_path)
    with pytest.raises(InputError, match="no-such-run"):
        train(config(folders, relevance="no-such-run"), runs=tmp_path)


@pytest.mark.parametrize("mining", ["semi-hard", "hard", "distance-weighted"])
def test_mining_keeps_triplets_within_a_class(mining):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((8, 3, 16)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).reshape(8, 48)
    classes = np.stack([np.arange(8) % 4, np.arange(8) % 4], axis=1).astype(np.int32)
    classes[4:, 1] = (classes[4:, 1] + 1) % 4
    mined, drawn = (TripletRanking(mining=name)(vectors, classes) for name in (mining, "none"))
    for name in ("positive_distance", "negative_distance", "loss"):
        one, other = (keras.ops.convert_to_numpy(found[name]) for found in (mined, drawn))
        np.testing.assert_allclose(one[:4], other[:4], atol=1e-5)
        assert name == "positive_distance" or not np.allclose(one[4:], other[4:], atol=1e-3)
