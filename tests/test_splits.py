"""Split names as people write them: read as splits, as classes, or refused with both interpretations named."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import draw_encoded

from dr_keras.data.catalog import load_catalog
from dr_keras.data.sources.manifest import read_manifest
from dr_keras.data.splits import TRAIN, VALIDATION, find_splits, held_out_splits, meaning
from dr_keras.duplicates.find import find_duplicates
from dr_keras.errors import InputError

PICTURE = draw_encoded()


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def split(root, name, classes=("cat", "dog"), each=3):
    touch(root, *(f"{name}/{label}/{number}.jpg" for label in classes for number in range(each)))


def load(root):
    return load_catalog(root, monitor=0, validation=0.2, seed=0)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("train", ("train", "")),
        ("Training", ("train", "")),
        ("TRAIN", ("train", "")),
        ("train2017", ("train", "")),
        ("trainset", ("train", "")),
        ("TrainingData", ("train", "")),
        ("train_images", ("train", "")),
        ("seg_train", ("train", "seg")),
        ("Testing", ("test", "")),
        ("test1", ("test", "")),
        ("VAL", ("validation", "")),
        ("Valid", ("validation", "")),
        ("dev-set", ("validation", "")),
        ("unlabeled", ("unlabeled", "")),
        ("seg_pred", ("unlabeled", "seg")),
        ("cats", None),
        ("trainer", None),
        ("contest", None),
        ("protest_march", None),
        ("validator", None),
        ("train_test", None),
    ],
)
def test_what_a_name_means(name, what):
    assert meaning(name) == what


@pytest.mark.parametrize(
    ("train", "others", "held"),
    [
        ("Training", ["Testing"], "Testing"),
        ("Training", ["Test"], "Test"),
        ("Train", ["Valid"], "Valid"),
        ("TRAIN", ["VAL"], "VAL"),
        ("train", ["test", "val"], "val"),
        ("train", ["Test", "dev", "valid"], "valid"),
        ("seg_train", ["seg_test"], "seg_test"),
        ("train_set", ["test_set"], "test_set"),
        ("train", ["test", "unlabeled"], "test"),
        ("training-images", ["validation-images"], "validation-images"),
        ("train", [], None),
    ],
)
def test_splits_are_not_classes(tmp_path, train, others, held):
    for name in (train, *others):
        split(tmp_path, name)
    touch(tmp_path, "readme.md", "docs/notes.txt")
    catalog = load(tmp_path)
    assert catalog.classes == ("cat", "dog")
    assert {catalog.ids[row].partition("/")[0] for row in catalog.rows(TRAIN)} == {train}
    assert {catalog.ids[row].partition("/")[0] for row in catalog.rows(VALIDATION)} == {held or train}
    unused = {name for name in others if name != held}
    assert all(f"{name}/" in " ".join(catalog.notes) for name in unused)
    assert bool(catalog.notes) == bool(unused)


def test_a_folder_in_a_folder_of_the_same_name(tmp_path):
    """As in a well-known landscape dataset."""
    split(tmp_path, "seg_train/seg_train")
    split(tmp_path, "seg_test/seg_test")
    touch(tmp_path, *(f"seg_pred/seg_pred/{number}.jpg" for number in range(3)))
    catalog = load(tmp_path)
    assert catalog.classes == ("cat", "dog")
    assert {catalog.ids[row].split("/")[0] for row in catalog.rows(VALIDATION)} == {"seg_test"}


def test_a_class_only_in_the_held_out_split_is_missing_and_not_trained_on(tmp_path):
    split(tmp_path, "Train")
    split(tmp_path, "Test", ("dog", "wolf"), each=1)
    catalog = load(tmp_path)
    assert (catalog.classes, catalog.missing) == (("cat", "dog"), ("Test/wolf/0.jpg",))


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (("Train", "Training", "Test"), ["Train/, Training/", "every folder as a class"]),
        (
            ("train", "cat"),
            ["train/ as splits", "every folder as a class", "/train; if they are classes, rename train/"],
        ),
        (("train", "test", "extra"), ["test/, train/ as splits", "every folder as a class"]),
        (("val", "test"), ["no train/", "as held-out images, or every folder as a class"]),
        (("Testing", "validation"), ["no train/"]),
    ],
)
def test_ambiguous_layouts_are_refused_with_both_interpretations(tmp_path, layout, words):
    for name in layout:
        split(tmp_path, name)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert all(word in str(error.value) for word in words), error.value


def test_a_held_out_folder_beside_the_classes_is_unclear(tmp_path):
    split(tmp_path, ".")
    split(tmp_path, "test")
    with pytest.raises(InputError, match="no train/, which can be read in two ways"):
        load(tmp_path)


@pytest.mark.parametrize(
    "classes", [("car", "test", "train"), ("steam_train", "bus"), ("dev", "qa"), ("cat", "val"), ("test_tube", "flask")]
)
def test_classes_may_have_names_of_splits(tmp_path, classes):
    for name in classes:
        touch(tmp_path, *(f"{name}/{number}.jpg" for number in range(3)))
    assert load(tmp_path).classes == tuple(sorted(classes))


def test_the_split_that_evaluates():
    assert held_out_splits(["test", "train", "VALIDATION", "val", "unlabeled"]) == ["val", "VALIDATION", "test"]
    assert find_splits({"a": list, "b": list}, "x") is None


def test_a_list_names_splits_in_the_same_ways(tmp_path):
    names = ("", "TRAIN", "Training", "Monitor", "VAL", "Valid", "Testing", "eval")
    rows = "".join(f"{number}.jpg,cat,{name}\n" for number, name in enumerate(names))
    (tmp_path / "all.csv").write_text(f"path,label,split\n{rows}")
    assert [entry.split for entry in read_manifest(tmp_path / "all.csv")] == [0, 0, 0, 1, 2, 2, 2, 2]
    (tmp_path / "all.csv").write_text("path,label,split\na.jpg,cat,cats\n")
    with pytest.raises(InputError, match=r"line 2: split is 'cats'; expected one of .*train"):
        read_manifest(tmp_path / "all.csv")


def test_leaks_are_found_between_splits_of_any_name(tmp_path):
    for name in ("Training", "Testing"):
        for label, seed in (("a", 1), ("b", 2)):
            file = tmp_path / name / label / f"{name}.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(draw_encoded(seed=seed))
    found = find_duplicates(tmp_path)
    assert found.leaks == [[f"Testing/{label}/Testing.png", f"Training/{label}/Training.png"] for label in "ab"]
    assert set(found.splits.values()) == {"train", "test"}


# Archives


def members(*places):
    return [f"{place}{label}/{number}.png" for place in places for label in ("bird", "cat") for number in range(3)]


ARCHIVES = {
    "classes": (members(""), []),
    "one folder around": (members("pets/"), []),
    "two folders around": (members("download/pets/"), []),
    "three folders around": (members("a/b/pets/"), []),
    "a readme beside": (members("PetImages/"), ["readme[1].txt", "licence.pdf", "MSR-LA.docx"]),
    "what macOS adds": (members("pets/"), [".DS_Store", "__MACOSX/pets/cat/._0.png", "pets/.DS_Store"]),
    "documents in a folder": (members("pets/"), ["docs/paper.pdf", "docs/labels.csv"]),
    "backslashes": ([name.replace("/", "\\") for name in members("pets/")], []),
    "splits": (members("pets/train/", "pets/test/"), ["pets/readme.txt"]),
    "splits one level too low": (members("pets/data/Training/", "pets/data/Testing/"), ["pets/readme.txt"]),
}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_as_people_pack_them(tmp_path, monkeypatch, kind, name):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    pictures, others = ARCHIVES[name]
    content = dict.fromkeys(pictures, PICTURE) | dict.fromkeys(others, b"text")
    file = tmp_path / f"set.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in content.items():
                entry = zipfile.ZipInfo("x")
                entry.filename = member
                archive.writestr(entry, data)
    else:
        with tarfile.open(file, "w:gz") as archive:
            for member, data in content.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    catalog = load(file)
    assert catalog.classes == ("bird", "cat")
    assert len(catalog) == len(pictures)
    assert np.isin(catalog.splits, [TRAIN, VALIDATION]).all()


def test_a_backslash_climbs_out_of_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for member in ("..\\..\\..\\out.png", "a\\1.png", "b\\1.png"):
            entry = zipfile.ZipInfo("x")
            entry.filename = member
            archive.writestr(entry, PICTURE)
    assert set(load(tmp_path / "set.zip").classes) == {"a", "b"}
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "2.png"], "its images are not in class folders. It contains: 1.png, 2.png"),
        (["notes.txt", "docs/a.pdf"], "It contains: docs/, notes.txt. Give the folder whose folders are the classes"),
        ([], "It contains: nothing"),
    ],
)
def test_without_classes_the_error_names_what_was_found(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert message in str(error.value)


def test_a_folder_one_level_too_high_works_too(tmp_path):
    split(tmp_path, "download/pets", ("cat", "dog"), each=4)
    catalog = load(tmp_path)
    assert catalog.classes == ("cat", "dog")
    assert catalog.ids[0] == "download/pets/cat/0.jpg"
    assert catalog.root == tmp_path
