"""The general head: its fit against NumPy's own decompositions, and which head a search uses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_openvino, script, write_folders

from dr_keras import load
from dr_keras.config import Config
from dr_keras.errors import InputError, RunError
from dr_keras.heads import GeneralHead, fit_general_head
from dr_keras.index.index import HEAD_FILE, Index
from dr_keras.index.sync import folder_classes
from dr_keras.model.network import initial_network
from dr_keras.runs import Run
from dr_keras.training.general_head import fit_again


def correlated(count, length, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, length)) * np.linspace(3, 0.1, length) + 1).astype(np.float32)


@pytest.mark.parametrize("shape", [(200, 12), (12, 200)])
@pytest.mark.parametrize("whitening", [0, 0.2, 0.5])
def test_the_head_is_a_scaled_pca(shape, whitening):
    features = correlated(*shape)
    head = fit_general_head(features, 5, whitening)
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _left, values, right = np.linalg.svd(centered, full_matrices=False)
    scales = (values[:5] / values[0]) ** (-2 * whitening)
    expected = (centered @ right[:5].T) * scales
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = head(features)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-4)  # whatever the signs
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(300, 120), (120, 300)])
def test_many_features_are_reduced_first(shape, monkeypatch):
    features = correlated(*shape)
    exact = fit_general_head(features, 8)(features)
    monkeypatch.setattr("dr_keras.heads.LARGE", 100)
    reduced = fit_general_head(features, 8)(features)
    np.testing.assert_allclose(reduced @ reduced.T, exact @ exact.T, atol=1e-4)
    assert fit_general_head(features, 110).dim >= 100  # more than the reduced width: not reduced
    few = features[:, :1] * np.ones((1, shape[1]), np.float32)
    assert fit_general_head(few, 8).dim == 1


def test_complete_whitening_leaves_no_correlation():
    features = correlated(4000, 6)
    head = fit_general_head(features, 6, 0.5)
    covariance = np.cov(((features - head.mean) @ head.matrix).T)
    np.testing.assert_allclose(covariance / covariance[0, 0], np.eye(6), atol=1e-3)


def test_dimensions_are_limited_by_images_and_features():
    assert fit_general_head(correlated(10, 50), 256).dim == 9
    assert fit_general_head(correlated(100, 7), 256).dim == 7
    flat = correlated(50, 8)
    flat[:, 3:] = flat[:, :1]  # rank 3
    assert fit_general_head(flat, 8).dim == 3
    for equal in (np.ones((1, 4), np.float32), np.ones((5, 4), np.float32)):
        with pytest.raises(InputError, match="two different images"):
            fit_general_head(equal)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_fewer_than_two_different_images_are_a_clear_error(count):
    with pytest.raises(InputError, match="at least two different images"):
        fit_general_head(np.ones((count, 8), np.float32), 4)


@pytest.mark.parametrize("protocol", ["standard", "class-disjoint"])
def test_the_fitted_head_of_a_network_as_it_is_gives_it_no_gallery(protocol, folders, tmp_path):
    run = Run(tmp_path / "plain")
    run.path.mkdir()
    config = Config(epochs=0, image_size=16, backbone="resnet10", width=4, embedding_dim=8, protocol=protocol)
    run.write_config(config)
    initial_network(config).save(run.network_file)
    with pytest.raises(RunError, match=r"no general head.* fit one on its training images: .* --export-only"):
        run.general_head()
    fit_again(run, str(folders))
    assert run.general_head().matrix.shape[0] > 8
    assert not run.has_gallery()
    known, all_classes = run.classes(), {"bars", "disc", "plain", "rings"}
    assert known == all_classes if protocol == "standard" else frozenset() < known < all_classes


def test_a_head_survives_its_file(tmp_path):
    head = fit_general_head(correlated(60, 9), 4)
    for one in (head, head.rounded()):
        one.save(tmp_path / "head.npz")
        again = GeneralHead.load(tmp_path / "head.npz")
        assert np.array_equal(again.matrix, one.matrix)
        assert np.array_equal(again.mean, one.mean)
        assert again.checksum == one.checksum
    whole = (tmp_path / "head.npz").read_bytes()
    (tmp_path / "head.npz").write_bytes(whole[: len(whole) // 2])
    for file in ("head.npz", "absent.npz"):
        with pytest.raises(RunError, match="cannot be read as a general head"):
            GeneralHead.load(tmp_path / file)


def test_classes_of_a_folder(tmp_path):
    write_folders(tmp_path / "flat", each=1, classes=("disc",))
    assert folder_classes(tmp_path / "flat") == {"disc"}
    for split in ("train", "val"):
        write_folders(tmp_path / "split" / split, each=1, classes=("disc", "rings"))
    assert folder_classes(tmp_path / "split") == {"disc", "rings"}
    assert folder_classes(tmp_path / "flat" / "disc") == frozenset()


@pytest.fixture
def run(workplace: Path, tmp_path: Path) -> Run:
    shutil.copytree(workplace / "runs" / "small", tmp_path / "runs" / "small")
    return Run(tmp_path / "runs" / "small")


@pytest.fixture
def unknown(tmp_path: Path, folders: Path) -> Path:
    """A folder whose classes the run does not know."""
    for name in ("disc", "rings"):
        shutil.copytree(folders / name, tmp_path / "unknown" / f"my {name}")
    return tmp_path / "unknown"


def test_all_runtimes_have_both_heads_and_agree(run):
    samples = np.load(run.samples_file)
    for head in ("trained", "general"):
        keras = load(run.path, runtime="keras", head=head).embed(samples)
        assert keras.shape[1] == run.embedding_dim(head)
        for runtime in ("litert", "saved_model"):
            found = load(run.path, runtime=runtime, head=head).embed(samples)
            np.testing.assert_allclose(found, keras, atol=1e-4)
    assert run.embedding_dim() == 32 != run.embedding_dim("general")


def test_openvino_has_both_heads(run):
    needs_openvino()
    samples = np.load(run.samples_file)
    for head in ("trained", "general"):
        litert, openvino = (load(run.path, runtime=name, head=head).embed(samples) for name in ("litert", "openvino"))
        np.testing.assert_allclose(openvino, litert, atol=1e-4)


def test_a_folder_of_unknown_classes_is_searched_by_the_general_head(run, unknown, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    model = load(run.path)
    assert model.head == "trained"
    assert (model.head_for(folders), model.head_for(folders, unknown), model.head_for()) == (
        "trained",
        "general",
        "general",
    )
    model.use_gallery(unknown)
    assert (model.head, model.index.head, model.index.dim) == ("general", "general", run.embedding_dim("general"))
    name = "my disc/disc_0.png"
    answer = model.retrieve(str(unknown / name), include_self=True)
    assert answer.results[0].id == name
    assert answer.results[0].distance < 1e-3
    assert model.use_gallery(folders).head == "trained"
    assert model.use_gallery(folders / "disc").head == "general"  # no classes at all
    asked = load(run.path, head="trained").use_gallery(unknown)
    assert (asked.head, asked.index.dim) == ("trained", 32)
    with pytest.raises(InputError, match="head is 'best'"):
        load(run.path, head="best")


def test_an_index_keeps_its_head(run, unknown, tmp_path, monkeypatch):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    assert script(tmp_path, "index.py", "add", unknown, "--run", "small", "--index", "ix").returncode == 0
    stats = json.loads(script(tmp_path, "index.py", "stats", "--index", "ix", "--json").stdout)
    assert (stats["head"], stats["dim"]) == ("general", run.embedding_dim("general"))
    assert load(index=tmp_path / "ix").head == "general"
    refused = script(tmp_path, "retrieve.py", "--index", "ix", "--head", "trained", "--query", "disc_0.png")
    assert refused.returncode == 2
    assert "are of the general head" in refused.stderr
    write_folders(unknown, each=2, seed=9, classes=("plain",))
    added = script(tmp_path, "index.py", "sync", unknown, "--index", "ix")
    assert added.returncode == 0
    assert "2 added" in added.stdout
    with Index.open(tmp_path / "ix", write=True) as index:
        copy = tmp_path / "copy"
        index.save(copy)
    assert load(index=copy).retrieve("disc_0.png").results
    result = script(tmp_path, "retrieve.py", "--run", "small", "--head", "general", "--query", "disc_0.png")
    assert result.returncode == 2
    assert "of the trained head" in result.stderr


def test_evaluation_by_head(run, unknown):
    from dr_keras.evaluation.evaluate import evaluate_run

    model = load(run.path)
    found = {head: evaluate_run(model, head=head, baselines=False) for head in ("auto", "trained", "general")}
    assert {name: found["auto"][name] for name in ("head", "map@r")} == {
        name: found["trained"][name] for name in ("head", "map@r")
    }
    assert found["general"]["head"] == "general"
    assert found["general"]["map@r"] != found["trained"]["map@r"]
    kept = json.loads(run.metrics_file.read_text())["validation"]
    assert kept["head"] == "trained"
    assert evaluate_run(model, data=str(unknown), baselines=False)["head"] == "general"
    with pytest.raises(InputError, match="head is 'all'"):
        evaluate_run(model, head="all")


def test_images_that_do_not_fit_into_memory_are_streamed(run, folders, tmp_path, monkeypatch, capsys):
    from dr_keras.evaluation import evaluate as module

    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    model = load(run.path)
    options = module.SearchOptions(flip_average=True)

    def figures(**settings):
        found = module.evaluate_run(model, options=options, **settings)
        return found["precision@30"], found["search_options"]["flip average"], found["baselines"]

    before = [figures(), figures(data=str(folders))]
    monkeypatch.setattr(module, "MEMORY_SHARE", 0)
    monkeypatch.setattr("dr_keras.evaluation.baselines.BLOCK_BYTES", 20_000)  # several blocks
    for plain, settings in zip(before, ({}, {"data": str(folders)}), strict=True):
        streamed = figures(**settings)
        assert streamed[:2] == plain[:2]
        assert streamed[2] == {"untrained": plain[2]["untrained"]}
    assert "no ranking by raw pixels" in capsys.readouterr().err


def test_each_head_has_its_own_calibration(run, unknown, tmp_path, monkeypatch):
    from dr_keras.evaluation.evaluate import evaluate_run

    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    model = load(run.path)
    limit = evaluate_run(model, head="general", baselines=False, calibrate_to=0.2)["calibration"]["max_distance"]
    assert not run.calibration_file().exists()
    assert run.calibration_file("general").exists()
    with pytest.raises(RunError, match="is not calibrated; run"):
        model.calibrated_distance()
    assert model.use_gallery(unknown).calibrated_distance() == limit
    run.calibration_file("general").unlink()
    with pytest.raises(RunError, match=r"not calibrated for the general head; run .* --head general"):
        model.calibrated_distance()


@pytest.mark.nightly
def test_a_run_of_an_older_version_is_searched_by_the_trained_head(run, unknown, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    before = load(run.path, head="general").embed(np.load(run.samples_file))
    run.general_file.unlink()
    run.classes_file.unlink()
    assert load(run.path).use_gallery(unknown).head == "trained"
    with pytest.raises(RunError, match="has no general head"):
        load(run.path, head="general").use_gallery(unknown)
    result = script(tmp_path, "train.py", "--export-only", "--run", "small", "--data", folders)
    assert result.returncode == 0, result.stderr
    assert run.classes() == {"bars", "disc", "plain", "rings"}
    np.testing.assert_allclose(load(run.path, head="general").embed(np.load(run.samples_file)), before, atol=1e-3)


@pytest.mark.nightly
def test_a_head_is_fitted_on_the_images_of_an_index(workplace, unknown, tmp_path, monkeypatch):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    network = ("--backbone", "resnet10", "--width", 8, "--image-size", 32, "--no-multiscale", "--embedding-dim", 0)
    made = script(tmp_path, "train.py", *network, "--epochs", 0, "--run", "plain")
    assert made.returncode == 0, made.stderr
    add = ("index.py", "add", unknown, "--index", "ix", "--fit-head", "--general-dim", 8, "--run")
    refused = script(tmp_path, *add, workplace / "runs" / "small")
    assert refused.returncode == 2
    assert "has its own general head" in refused.stderr
    added = script(tmp_path, *add, "plain")
    assert added.returncode == 0, added.stderr
    model = load(index=tmp_path / "ix")
    assert (model.head, model.index.dim) == ("fitted", 8)
    files = sorted(str(path) for path in unknown.glob("*/*.png"))
    plain = load(tmp_path / "runs" / "plain").embed(files)
    expected = GeneralHead.of_index(model.index.read_file(HEAD_FILE))(plain)
    np.testing.assert_allclose(model.embed(files), expected, atol=1e-5)
    rows = [model.index.records.row(str(Path(file).relative_to(unknown))) for file in files]
    np.testing.assert_allclose(model.index.vectors[rows], expected, atol=1e-4)
    again = script(tmp_path, "index.py", "sync", unknown, "--index", "ix")
    assert again.returncode == 0
    assert "48 unchanged" in again.stdout
    with Index.open(tmp_path / "ix") as index:
        index.save(tmp_path / "copy")
    assert load(tmp_path / "runs" / "plain", index=tmp_path / "copy").head == "fitted"
