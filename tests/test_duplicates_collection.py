"""Which pictures a folder holds, in which classes and splits, as the search for duplicates sees it."""

import pytest
from conftest import write_folders
from test_duplicates import find, photo, save

from dr_keras.duplicates.report import save_report
from dr_keras.errors import InputError


def test_classes_and_splits_of_the_layout_of_tiny_imagenet(tmp_path):
    for number in range(4):
        save(photo(number), tmp_path / "train" / "n1" / "images" / f"n1_{number}.png")
        save(photo(number + 10), tmp_path / "train" / "n2" / "images" / f"n2_{number}.png")
    save(photo(0), tmp_path / "val" / "images" / "val_0.png")
    save(photo(10), tmp_path / "val" / "images" / "val_1.png")
    save(photo(20), tmp_path / "val" / "images" / "unlisted.png")
    save(photo(20), tmp_path / "test" / "images" / "test_0.png")
    save(photo(1), tmp_path / "loose.png")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.png\tn1\t0\nval_1.png\tn1\t0\n")
    (tmp_path / "words.txt").write_text("n1\tgoldfish, Carassius auratus\n")
    found = find(tmp_path)
    of_class = ["train/n1/images/n1_0.png", "val/images/val_0.png"]
    across = ["train/n2/images/n2_0.png", "val/images/val_1.png"]
    tests = ["test/images/test_0.png", "val/images/unlisted.png"]
    assert found.exact == [["loose.png", "train/n1/images/n1_1.png"], tests, of_class, across]
    assert found.cross_class == [across]
    assert found.leaks == [tests, of_class, across]
    assert found.splits["test/images/test_0.png"] == "test"
    assert "loose.png" not in found.splits
    assert not {"loose.png", *tests} & found.labels.keys()
    assert found.class_names["n1"] == "goldfish"


def test_folders_of_classes_beside_the_listed_ones(tmp_path):
    """A dataset is read with val/ as its held-out split; test/ and classes without training images are compared too."""
    for name in ("train/a/1", "train/b/2", "val/a/3", "val/c/4", "test/b/5"):
        save(photo(int(name[-1])), tmp_path / f"{name}.png")
    save(photo(1), tmp_path / "val" / "c" / "6.png")
    save(photo(3), tmp_path / "test" / "a" / "7.png")
    found = find(tmp_path)
    assert found.leaks == [["test/a/7.png", "val/a/3.png"], ["train/a/1.png", "val/c/6.png"]]
    assert found.cross_class == [["train/a/1.png", "val/c/6.png"]]


def test_class_folders_are_not_splits(tmp_path):
    for name in ("cars/1", "test/1", "train/2", "train/3"):  # a class may be named train
        save(photo(int(name[-1])), tmp_path / f"{name}.png")
    found = find(tmp_path)
    assert found.cross_class == [["cars/1.png", "test/1.png"]]
    assert not found.leaks


@pytest.mark.parametrize("names", [("val/a/1", "test/a/1"), ("train/1", "test/1")])
def test_splits_without_classes(tmp_path, names):
    for name in names:
        save(photo(1), tmp_path / f"{name}.png")
    found = find(tmp_path)
    assert found.leaks == found.exact == [sorted(f"{name}.png" for name in names)]
    assert not found.cross_class


def test_a_flat_folder_of_pictures(tmp_path):
    for name in ("1", "2", "a b"):
        save(photo(len(name)), tmp_path / f"{name}.png")
    found = find(str(tmp_path))
    assert found.exact == [["1.png", "2.png"]]
    assert found.leaks == found.cross_class == []
    assert found.labels == found.splits == {}


def test_a_manifest_and_nothing_else(tmp_path):
    for name in ("1", "2", "3", "beside"):
        save(photo(0), tmp_path / "pictures" / f"{name}.png")
    lines = ["path,label,split", "pictures/1.png,a,train", "pictures/2.png,a,monitor", "pictures/3.png,b,test"]
    (tmp_path / "list.csv").write_text("\n".join([*lines, "pictures/gone.png,b,train"]))
    found = find(tmp_path / "list.csv")
    assert found.exact == found.leaks == found.cross_class == [[f"pictures/{name}.png" for name in (1, 2, 3)]]
    assert list(found.skipped) == ["pictures/gone.png"]
    assert found.splits["pictures/2.png"] == "train"


def test_symbolic_links_to_folders_show_a_picture_once(tmp_path):
    data = tmp_path / "data"
    for number, name in enumerate(("train/a/1", "train/a/2", "train/b/3", "val/a/4", "loose")):
        save(photo(number), data / f"{name}.png")
    (data / "train" / "a" / "again").symlink_to(data / "train" / "a", target_is_directory=True)
    (data / "test").symlink_to(data / "val", target_is_directory=True)
    (tmp_path / "link").symlink_to(data, target_is_directory=True)
    found = find(tmp_path / "link")
    assert found.images == 5
    assert found.exact == []
    assert found.splits["val/a/4.png"] == "validation"


def test_files_that_cannot_be_read_are_named_and_left_out(tmp_path):
    write_folders(tmp_path, each=2, classes=("bars", "disc"))
    for name in ("broken.png", "broken again.png"):
        (tmp_path / "bars" / name).write_bytes(b"no image")
    (tmp_path / "bars" / "empty.png").touch()
    (tmp_path / "disc" / "gone.png").symlink_to("nowhere")
    found = find(tmp_path)
    assert found.skipped == {
        "bars/broken again.png": "is not an image in a known format",
        "bars/broken.png": "is not an image in a known format",
        "bars/empty.png": "is empty (0 bytes)",
        "disc/gone.png": "cannot be read: No such file or directory",
    }
    assert found.images == 4
    assert not found.exact
    assert {"id": "bars/empty.png", "reason": "is empty (0 bytes)"} in found.to_dict()["skipped"]
    save_report(found, tmp_path / "page.html")
    assert "4 could not be read" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_a_folder_without_images_is_a_clear_error(tmp_path, kind):
    folder = tmp_path / "folder"
    if kind == "empty":
        folder.mkdir()
    elif kind == "file":
        folder.write_text("no folder")
    with pytest.raises(InputError, match=r"does not exist; give|holds no images; give|is a file; give"):
        find(folder)
