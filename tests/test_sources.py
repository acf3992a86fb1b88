"""Data as users have it: archives, manifests, TensorFlow Datasets."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, script, write_folders
from PIL import Image

from dr_keras.data.catalog import load_catalog
from dr_keras.data.images import decode
from dr_keras.data.pixel_store import load_pixels
from dr_keras.data.sources.tfds import _folder_names
from dr_keras.data.splits import MONITOR, TRAIN, VALIDATION
from dr_keras.errors import InputError
from dr_keras.evaluation.evaluate import evaluate_run
from dr_keras.loading import load as load_run


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(data, validation=0.0, monitor=0.0):
    return load_catalog(data, monitor=monitor, validation=validation, seed=0)


def zipped(folder, file, top=""):
    with zipfile.ZipFile(file, "w") as out:
        for path in sorted(folder.rglob("*.png")):
            out.write(path, Path(top) / path.relative_to(folder))
    return file


# Archives


@pytest.mark.parametrize("top", ["", "my set", "my set/my set"])
def test_a_zip_file_is_a_data_set(tmp_path, folders, top):
    catalog = load(zipped(folders, tmp_path / "set.zip", top))
    assert catalog.classes == CLASSES
    assert catalog.ids == load(folders).ids
    assert np.array_equal(decode(catalog.paths()[5], 16), decode(load(folders).paths()[5], 16))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.xz"])
def test_a_tar_file_is_a_data_set(tmp_path, folders, suffix):
    kind = {".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.xz": "xz"}[suffix]
    with tarfile.open(tmp_path / f"set{suffix}", f"w:{kind}") as out:
        out.add(folders, "drawn")
    assert load(str(tmp_path / f"set{suffix}")).ids == load(folders).ids


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_damaged_tar_file_is_a_clear_error(tmp_path, folders, kind):
    file = tmp_path / f"set.tar.{kind}"
    with tarfile.open(file, f"w:{kind}") as out:
        out.add(folders, "drawn")
    whole, refused = file.read_bytes(), []
    for start in range(16, len(whole) - 16, max(1, len(whole) // 40)):
        changed = bytes(value ^ 0x5A for value in whole[start : start + 16])
        file.write_bytes(whole[:start] + changed + whole[start + 16 :])
        try:  # a tar file has no checksums of its files, so some damage goes unnoticed here
            load(str(file))
        except InputError as error:
            refused.append(str(error))
    assert refused


def test_an_archive_is_unpacked_again_when_it_has_changed(tmp_path, cache):
    write_folders(tmp_path / "a", each=3)
    file = zipped(tmp_path / "a", tmp_path / "set.zip")
    first = load(file)
    assert load(file).root == first.root
    write_folders(tmp_path / "b", each=5)
    zipped(tmp_path / "b", file)
    assert len(load(file)) == 20
    assert len(list((cache / "archives").iterdir())) == 1


def test_an_archive_writes_nothing_outside_its_folder(tmp_path, cache):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "climbing.zip", "w") as out:
        for name in ("a/1.png", "b/2.png", "../../../../climbed.png", "/tmp/dr_keras_climbed.png"):
            out.writestr(name, picture.getvalue())
    load(tmp_path / "climbing.zip")
    assert not list(tmp_path.glob("climbed.png"))
    assert not Path("/tmp/dr_keras_climbed.png").exists()
    with tarfile.open(tmp_path / "climbing.tar", "w") as out:
        info = tarfile.TarInfo("../../climbed.png")
        info.size = len(picture.getvalue())
        out.addfile(info, io.BytesIO(picture.getvalue()))
    with pytest.raises(InputError, match="cannot be unpacked"):
        load(tmp_path / "climbing.tar")
    assert not list(tmp_path.rglob("climbed.png")) or all(
        cache in path.parents for path in tmp_path.rglob("climbed.png")
    )


def test_a_damaged_archive_is_a_clear_error_that_leaves_nothing(tmp_path, folders, cache):
    file = zipped(folders, tmp_path / "set.zip")
    data = bytearray(file.read_bytes())
    data[200] ^= 255
    file.write_bytes(data)
    with pytest.raises(InputError, match="cannot be unpacked"):
        load(file)
    assert not any((cache / "archives").iterdir())
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("readme.txt", "no images")
    with pytest.raises(InputError, match="no class folders"):
        load(file)
    (tmp_path / "notes.txt").write_text("neither")
    with pytest.raises(InputError, match=r"zip or tar file of one, or a manifest FILE\.csv"):
        load(tmp_path / "notes.txt")


# Manifests


def manifest(folder, text, name="set.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def test_a_manifest_gives_paths_labels_and_splits(tmp_path):
    write_folders(tmp_path / "pictures", each=6)
    outside = write_folders(tmp_path.parent / f"{tmp_path.name}-outside", each=1, classes=("disc",))
    rows = [f"pictures/bars/bars_{n}.png,straight," for n in range(4)]
    rows += [f"{tmp_path}/pictures/disc/disc_{n}.png,round,train" for n in range(3)]
    rows += ["pictures/disc/disc_3.png,round,monitor", '"pictures/disc/disc_4.png", round ,VAL']
    rows += [f"{outside}/disc/disc_0.png,round,train", "pictures/rings/rings_0.png,unseen,test"]
    catalog = load(manifest(tmp_path, "Path,label,split\n" + "\n".join(rows)), validation=0.5, monitor=0.5)
    assert catalog.classes == ("round", "straight")
    assert catalog.root == tmp_path.resolve()
    known = dict(zip(catalog.ids, zip(catalog.labels.tolist(), catalog.splits.tolist(), strict=True), strict=True))
    assert known["pictures/bars/bars_2.png"] == (1, TRAIN)
    assert known["pictures/disc/disc_1.png"] == (0, TRAIN)
    assert known["pictures/disc/disc_3.png"] == (0, MONITOR)
    assert known["pictures/disc/disc_4.png"] == (0, VALIDATION)
    assert known[f"{outside}/disc/disc_0.png"] == (0, TRAIN)
    assert catalog.missing == ("pictures/rings/rings_0.png",)
    assert sum(split == MONITOR for _, split in known.values()) == 1  # the manifest assigned it


def test_a_manifest_without_splits_is_split_like_folders(tmp_path):
    write_folders(tmp_path, each=10)
    rows = [f"{name}/{name}_{n}.png,{name}" for name in CLASSES for n in range(10)]
    listed = load(manifest(tmp_path, "path,label\n" + "\n".join(rows)), validation=0.2, monitor=0.1)
    walked = load(tmp_path, validation=0.2, monitor=0.1)
    assert listed.ids == walked.ids
    assert np.array_equal(listed.splits, walked.splits)


def test_a_manifests_missing_images_are_skipped_and_named(tmp_path):
    write_folders(tmp_path, each=3, classes=("bars", "disc"))
    rows = [f"{name}/{name}_{n}.png,{name}" for name in ("bars", "disc") for n in range(4)]
    catalog, _, report = load_pixels(load(manifest(tmp_path, "path,label\n" + "\n".join(rows))), 16)
    assert len(catalog) == 6
    assert [item["id"] for item in report["skipped"]] == ["bars/bars_3.png", "disc/disc_3.png"]
    assert "No such file" in report["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"columns \(none\); expected path, label"),
        ("file,class\na.png,b\n", "columns file, class; expected path, label"),
        ("path,label\n", "lists no images"),
        ("path,label\na.png,\n", "line 2: path is 'a.png' and label is ''"),
        ("path,label,split\na.png,b,train\nc.png,b,tomorrow\n", "line 3: split is 'tomorrow'"),
        ("path,label\na.png,b\na.png,c\n", r"line 3: a\.png has a different class"),
        ("path,label\n./a.png,b\nx/../a.png,c\n", "line 3: x/../a.png has a different class"),
        ('path,label\n"a.png,b\n', "cannot be read as a CSV file"),
    ],
)
def test_a_bad_manifest_says_where(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(manifest(tmp_path, text))


@pytest.mark.parametrize("searched", ["gallery", "val"])
def test_a_manifest_without_training_images_can_be_evaluated_on(tmp_path, folders, searched):
    lines = [
        f"{file},{file.parent.name},{'val' if number % 2 else searched}"
        for number, file in enumerate(sorted(folders.rglob("*.png")))
    ]
    file = manifest(tmp_path, "\n".join(["path,label,split", *lines]))
    catalog = load(file)
    assert not catalog.missing
    assert catalog.classes == CLASSES

    found = evaluate_run(load_run("tiny-imagenet-64"), data=str(file), baselines=False)
    assert found["queries"] == (len(lines) // 2 if searched == "gallery" else len(lines))
    assert found["gallery"] == (len(lines) // 2 if searched == "gallery" else len(lines) - 1)  # all but the query

    failed = script(tmp_path, "train.py", "--data", file, "--run", "none")
    assert failed.returncode == 2
    assert "has no training images; it can only be evaluated on" in failed.stderr
    assert not (tmp_path / "runs" / "none").exists()


def test_a_manifest_in_another_encoding_is_a_clear_error(tmp_path):
    with pytest.raises(InputError, match="UTF-8"):
        load(manifest(tmp_path, "path,label\nä.png,ö\n", encoding="latin-1"))
    write_folders(tmp_path, each=2, classes=("bars", "disc"))
    text = "path,label\nbars/bars_0.png,日本\ndisc/disc_0.png,Ünïcode\n"
    assert set(load(manifest(tmp_path, text, encoding="utf-8-sig")).classes) == {"日本", "Ünïcode"}


# TensorFlow Datasets


@pytest.fixture(scope="module")
def tfds_home(tmp_path_factory):
    """A data folder in which TFDS has written a small dataset in its own format."""
    import tensorflow_datasets as tfds

    class DrawnShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small", version="1.2.0")]  # noqa: RUF012
        pkg_dir_path = tmp_path_factory.mktemp("package")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=["bars", "up/down"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(0, 12), "test": self._generate_examples(1, 4)}

        def _generate_examples(self, seed, count):
            random = np.random.default_rng(seed)
            for number in range(count):
                pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "JPEG")
                encoded.seek(0)
                yield number, {"image": encoded, "label": number % 2}

    home = tmp_path_factory.mktemp("tfds")
    builder = DrawnShapes(data_dir=home, config="small")
    builder.download_and_prepare()
    return home


def test_a_tfds_set_is_a_data_set(tfds_home, monkeypatch, cache):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_home))
    catalog = load("tfds:drawn_shapes/small")
    assert catalog.classes == ("bars", "up_down")
    assert (catalog.splits == TRAIN).sum() == 12
    assert (catalog.splits == VALIDATION).sum() == 4
    assert np.bincount(catalog.labels).tolist() == [8, 8]
    assert all(name.endswith(".jpg") for name in catalog.ids)
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    examples = tfds.load("drawn_shapes/small", split="test", data_dir=tfds_home, decoders=encoded)
    held = [path for path, split in zip(catalog.paths(), catalog.splits, strict=True) if split == VALIDATION]
    assert {Path(path).read_bytes() for path in held} == {example["image"] for example in tfds.as_numpy(examples)}
    written = os.stat(held[0]).st_mtime_ns
    load("tfds:drawn_shapes/small")
    assert os.stat(held[0]).st_mtime_ns == written
    assert len(list((cache / "tfds").iterdir())) == 1


def test_an_unknown_tfds_set_is_a_clear_error(tfds_home, monkeypatch, cache):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_home))
    with pytest.raises(InputError, match="tfds:no_such_set cannot be prepared by TensorFlow Datasets"):
        load("tfds:no_such_set")
    assert not (cache / "tfds").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("export_here", "eagerly")
def test_an_archive_cropped_and_streamed_end_to_end(tmp_path, folders, cache):
    """Training settings apply to search: a file embeds to its indexed vector, whatever the resizing."""
    tall = tmp_path / "tall"
    for file in sorted(folders.rglob("*.png")):
        (tall / file.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.resize((24, 40)).save(tall / file.parent.name / file.name)
    result = script(
        tmp_path,
        "train.py",
        *("--data", zipped(tall, tmp_path / "set.zip"), "--run", "r", "--resize", "crop", "--store", "stream"),
        *("--image-size", 16, "--backbone", "resnet10", "--width", 4, "--embedding-dim", 8, "--shift", 1),
        *("--epochs", 1, "--steps-per-epoch", 3, "--batch-size", 8, "--validation", 0.2),
    )
    assert result.returncode == 0, result.stderr
    model = load_run(tmp_path / "runs" / "r")
    assert cache in model.index.root.parents
    for file in sorted(tall.rglob("*_1.png")):
        nearest = model.search([file], k=1)[0][0]
        known = model.index.records.row(f"{file.parent.name}/{file.name}")
        if known < len(model.index):
            assert (nearest.name, nearest.distance < 1e-3) == (file.name, True)
    squashed = Image.open(tall / "disc" / "disc_1.png").resize((16, 16))
    cropped, stretched = model.embed([tall / "disc" / "disc_1.png", squashed])
    assert np.abs(cropped - stretched).max() > 1e-3


def test_folders_of_tfds_classes_are_valid_and_distinct():
    names = _folder_names(["a_2", "a/", "a\\", "a?", "b: c", "...", "a_"])
    assert len(set(names)) == len(names) == 7
    assert not any(set(name) & set('/\\:*?"<>|') for name in names)
    assert names[0] == "a_2"
