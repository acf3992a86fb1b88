"""Training on some classes and searching others: the splits, the loaders, and the figures against plain loops."""

import json
import shutil

import numpy as np
import pytest
from conftest import draw_encoded, script, write_folders

from dr_keras.data.catalog import load_catalog
from dr_keras.data.splits import GALLERY, MONITOR, TRAIN, VALIDATION
from dr_keras.errors import InputError
from dr_keras.evaluation.metric_learning import metric_learning_figures, normalized_mutual_information


def listed(data, **settings):
    return load_catalog(data, monitor=0, validation=0.1, seed=0, protocol="class-disjoint", **settings)


def classes_of(catalog, *splits):
    return {catalog.classes[label] for label in catalog.labels[catalog.rows(*splits)]}


def test_half_of_the_classes_are_held_out(folders):
    catalog = listed(folders)
    assert classes_of(catalog, TRAIN, MONITOR) == {"bars", "disc"}
    assert classes_of(catalog, VALIDATION) == {"plain", "rings"}
    assert len(catalog) == 4 * 24


def test_splits_with_common_classes_are_pooled_and_others_kept(tmp_path):
    for split in ("train", "val"):
        write_folders(tmp_path / "common" / split, each=2, seed=len(split))
    catalog = listed(tmp_path / "common")
    assert classes_of(catalog, VALIDATION) == {"plain", "rings"}
    assert len(catalog.rows(VALIDATION)) == 8
    write_folders(tmp_path / "own" / "train", each=3, classes=("plain", "rings", "disc"))
    write_folders(tmp_path / "own" / "test", each=3, classes=("bars",))
    catalog = listed(tmp_path / "own")
    assert classes_of(catalog, TRAIN) == {"plain", "rings", "disc"}
    assert classes_of(catalog, VALIDATION) == {"bars"}
    standard = load_catalog(tmp_path / "own", monitor=0, validation=0.1, seed=0)
    assert "bars" not in standard.classes
    assert len(standard.missing) == 3


def test_too_few_classes(tmp_path):
    write_folders(tmp_path, each=3, classes=("plain", "rings", "disc"))
    with pytest.raises(InputError, match="needs at least 4"):
        listed(tmp_path)


@pytest.fixture
def in_shop(tmp_path):
    """Four items of four images each in the layout of In-Shop; two are trained on."""
    lines = []
    for item, (name, splits) in enumerate(
        zip(("bars", "disc", "plain", "rings"), ["train"] * 2 + ["held"] * 2, strict=True)
    ):
        for number in range(4):
            file = f"img/WOMEN/Tees/id_{item:08d}/0{number}_1_front.jpg"
            (tmp_path / "Img" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "Img" / file).write_bytes(draw_encoded(10 * item + number, name, "JPEG"))
            split = splits if splits == "train" else "query" if number < 2 else "gallery"
            lines.append(f"{file}   id_{item:08d}  {split}")
    (tmp_path / "Eval").mkdir()
    text = "\n".join([str(len(lines)), "image_name item_id evaluation_status", *lines]) + "\n"
    (tmp_path / "Eval" / "list_eval_partition.txt").write_text(text)
    return tmp_path


def test_in_shop_has_queries_and_a_gallery(in_shop):
    catalog = load_catalog(in_shop, monitor=0, validation=0.1, seed=0)
    assert [len(catalog.rows(split)) for split in (TRAIN, VALIDATION, GALLERY)] == [8, 4, 4]
    assert classes_of(catalog, VALIDATION) == classes_of(catalog, GALLERY) == {"id_00000002", "id_00000003"}
    assert all(path.endswith(".jpg") and "/Img/img/" in path for path in catalog.paths())
    file = in_shop / "Eval" / "list_eval_partition.txt"
    file.write_text(file.read_text().replace("  query", "  asked", 1))
    with pytest.raises(InputError, match="line 11: expected a path"):
        load_catalog(in_shop, monitor=0, validation=0.1, seed=0)


@pytest.fixture
def builders(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    drawn = ("bars", "disc", "plain", "rings", "bars", "disc")

    def prepare(kind, features, splits, supervised):
        class Drawn(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            name = kind

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=supervised
                )

            def _split_generators(self, _manager):
                return {split: self._generate_examples(labels) for split, labels in splits.items()}

            def _generate_examples(self, labels):
                for key, label in enumerate(labels * 2):
                    file = tmp_path / f"{kind}-{key}-{label}.jpeg"
                    file.write_bytes(draw_encoded(key, drawn[label], "JPEG"))
                    example = {"image": str(file), "label": label, "class_id": label, "super_class_id": label // 3}
                    yield key, {name: example[name] for name in features}

        Drawn(data_dir=tmp_path / "tfds").download_and_prepare()

    return tfds, prepare


@pytest.mark.nightly
def test_tfds_halves_by_the_order_of_its_classes(builders):
    tfds, prepare = builders
    names = ["b last", "a first", "zebra", "yak"]  # not in alphabetical order
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
    prepare("birds", features, {"train": [0, 1, 2, 3], "test": [3, 2, 1, 0]}, ("image", "label"))
    catalog = listed("tfds:birds")
    assert classes_of(catalog, TRAIN) == {"00000 b last", "00001 a first"}
    assert classes_of(catalog, VALIDATION) == {"00002 zebra", "00003 yak"}
    assert len(catalog) == 16


@pytest.mark.nightly
def test_tfds_keeps_disjoint_splits_of_products(builders):
    tfds, prepare = builders
    features = {
        "image": tfds.features.Image(),
        "class_id": tfds.features.ClassLabel(num_classes=6),
        "super_class_id": tfds.features.ClassLabel(num_classes=2),
    }
    prepare("products", features, {"train": [5, 1, 3, 4], "test": [0, 2]}, None)
    catalog = listed("tfds:products")
    assert {name.split()[1] for name in classes_of(catalog, TRAIN)} == {"1", "3", "4", "5"}
    assert {name.split()[1] for name in classes_of(catalog, VALIDATION)} == {"0", "2"}


def oracle(queries, labels, gallery, gallery_labels, ks):
    """Recall@K, R-precision and MAP@R by loops."""
    recalls, precisions, averages = {k: [] for k in ks}, [], []
    for number, (query, label) in enumerate(zip(queries, labels, strict=True)):
        others = [row for row in range(len(gallery)) if gallery is not queries or row != number]
        order = sorted(others, key=lambda row: (float(np.sum((gallery[row] - query) ** 2)), row))
        right = [gallery_labels[row] == label for row in order]
        total = sum(right)
        if not total:
            continue
        for k in ks:
            recalls[k].append(any(right[:k]))
        precisions.append(sum(right[:total]) / total)
        hits, average = 0, 0.0
        for rank, one in enumerate(right[:total], start=1):
            hits += one
            average += one * hits / rank
        averages.append(average / total)
    return {f"recall@{k}": np.mean(values) for k, values in recalls.items()} | {
        "r_precision": np.mean(precisions),
        "map@r": np.mean(averages),
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("apart", [False, True])
def test_figures_are_those_of_loops(seed, apart):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(60, 5))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    labels = random.integers(0, 25, 60)  # some classes have a single image
    split = 25 if apart else 60
    gallery, gallery_labels = (vectors[25:], labels[25:]) if apart else (vectors, labels)
    queries = vectors[:split]
    queries = queries if apart else gallery
    given = (gallery, gallery_labels) if apart else (None, None)
    found = metric_learning_figures(queries, labels[:split], *given)
    expected = oracle(queries, labels[:split], gallery, gallery_labels, (1, 2, 4, 8, 10, 20, 30))
    assert found.pop("nmi") > 0
    assert found == pytest.approx({name: value for name, value in expected.items() if name in found})


def test_nmi_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        random = np.random.default_rng(seed)
        one, other = random.integers(0, 7, 200), random.integers(3, 12, 200)
        expected = metrics.normalized_mutual_info_score(one, other)
        assert normalized_mutual_information(one, other) == pytest.approx(expected, abs=1e-12)
    assert normalized_mutual_information(np.zeros(5, int), np.zeros(5, int)) == 1


def test_well_separated_classes_are_clustered():
    centers = np.eye(6, dtype=np.float32)
    labels = np.repeat(np.arange(6), 20)
    noise = np.random.default_rng(0).normal(0, 0.02, (120, 6)).astype(np.float32)
    vectors = centers[labels] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = metric_learning_figures(vectors, labels, None, None)
    assert found["recall@1"] == found["map@r"] == 1
    assert found["nmi"] > 0.8


def test_the_protocol_in_evaluation(workplace, folders, tmp_path):
    shutil.copytree(workplace / "runs" / "small", tmp_path / "runs" / "small")
    refused = script(tmp_path, "evaluate.py", "--protocol", "class-disjoint", "--no-baselines")
    assert refused.returncode == 2
    assert "classes that were trained on" in refused.stderr
    found = script(
        tmp_path,
        *("evaluate.py", "--protocol", "class-disjoint", "--data", folders, "--no-baselines", "--json"),
    )
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["queries"] == 48
    assert result["leave_one_out"]
    assert result["metric_learning"]["map@r"] == pytest.approx(result["map@r"])
    assert result["metric_learning"]["recall@1"] == pytest.approx(result["recall@1"])
    shown = script(tmp_path, *("evaluate.py", "--protocol", "class-disjoint", "--data", folders, "--no-baselines"))
    assert "metric learning" in shown.stdout
    assert "nmi" in shown.stdout


@pytest.mark.nightly
@pytest.mark.usefixtures("export_here")
def test_training_on_in_shop_and_on_half_of_the_classes(in_shop, folders, tmp_path):
    sizes = ("--image-size", 32, "--backbone", "resnet10", "--width", 4, "--embedding-dim", 8, "--shift", 1)
    steps = ("--epochs", 2, "--steps-per-epoch", 2, "--batch-size", 4, "--protocol", "class-disjoint")
    for data, queries, gallery in ((in_shop, 4, 4), (folders, 48, 47)):
        trained = script(tmp_path, "train.py", "--data", data, *sizes, *steps, "--run", "half", "--overwrite")
        assert trained.returncode == 0, trained.stderr
        found = script(tmp_path, "evaluate.py", "--protocol", "class-disjoint", "--no-baselines", "--json")
        assert found.returncode == 0, found.stderr
        result = json.loads(found.stdout)
        assert (result["queries"], result["gallery"]) == (queries, gallery)
        assert 0 <= result["metric_learning"]["map@r"] <= 1
