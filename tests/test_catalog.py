import os
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, write_folders

from dr_keras.data.catalog import load_catalog
from dr_keras.data.splits import MONITOR, TRAIN, VALIDATION
from dr_keras.errors import InputError


def load(data, monitor=0.1, validation=0.2, seed=0):
    return load_catalog(data, monitor=monitor, validation=validation, seed=seed)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_class_folders(folders):
    catalog = load(folders)
    assert catalog.classes == CLASSES
    assert len(catalog) == 96
    assert all(
        name.split("/")[0] == catalog.classes[label] for name, label in zip(catalog.ids, catalog.labels, strict=True)
    )
    assert all(os.path.isfile(path) for path in catalog.paths())


def test_images_are_found_at_any_depth_and_other_files_ignored(tmp_path):
    touch(tmp_path, "a/images/1.JPEG", "a/2.jpg", "a/boxes.txt", "a/.hidden.jpg", "b/x/y/3.webp", "empty/readme.md")
    catalog = load(tmp_path, monitor=0, validation=0)
    assert catalog.ids == ("a/2.jpg", "a/images/1.JPEG", "b/x/y/3.webp")
    assert catalog.classes == ("a", "b")


def test_train_and_val_folders_are_splits(tmp_path):
    touch(tmp_path, *(f"train/{c}/{n}.jpg" for c in "ab" for n in range(5)), "val/a/9.jpg", "val/b/9.jpg")
    catalog = load(tmp_path, monitor=0)
    assert catalog.classes == ("a", "b")
    assert [catalog.ids[row] for row in catalog.rows(VALIDATION)] == ["val/a/9.jpg", "val/b/9.jpg"]
    assert len(catalog.rows(TRAIN)) == 10


def test_tiny_imagenet_layout(tmp_path):
    touch(tmp_path, *(f"train/{c}/images/{c}_{n}.JPEG" for c in ("n1", "n2") for n in range(5)))
    touch(tmp_path, "val/images/val_0.JPEG", "val/images/val_2.JPEG")
    lines = ("val_0.JPEG\tn2\t0\t0\t1\t1", "val_1.JPEG\tn1\t0\t0\t1\t1", "val_2.JPEG\tn1\t0\t0\t1\t1")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines))
    (tmp_path / "words.txt").write_text("n1\tgoldfish, Carassius auratus\nn3\tother\n")
    catalog = load(tmp_path, monitor=0.2)
    held = catalog.rows(VALIDATION)
    assert [(catalog.ids[row], catalog.labels[row]) for row in held] == [
        ("val/images/val_0.JPEG", 1),
        ("val/images/val_2.JPEG", 0),
    ]
    assert catalog.missing == ("val/images/val_1.JPEG",)
    assert catalog.class_names == ("goldfish", "n2")
    assert len(catalog.rows(MONITOR)) == 2


def test_tiny_imagenet_with_its_validation_images_moved_into_class_folders(tmp_path):
    touch(tmp_path, *(f"train/{c}/images/{c}_{n}.JPEG" for c in ("n1", "n2") for n in range(5)))
    touch(tmp_path, "val/n1/val_0.JPEG", "val/n3/val_1.JPEG", "val/val_annotations.txt")
    for leftover in ("none", "empty"):
        if leftover == "empty":
            (tmp_path / "val" / "images").mkdir()
        catalog = load(tmp_path)
        assert [catalog.ids[row] for row in catalog.rows(VALIDATION)] == ["val/n1/val_0.JPEG"]
        assert catalog.missing == ("val/n3/val_1.JPEG",)


def test_a_train_folder_alone_is_not_a_class(tmp_path):
    touch(tmp_path, *(f"train/{c}/{n}.jpg" for c in "ab" for n in range(10)), "docs/readme.md")
    catalog = load(tmp_path)
    assert catalog.classes == ("a", "b")
    assert len(catalog.rows(VALIDATION)) == 4


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, *(f"{c}/images/{n}.jpg" for c in ("car", "train", "test") for n in range(3)))
    assert load(tmp_path).classes == ("car", "test", "train")


def test_a_class_keeps_its_splits_when_another_comes(tmp_path):
    touch(tmp_path, *(f"{c}/{n}.jpg" for c in "bc" for n in range(40)))
    before = load(tmp_path)
    touch(tmp_path, *(f"a/{n}.jpg" for n in range(40)))
    after = load(tmp_path)
    assert (
        dict(zip(before.ids, before.splits, strict=True)).items()
        <= dict(zip(after.ids, after.splits, strict=True)).items()
    )


def test_splits_are_shares_of_each_class_and_seeded(tmp_path):
    touch(tmp_path, *(f"{c}/{n:03}.jpg" for c in "ab" for n in range(100)))
    catalog = load(tmp_path, monitor=0.05, validation=0.2)
    for label in (0, 1):
        own = catalog.splits[catalog.labels == label]
        assert np.bincount(own, minlength=3).tolist() == [76, 4, 20]
    assert np.array_equal(load(tmp_path, monitor=0.05).splits, catalog.splits)
    assert not np.array_equal(load(tmp_path, monitor=0.05, seed=1).splits, catalog.splits)


def test_monitor_zero_keeps_everything_for_training(tmp_path):
    touch(tmp_path, *(f"{c}/{n}.jpg" for c in "ab" for n in range(10)))
    assert len(load(tmp_path, monitor=0, validation=0).rows(TRAIN)) == 20


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_splitting_never_takes_a_classs_last_pair(tmp_path, count):
    touch(tmp_path, *(f"{c}/{n}.jpg" for c in "ab" for n in range(count)))
    catalog = load(tmp_path, monitor=0.5, validation=0.5)
    assert (np.bincount(catalog.labels[catalog.rows(TRAIN)]) == min(count, 2)).all()


def test_symbolic_link_loops_end(tmp_path):
    write_folders(tmp_path, each=2, classes=("bars", "disc"))
    (tmp_path / "bars" / "again").symlink_to(tmp_path / "bars", target_is_directory=True)
    assert len(load(tmp_path, monitor=0, validation=0)) == 4


def test_names_in_any_script(tmp_path):
    touch(tmp_path, "кошки/кот 1.jpg", "犬/柴犬.jpg")
    assert load(tmp_path, 0, 0).ids == ("кошки/кот 1.jpg", "犬/柴犬.jpg")


@pytest.mark.parametrize("kind", ["absent", "file", "empty", "flat"])
def test_unusable_data_is_a_clear_error(tmp_path, kind):
    data = tmp_path / "data"
    if kind == "file":
        data.write_text("no folder")
    elif kind != "absent":
        data.mkdir()
    if kind == "flat":
        touch(data, "1.jpg", "2.jpg")
    with pytest.raises(InputError, match=r"class folders|folder of images for each class"):
        load(data)


def test_digits_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path))
    catalog = load("digits")
    assert (len(catalog), len(catalog.classes)) == (1797, 10)
    written = os.stat(catalog.paths()[0]).st_mtime_ns
    assert os.stat(load("digits").paths()[0]).st_mtime_ns == written
