"""Released models, a user's own folder as the gallery, and training that starts from a model."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ids_of, script, write_folders

import dr_keras
from dr_keras import load
from dr_keras.config import Config
from dr_keras.errors import InputError, RunError
from dr_keras.export.release import public_config, release
from dr_keras.index.index import Index
from dr_keras.model.released import read_weights
from dr_keras.runs import Run, open_run


@pytest.fixture(scope="module")
def released(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released model made from the run `small`."""
    place = tmp_path_factory.mktemp("models") / "small-32"
    place.mkdir()
    for name in ("calibration.json", "calibration-general.json"):  # of an earlier model
        (place / name).write_text("{}")
    differences = release(Run(workplace / "runs" / "small"), Run(place))
    assert differences["litert"] < 1e-4
    assert 0 < differences["rounding"] < 1e-2
    return place


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def samples(workplace: Path) -> np.ndarray:
    return np.load(workplace / "runs" / "small" / "samples.npy")


def test_a_released_model_is_small_and_embeds_the_same_by_all_its_files(released, samples):
    assert sorted(path.name for path in released.iterdir()) == [
        "classes.json",
        "config.json",
        "embedding.tflite",
        "general.npz",
        "projection.npz",
        "weights.npz",
    ]
    for head in ("trained", "general"):
        vectors = [load(released, runtime=runtime, head=head).embed(samples) for runtime in ("litert", "keras")]
        np.testing.assert_allclose(*vectors, atol=1e-4)
    with np.load(released / "weights.npz") as archive:
        for value in (archive[name] for name in archive.files):
            assert value.dtype == np.float16 or value.ndim == 1  # moving means and variances


def test_a_released_model_has_no_gallery_and_says_what_to_do(released):
    with pytest.raises(RunError, match="--gallery FOLDER"):
        load(released).search(np.zeros((1, 32, 32, 3), np.uint8), 3)


def test_damaged_or_foreign_weights_are_a_clear_error(released, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(released, copy)
    (copy / "embedding.tflite").unlink()
    whole = (copy / "weights.npz").read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2 : len(whole) // 2 + 64] = bytes(range(64))
    for damaged in (whole[: len(whole) // 2], bytes(changed)):
        (copy / "weights.npz").write_bytes(damaged)
        with pytest.raises(RunError, match="cannot be read as weights"):
            read_weights(copy / "weights.npz", Run(copy).config())
    (copy / "weights.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="cannot be read as weights"):
        load(copy).embed(np.zeros((1, 32, 32, 3), np.uint8))
    (copy / "weights.npz").write_bytes(whole)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["width"] = 12
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="another network"):
        load(copy).embed(np.zeros((1, 32, 32, 3), np.uint8))


def test_shipped_models_are_found_by_name_after_the_runs(released, tmp_path, monkeypatch):
    monkeypatch.setattr(dr_keras.runs, "MODELS", released.parent)
    monkeypatch.chdir(tmp_path)
    assert open_run("small-32").path == released
    mine = tmp_path / "runs" / "small-32"
    shutil.copytree(released, mine)
    assert open_run("small-32").path == Path("runs") / "small-32"
    with pytest.raises(RunError, match="there are small-32"):
        open_run("other")


def test_a_folder_becomes_the_gallery_and_only_changes_are_embedded_again(released, tmp_path, cache, monkeypatch):
    folder = write_folders(tmp_path / "mine", each=3)
    (folder / "loose.png").write_bytes((folder / "disc" / "disc_1.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"no picture")
    model = load(released)
    embedded: list[int] = []
    plain = model._embedder.vectors

    def count(pixels, head):
        embedded.append(len(pixels))
        return plain(pixels, head)

    monkeypatch.setattr(model._embedder, "vectors", count)

    index = model.use_gallery(folder).index
    assert embedded == [13]
    assert len(index) == 13
    own = model.retrieve(str(folder / "disc" / "disc_1.png"), 2).results
    assert own[0].distance == pytest.approx(0, abs=1e-6)
    assert {own[0].id, own[0].label} == {"loose.png", "-"}  # the query itself is excluded
    other = load(released)
    np.testing.assert_allclose(other.use_gallery(folder).index.vectors, index.vectors)

    embedded.clear()
    model.use_gallery(folder)
    assert embedded == []
    (folder / "rings" / "rings_0.png").unlink()
    shutil.copy(folder / "bars" / "bars_0.png", folder / "plain" / "plain_0.png")
    os.utime(folder / "plain" / "plain_0.png", ns=(time.time_ns(), time.time_ns()))
    index = model.use_gallery(folder).index
    assert embedded == [1]
    assert "rings/rings_0.png" not in ids_of(index)
    same = index.get("plain/plain_0.png")[1]
    np.testing.assert_allclose(same, index.get("bars/bars_0.png")[1], atol=1e-6)

    kept = next((cache / "galleries").iterdir())
    next(kept.glob("vectors-*")).write_bytes(b"damaged")
    embedded.clear()
    assert len(model.use_gallery(folder).index) == 12
    assert embedded == [12]
    assert len(Index.open(kept)) == 12


@pytest.mark.usefixtures("cache")
def test_ctrl_c_keeps_what_is_embedded(released, tmp_path, monkeypatch):
    folder = write_folders(tmp_path / "mine", each=3)
    monkeypatch.setattr("dr_keras.index.sync.CHUNK_IMAGES", 5)
    model = load(released)
    embedded: list[int] = []
    plain = model._embedder.vectors

    def interrupted(pixels, head):
        if len(embedded) == 1:
            raise KeyboardInterrupt
        embedded.append(len(pixels))
        return plain(pixels, head)

    monkeypatch.setattr(model._embedder, "vectors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.use_gallery(folder)
    assert embedded == [5]

    def count(pixels, head):
        embedded.append(len(pixels))
        return plain(pixels, head)

    monkeypatch.setattr(model._embedder, "vectors", count)
    assert len(model.use_gallery(folder).index) == 12
    assert embedded == [5, 5, 2]


@pytest.mark.usefixtures("cache")
def test_a_folder_without_images_or_none_at_all_is_an_error(released, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load(released).use_gallery(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        load(released).use_gallery(tmp_path / "empty")


@pytest.mark.usefixtures("cache")
def test_retrieve_searches_a_folder_with_a_released_model(released, tmp_path, folders):
    query = folders / "rings" / "rings_3.png"
    result = script(
        tmp_path, "retrieve.py", "--run", released, "--gallery", folders, "--query", query, "--top", 5, "--json"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["label"] == "rings"
    assert len(found["results"]) == 5
    assert all(one["id"] != "rings/rings_3.png" for one in found["results"])


def test_evaluate_a_released_model_on_a_data_set(released, tmp_path, folders):
    result = script(tmp_path, "evaluate.py", "--run", released, "--data", folders, "--no-baselines", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["queries"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("export_here", "eagerly")
def test_training_starts_from_a_released_model(released, samples, tmp_path, folders):
    flags = ("--data", folders, "--epochs", 1, "--steps-per-epoch", 1, "--batch-size", 4, "--learning-rate", 1e-9)
    result = script(tmp_path, "train.py", *flags, "--run", "tuned", "--initial-weights", released)
    assert result.returncode == 0, result.stderr
    run = Run(tmp_path / "runs" / "tuned")
    assert run.config().width == 8  # from the model's network, without a flag
    before, after = load(released, runtime="keras").embed(samples), load(run.path, runtime="keras").embed(samples)
    assert np.abs(before - after).max() < 0.1  # the normalization statistics moved slightly
    for start, runs_embedding in ((released, before), ("tuned", after)):  # weights in half precision, and .keras
        wider = ("--data", folders, "--epochs", 0, "--initial-weights", start, "--width", 12)
        result = script(tmp_path, "train.py", *wider, "--run", "wide", "--overwrite")
        assert result.returncode == 0, result.stderr
        wide = Run(tmp_path / "runs" / "wide")
        assert wide.config().width == 12
        assert (load(wide.path, runtime="keras").embed(samples) * runs_embedding).sum(axis=1).min() > 0.98
    refused = script(tmp_path, "train.py", *flags, "--run", "r", "--initial-weights", released, "--width", 4)
    assert refused.returncode == 2
    assert "do not fit --width" in refused.stderr


def test_a_released_model_says_nothing_of_the_machine_it_was_trained_on():
    judged = Config(run="mine", data="/home/me/data", triplets="/home/me/judgments.csv", initial_weights="/home/me/run")
    related = Config(data="/home/me/data", sampling="relevance", relevance="/home/me/pairs.csv")
    for config in (judged, related):
        assert "/home" not in json.dumps(public_config(config).to_dict())
    assert public_config(judged).triplets == "judgments.csv"
    assert public_config(related).relevance == "pairs.csv"
    assert public_config(Config()) == Config(data=None, run=None)


def test_a_run_that_is_not_finished_is_not_released(tmp_path):
    with pytest.raises(RunError, match="is not a finished run"):
        release(Run(tmp_path / "none"), Run(tmp_path / "model"))


@pytest.mark.nightly
def test_a_release_that_fails_leaves_the_earlier_one(released, workplace, tmp_path, monkeypatch):
    place = tmp_path / "model"
    shutil.copytree(released, place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    monkeypatch.setattr("dr_keras.export.release.ROUNDING", 0.0)
    with pytest.raises(RunError, match="half precision"):
        release(Run(workplace / "runs" / "small"), Run(place))
    monkeypatch.undo()
    monkeypatch.setattr("dr_keras.export.release.MAX_BYTES", 1000)
    with pytest.raises(RunError, match="at most 1,000"):
        release(Run(workplace / "runs" / "small"), Run(place))
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
