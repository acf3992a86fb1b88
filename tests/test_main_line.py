"""The scripts, end to end, on a run that train.py trained on drawn pictures."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import draw, ids_of, needs_openvino, script
from PIL import Image

import dr_keras
from dr_keras.data.images import decode
from dr_keras.errors import InputError, RunError
from dr_keras.loading import load
from dr_keras.runs import Run, open_run, start_run


@pytest.fixture
def run(workplace):
    return Run(workplace / "runs" / "small")


@pytest.fixture
def model(run):
    return load(run.path)


def test_the_run_folder_is_complete(run):
    expected = {
        *("config.json", "embedding.keras", "saved_model", "embedding.tflite", "index", "metrics.json"),
        *(
            "history.csv",
            "data-report.json",
            "samples.npy",
            "tensorboard",
            "general.npz",
            "classes.json",
            "projection.npz",
        ),
    }
    assert {path.name for path in run.path.iterdir()} == expected
    assert run.finished
    content = json.loads(run.config_file.read_text())
    assert content["format"] == 1
    assert content["config"]["backbone"] == "resnet10"
    report = json.loads(run.report_file.read_text())
    assert report["splits"] == {"train": 68, "monitor": 8, "validation": 20}
    exports = json.loads(run.metrics_file.read_text())["export"]
    assert set(exports) == {"saved_model", "saved_model_bytes", "litert"}
    assert exports["saved_model"] <= 1e-4
    assert exports["litert"] <= 1e-4


def test_history_has_a_row_a_step(run):
    with open(run.history_file, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(12))
    assert [int(row["epoch"]) for row in rows] == [0] * 6 + [1] * 6
    assert all(np.isfinite(float(value)) for row in rows for value in row.values() if value)
    softmax, triplets = rows[0], rows[-1]  # one stage each; columns a stage lacks stay empty
    assert (softmax["accuracy"] != "", softmax["triplet_loss"], softmax["negative_distance"]) == (True, "", "")
    assert "" not in {value for name, value in triplets.items() if name != "proxy_loss"}
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) == pytest.approx(run.config().learning_rate, rel=0.1)
    assert rates[-1] < rates[2]


def test_tensorboard_holds_what_was_promised(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    wanted = {"training/loss", "training/accuracy", "training/triplet_accuracy", "training/learning_rate"}
    assert wanted | {"training/image_size", "monitor/precision_at_30"} <= set(tags["scalars"])
    assert "training/stage/text_summary" in tags["tensors"]
    pictures = {"neighbors", "hardest_triplets", "class_similarity"}
    assert set(tags["images"]) == {"data/images", "data/triplets", *(f"monitor/{name}" for name in pictures)}
    assert {"monitor/distance_to_positives", "monitor/distance_to_negatives"} <= set(tags["histograms"])
    assert "configuration/text_summary" in tags["tensors"]
    assert [event.step for event in events.Scalars("monitor/precision_at_30")] == [6, 12]
    assert len(events.Images("monitor/neighbors")) == 2


def test_an_existing_run_is_refused_and_kept(workplace, run, folders):
    before = run.config_file.read_bytes()
    result = script(workplace, "train.py", "--data", folders, "--run", "small")
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "train.py: runs/small exists; choose another --run, or replace it with --overwrite"
    )
    assert run.config_file.read_bytes() == before


def test_data_that_cannot_be_used_leaves_no_run(tmp_path):
    (tmp_path / "data" / "only").mkdir(parents=True)
    for number in range(4):
        draw("disc", np.random.default_rng(number)).save(tmp_path / "data" / "only" / f"{number}.png")
    result = script(tmp_path, "train.py", "--data", "data", "--run", "one")
    assert result.returncode == 2
    assert "1 class; a negative needs a second one" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_retrieve_by_name_needs_no_framework(workplace, refuse):
    env = refuse("tensorflow", "keras", "jax", "torch", "ai_edge_litert")
    result = script(workplace, "retrieve.py", "--query", "disc_0.png", "--top", "5", "--json", env=env)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert list(answer) == ["query", "label", "results", "queries", "negatives", "max_distance", "crop"]
    assert (answer["query"], answer["label"]) == ("disc_0.png", "disc")
    assert [item["rank"] for item in answer["results"]] == [1, 2, 3, 4, 5]
    fields = ["rank", "name", "id", "path", "label", "class_name", "distance", "attributes", "copies", "part"]
    assert list(answer["results"][0]) == fields
    assert "disc_0.png" not in [item["name"] for item in answer["results"]]
    found = [item["distance"] for item in answer["results"]]
    assert found == sorted(found)


def test_an_image_of_the_gallery_finds_itself_only_when_asked(model):
    name = ids_of(model.index)[0]
    assert model.retrieve(name, 3, include_self=True).results[0].id == name
    assert model.retrieve(name, 3, include_self=True).results[0].distance == 0
    assert name not in [result.id for result in model.retrieve(name, 200).results]


def test_held_out_images_are_found_by_name_and_never_returned(model):
    held = set(ids_of(model.index)[len(model.index) :])
    assert held
    answer = model.retrieve(min(held), 200)
    assert answer.label == min(held).split("/")[0]
    assert len(answer.results) == len(model.index)
    assert not held & {result.id for result in answer.results}


def test_a_new_file_is_embedded_without_tensorflow(workplace, refuse, tmp_path):
    draw("rings", np.random.default_rng(77)).save(tmp_path / "new.png")
    env = refuse("tensorflow", "keras")
    result = script(workplace, "retrieve.py", "--query", tmp_path / "new.png", "--top", "3", "--json", env=env)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["label"] is None
    assert len(answer["results"]) == 3


@pytest.mark.parametrize("runtime", ["litert", "saved_model"])
def test_a_copied_file_lands_on_its_original(workplace, model, runtime, tmp_path):
    shutil.copy(model.index.root / ids_of(model.index)[4], tmp_path / "copy.png")
    result = script(
        workplace, "retrieve.py", "--query", tmp_path / "copy.png", "--top", 1, "--json", "--runtime", runtime
    )
    assert result.returncode == 0, result.stderr
    nearest = json.loads(result.stdout)["results"][0]
    assert nearest["id"] == ids_of(model.index)[4]
    assert nearest["distance"] < 1e-3


def test_a_path_into_the_data_is_the_indexed_image(model):
    path = str(model.index.root / ids_of(model.index)[2])
    assert ids_of(model.index)[2] not in [result.id for result in model.retrieve(path, 200).results]


def test_a_file_is_never_taken_for_another_image_of_its_name(model, monkeypatch, tmp_path):
    name = ids_of(model.index)[1]
    other = model.index.root / name.rpartition("/")[2]  # at the data root, but not indexed
    shutil.copy(model.index.root / ids_of(model.index)[70], other)
    try:
        monkeypatch.chdir(model.index.root)
        assert model.retrieve(f"./{other.name}", 1).label is None
        assert model.retrieve(f"./{name}", 1).label == name.split("/")[0]
        (tmp_path / "link").symlink_to(model.index.root)
        assert model.retrieve(str(tmp_path / "link" / name), 1).label == name.split("/")[0]
    finally:
        other.unlink()


@pytest.mark.parametrize("query", ["~nobody-there/x.png", "x" * 300 + ".png", ""])
def test_odd_names_are_not_found(model, query):
    with pytest.raises(InputError, match="no image is called"):
        model.retrieve(query)


def test_brackets_in_names_are_printed(workplace, tmp_path):
    draw("rings", np.random.default_rng(7)).save(tmp_path / "new [bold].png")
    result = script(workplace, "retrieve.py", "--query", tmp_path / "new [bold].png", "--top", 1)
    assert "[bold].png" in result.stdout


def test_the_latest_run_is_the_one_trained_last(workplace, run):
    older = workplace / "runs" / "older"
    shutil.copytree(run.path, older)
    os.utime(older / "samples.npy", (0, 0))
    (older / "metrics.json").touch()  # like evaluate.py
    assert open_run(None, workplace / "runs").path == run.path
    samples = run.samples_file.rename(run.path / "moved")
    assert open_run(None, workplace / "runs").path.parent == workplace / "runs"
    samples.rename(run.samples_file)
    shutil.rmtree(older)


def test_a_name_taken_meanwhile_is_not_overwritten(run):
    with pytest.raises(RunError, match="in the meantime"):
        start_run(run, run.config())
    assert run.finished


def test_the_table_and_the_picture(workplace):
    result = script(workplace, "retrieve.py", "--query", "bars_1.png", "--top", 10, "--save", "found.png")
    assert result.returncode == 0, result.stderr
    assert "rank" in result.stdout
    assert "distance" in result.stdout
    with Image.open(workplace / "found.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--query", "disc_0.pn"), "Similar names: disc_0.png"),
        (("--query", "disc_0.png", "--run", "none"), "there is no run 'none'"),
        (("--query", "disc_0.png", "--top", "0"), "at least 1"),
        (("--query", "disc_0.png", "--save", "x.unknown"), "has the ending .unknown; choose one of"),
        (("--query", "./rubbish.jpg"), "cannot be decoded|is not an image"),
    ],
)
def test_mistakes_are_one_line_and_a_status(workplace, arguments, message):
    (workplace / "rubbish.jpg").write_bytes(b"no image")
    result = script(workplace, "retrieve.py", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert re.search(message, result.stderr)


def test_evaluate(workplace, run):
    result = script(workplace, "evaluate.py", "--run", "small", "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    keys = {
        *("precision@1", "precision@10", "precision@30", "recall@1", "recall@10", "recall@30"),
        *("map@r", "similarity_precision"),
    }
    assert set(figures["baselines"]) == {"pixels", "untrained"}
    for found in (figures, *figures["baselines"].values()):
        assert keys <= set(found)
        assert all(0 <= found[key] <= 1 for key in keys)
        assert (found["queries"], found["gallery"]) == (20, 76)
    assert json.loads(run.metrics_file.read_text())["validation"]["precision@30"] == figures["precision@30"]
    assert len(figures["classes"]) == 4


def test_evaluate_on_other_data_equals_its_own_figures_on_the_same_images(workplace, folders):
    # The same images under another name: monitor images are in the gallery either way, so the metrics agree.
    result = script(workplace, "evaluate.py", "--run", "small", "--data", folders, "--no-baselines", "--json")
    assert result.returncode == 0, result.stderr
    other = json.loads(result.stdout)
    own = json.loads(script(workplace, "evaluate.py", "--run", "small", "--no-baselines", "--json").stdout)
    assert "baselines" not in other
    for key in ("precision@30", "recall@1", "map@r"):
        assert other[key] == pytest.approx(own[key], abs=0.02)


def test_evaluate_prints_tables(workplace):
    result = script(workplace, "evaluate.py", "--run", "small", "--no-baselines")
    assert result.returncode == 0, result.stderr
    for text in ("this run", "precision@30 of each class", "ten worst classes", "most confused pairs"):
        assert text in result.stdout


def test_a_run_that_is_not_finished_is_not_exported(run, tmp_path):
    half = Run(shutil.copytree(run.path, tmp_path / "runs" / "half"))
    half.metrics_file.unlink()
    result = script(tmp_path, "train.py", "--export-only", "--run", "half")
    assert result.returncode == 2
    assert "is not finished; finish it with python train.py --resume --run half" in result.stderr
    assert not half.finished


@pytest.mark.usefixtures("export_here")
def test_export_only_makes_the_exports_again(run, tmp_path):
    run = Run(shutil.copytree(run.path, tmp_path / "runs" / "small"))
    shutil.rmtree(run.saved_model)
    run.litert_file.unlink()
    result = script(tmp_path, "train.py", "--export-only", "--run", "small", "--onnx")
    assert result.returncode == 0, result.stderr
    assert "onnx: differs from the network by at most" in result.stdout
    assert run.onnx_file.is_file()
    assert run.litert_file.is_file()
    assert (run.saved_model / "saved_model.pb").is_file()


def test_the_saved_model_serves_where_neither_keras_nor_dr_keras_can_be_imported(run, model, refuse, tmp_path):
    rows = np.array([0, 5, 11])
    np.save(tmp_path / "pixels.npy", np.stack([decode(model.index.root / ids_of(model.index)[r], 32) for r in rows]))
    np.save(tmp_path / "expected.npy", model.index.vectors[rows])
    code = (
        "import sys, numpy as np, tensorflow as tf\n"
        "served = tf.saved_model.load(sys.argv[1])\n"
        "pixels, expected = np.load('pixels.npy'), np.load('expected.npy')\n"
        "for count in (1, 37):\n"
        "    part = np.arange(count) % 3\n"
        "    found = served.signatures['serving_default'](tf.constant(pixels[part]))\n"
        "    assert np.abs(list(found.values())[0].numpy() - expected[part]).max() < 1e-4\n"
        "maps = served.signatures['serve_maps'](tf.constant(pixels))\n"
        "assert np.abs(maps['trained'].numpy() - expected).max() < 1e-4 and len(maps['map_convnet'].shape) == 4\n"
        "files = [open(name, 'rb').read() for name in sys.argv[2:]]\n"
        "vectors = list(served.signatures['serve_bytes'](tf.constant(files)).values())[0].numpy()\n"
        "assert np.abs(vectors - expected).max() < 1e-3\n"
        "assert 'keras' not in sys.modules and 'dr_keras' not in sys.modules\n"
    )
    files = [str(model.index.root / ids_of(model.index)[row]) for row in rows]
    result = subprocess.run(
        [sys.executable, "-c", code, str(run.saved_model), *files],
        cwd=tmp_path,
        env=os.environ | refuse("keras", "dr_keras"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_library(model):
    assert dr_keras.load is load
    paths = [model.index.root / name for name in ids_of(model.index)[:3]]
    by_path = model.embed(paths)
    assert by_path.dtype == np.float32
    np.testing.assert_allclose(by_path, model.index.vectors[:3], atol=1e-4)
    pixels = np.stack([decode(path, 32) for path in paths])
    assert np.array_equal(model.embed(pixels), by_path)
    pictures = [Image.open(path) for path in paths]
    assert np.array_equal(model.embed(pictures), by_path)
    found = model.search(paths, k=4)
    assert [len(results) for results in found] == [4, 4, 4]
    assert found[0][0].id == ids_of(model.index)[0]
    assert model.embed([]).shape == (0, 32)


@pytest.mark.parametrize("count", [1, 16, 37])
def test_runtimes_give_the_same_vectors(model, monkeypatch, count):
    needs_openvino()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    expected = load(model.run.path, runtime="litert").embed(pixels)
    for runtime in ("keras", "openvino"):
        other = load(model.run.path, runtime=runtime)
        for part in (pixels, pixels[:3], pixels[:2]):  # OpenVINO shares few images out among its streams as they are
            assert np.abs(other.embed(part) - expected[: len(part)]).max() < 1e-4, runtime
    for seconds, used in ((1e-9, ["litert", "openvino"] if count > 1 else ["litert"]), (1e9, ["litert"])):
        monkeypatch.setattr("dr_keras.run_embedder.OPENVINO_MIN_SECONDS", seconds)
        both = load(model.run.path)
        for part in (pixels, pixels[:1], pixels[:0]):
            assert np.abs(both.embed(part) - expected[: len(part)]).max(initial=0) < 1e-4
        names = [name for name, _ in both._embedder._embedders]
        assert names == used


def test_openvino_that_is_not_there_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"pip install 'dr_keras\[fast\]'"):
        load(model.run.path, runtime="openvino").embed(np.zeros((1, 32, 32, 3), np.uint8))


def test_the_library_says_what_it_cannot_embed(model, tmp_path):
    with pytest.raises(InputError, match=r"uint8 \(N, H, W, 3\)"):
        model.embed(np.zeros((1, 32, 32, 3)))
    with pytest.raises(InputError, match="put it in a list"):
        model.embed(str(tmp_path / "one.jpg"))
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"bad\.jpg is empty"):
        model.embed([tmp_path / "bad.jpg"])
    with pytest.raises(InputError, match="runtime"):
        load(model.run.path, runtime="onnx")


def test_runs_are_found_by_name_path_and_time(workplace, run):
    assert open_run("small", workplace / "runs").path == run.path
    assert open_run(str(run.path)).path == run.path
    assert open_run(None, workplace / "runs").path == run.path
    with pytest.raises(RunError, match="no finished run"):
        open_run(None, workplace / "nowhere")


def test_a_run_of_another_format_says_so(run, tmp_path):
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    copy.config_file.write_text(copy.config_file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(RunError, match=r"format 2.*reads format 1"):
        load(copy.path)
