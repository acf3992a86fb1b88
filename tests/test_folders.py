"""The shared folder walker: what it skips, what it reports, and that each file counts as one picture."""

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_encoded, write_folders

from dr_keras.data.catalog import load_catalog
from dr_keras.data.folders import PASSED_OVER, Walker, all_pictures, has_pictures
from dr_keras.duplicates.find import find_duplicates
from dr_keras.errors import InputError
from dr_keras.index.index import Index
from dr_keras.index.relocate import move_index
from dr_keras.index.sync import Reader, add_files, sync_folder
from dr_keras.progress import stderr

NOBODY = 65534


def put(root, *names, seed=0):
    """Writes pictures with these names, all different."""
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(draw_encoded(seed=seed + number))


def names(root):
    files, _ = all_pictures([root])
    return [os.path.relpath(file, root) for file in files]


def embed(pixels):
    values = pixels.reshape(len(pixels), -1)[:, :: pixels[0].size // 16][:, :16].astype(np.float32) + 1
    return values / np.linalg.norm(values, axis=1, keepdims=True)


READER = Reader(embed, 8, "stretch")


@pytest.fixture
def open_place():
    """A folder that other users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)
        for here, folders, _ in os.walk(folder):
            for name in folders:
                os.chmod(os.path.join(here, name), 0o777)


@contextlib.contextmanager
def without_rights():
    """Drops root privileges, with which every folder is accessible."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", [*sorted(PASSED_OVER), ".hidden", ".@__thumb", "@EADIR", "$Recycle.Bin"])
def test_folders_of_disks_and_systems_are_skipped(tmp_path, name):
    put(tmp_path, "a.png", f"{name}/b.png", f"c/{name}/d/e.png")
    assert names(tmp_path) == ["a.png"]
    assert names(tmp_path / "c" / name) == ["d/e.png"]  # unless requested explicitly


def test_content_counts_and_not_the_ending(tmp_path):
    put(tmp_path, "a", "b.txt", "c.png", "d.db")
    for name in ("notes.txt", "readme", "Thumbs.db", "table.csv", "empty", "video.mp4"):
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"no picture")
    for name in ("says.jpg", "empty.png", "phone.HEIC"):
        (tmp_path / name).write_bytes(b"" if name == "empty.png" else b"no picture")
    assert names(tmp_path) == ["a", "b.txt", "c.png", "d.db", "empty.png", "phone.HEIC", "says.jpg"]


def test_special_files_block_nothing_and_are_not_pictures(tmp_path):
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "self").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(tmp_path)  # socket paths must be short
        try:
            one.bind("socket")
        finally:
            os.chdir(here)
    assert names(tmp_path) == ["a.png", "pipe.jpg"]  # the name claims a picture; reading it reveals more
    with Index.create(tmp_path.parent / f"{tmp_path.name} index", 16, root=tmp_path) as index:
        report = add_files(index, [tmp_path], READER, console=stderr())
        assert (report.added, report.unread) == (1, {"pipe.jpg": "cannot be read: it is not a regular file"})


def links(root):
    """Writes a picture with seven paths, and another picture."""
    put(root, "real/a.png", "real/b.png")
    (root / "link").symlink_to("real")
    (root / "a-link.png").symlink_to("real/a.png")
    (root / "z").mkdir()
    os.link(root / "real" / "a.png", root / "z" / "hard.png")
    os.link(root / "real" / "a.png", root / "z" / "hard again")
    (root / "z" / "up").symlink_to("..")
    return root


def test_a_file_by_several_paths_is_one_picture(tmp_path):
    assert names(links(tmp_path)) == ["real/a.png", "real/b.png"]


def test_two_paths_to_one_link_that_leads_nowhere_are_one_picture(tmp_path):
    (tmp_path / "a.png").symlink_to("a.png")
    os.link(tmp_path / "a.png", tmp_path / "b.png", follow_symlinks=False)
    assert names(tmp_path) == ["a.png"]


def test_paths_behind_one_that_cannot_be_followed_are_still_compared(open_place):
    put(open_place, "a/1.png")
    for name in ("b/2.png", "c/3.png"):
        (open_place / name).parent.mkdir()
        os.link(open_place / "a" / "1.png", open_place / name)
    (open_place / "a").chmod(0o444)  # may be listed but not entered
    with without_rights():
        assert names(open_place) == ["a/1.png", "b/2.png"]


def test_it_is_indexed_once(tmp_path):
    root = links(tmp_path / "pictures")
    (tmp_path / "other").symlink_to(root)
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        with Index.create(tmp_path / "index", 16, root=root) as index:
            given = [root / "link" / "b.png", "pictures/real/a.png", root, tmp_path / "other", root / "z" / "hard.png"]
            assert add_files(index, given, READER, console=stderr()).added == 2
            for path in given:  # no matter by which path it is added again
                report = add_files(index, [path], READER, console=stderr())
                assert (report.added, report.unread) == (0, {}), path
            assert sync_folder(index, tmp_path / "other", READER, console=stderr()).added == 0
            assert len(index) == 2
            put(root, "new.png", seed=7)
            assert sync_folder(index, root, READER, remove_missing=True, console=stderr()).added == 1
            assert len(index) == 3
    finally:
        os.chdir(here)


def test_it_is_never_its_own_duplicate(tmp_path):
    root = links(tmp_path)
    found = find_duplicates(root, console=stderr())
    assert (found.images, found.exact, found.near, found.leaks) == (2, [], [], [])
    shutil.copy(root / "real" / "a.png", root / "real" / "copy.png")
    assert find_duplicates(root, console=stderr()).exact == [["real/a.png", "real/copy.png"]]
    (root / "all.csv").write_text(f"path,label\nreal/a.png,a\n{root}/real/b.png,b\nlink/a.png,a\nz/hard.png,a\n")
    found = find_duplicates(root / "all.csv", console=stderr())
    assert (found.images, found.exact) == (2, [])


def test_it_is_trained_on_once_and_reported(tmp_path):
    put(tmp_path, *(f"{name}/{number}.png" for name in ("cats", "dogs") for number in range(4)))
    (tmp_path / "dogs" / "again.png").symlink_to("0.png")
    os.link(tmp_path / "cats" / "0.png", tmp_path / "dogs" / "cat.png")
    (tmp_path / "kittens").symlink_to("cats")
    catalog = load_catalog(tmp_path, monitor=0, validation=0, seed=0)
    assert catalog.classes == ("cats", "dogs")
    assert sorted(catalog.ids) == [f"{name}/{number}.png" for name in ("cats", "dogs") for number in range(4)]
    assert len(catalog.notes) == 1
    assert catalog.notes[0].startswith("2 paths lead to the file of another image and are left out")


def test_a_folder_that_may_not_be_listed_is_named_and_the_rest_goes_on(open_place):
    root = open_place / "photos"
    put(root, "a.png", "closed/b.png", "open/c.png", "open/closed.dat")
    with Index.create(open_place / "index", 16, root=root) as index:
        assert add_files(index, [root], READER, console=stderr()).added == 4
        os.chmod(root / "closed", 0)
        os.chmod(root / "open" / "closed.dat", 0)
        (root / "a.png").unlink()
        with without_rights():
            files, troubles = all_pictures([root])
            found = find_duplicates(root, console=stderr())
        assert [os.path.relpath(file, root) for file in files] == ["open/c.png"]
        assert sorted(troubles) == [
            (str(root / "closed"), "Permission denied"),
            (str(root / "open" / "closed.dat"), "Permission denied"),
        ]
        assert found.images == 1
        assert found.skipped[str(root / "closed")] == "could not be looked at: Permission denied"
        os.seteuid(NOBODY if os.geteuid() == 0 else os.geteuid())
        try:
            report = sync_folder(index, root, READER, remove_missing=True, console=stderr())
        finally:
            os.seteuid(os.getuid())
        assert report.missing == ["a.png"]
        assert {name for _, name, *_ in index.records.listing()} == {"closed/b.png", "open/c.png", "open/closed.dat"}
        assert len(report.unlisted) == 2
        assert any(str(root / "closed") in line for line in report.details())


def test_a_class_that_may_not_be_read_is_an_error_and_not_an_absence(open_place):
    root = write_folders(open_place / "data", each=3)
    for closed in (root / "disc", root / "rings" / "deep"):
        put(root, "rings/deep/x.png")
        os.chmod(closed, 0)
        with without_rights(), pytest.raises(InputError, match=f"{closed} cannot be read: Permission denied; a class"):
            load_catalog(root, monitor=0, validation=0, seed=0)
        os.chmod(closed, 0o755)
    assert load_catalog(root, monitor=0, validation=0, seed=0).classes == ("bars", "disc", "plain", "rings")


def test_names_may_be_any_bytes(tmp_path):
    odd = [
        os.fsdecode(b"\xff\xfe.png"),
        "line\nbreak.png",
        "tab\t.png",
        " .png",
        "日本.png",
        "e\u0301.png",
        "é.png",
        "-x.png",
    ]
    put(tmp_path, *odd)
    assert names(tmp_path) == sorted(odd)
    assert has_pictures(tmp_path)
    with Index.create(tmp_path.parent / f"{tmp_path.name} index", 16, root=tmp_path) as index:
        assert add_files(index, [tmp_path], READER, console=stderr()).added == len(odd)


def test_a_walk_through_a_folder_that_is_gone_is_named(tmp_path):
    walker = Walker()
    assert walker.pictures(tmp_path / "gone") == []
    assert walker.troubles == [(str(tmp_path / "gone"), "No such file or directory")]


# Moving a collection


@pytest.fixture
def collection(tmp_path):
    root = write_folders(tmp_path / "old", each=5)
    with Index.create(tmp_path / "index", 16, root=root) as index:
        add_files(index, [root], READER, attributes={"year": 2020}, console=stderr())
        yield index


def test_an_index_is_told_where_its_collection_lies_now(collection, tmp_path):
    before = {name: (entry := collection.get(name))[1] for _, name, *_ in collection.records.listing()}
    assert entry
    new = Path(shutil.copytree(tmp_path / "old", tmp_path / "new", copy_function=shutil.copyfile))  # new timestamps
    shutil.rmtree(tmp_path / "old")
    found = move_index(collection, new, console=stderr())
    assert (found.same, found.missing, found.changed, collection.root) == (20, [], [], new)

    def never(_):
        raise AssertionError("nothing is embedded again")

    report = sync_folder(collection, new, Reader(never, 8, "stretch"), console=stderr())
    assert (report.unchanged, report.missing) == (20, [])
    assert collection.verify() == []
    for name, vector in before.items():
        assert np.array_equal(collection.get(name)[1], vector)
        assert dict(collection.get(name)[0].attributes) == {"width": 32, "height": 32, "year": 2020}
    with Index.open(tmp_path / "index") as other:
        assert other.root == new


def test_images_missing_or_changed_at_the_new_place_are_reported(collection, tmp_path):
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "bars" / "bars_0.png").unlink()
    put(tmp_path / "new", "disc/disc_0.png", seed=99)
    found = move_index(collection, tmp_path / "new", console=stderr())
    assert (found.same, found.missing, found.changed) == (18, ["bars/bars_0.png"], ["disc/disc_0.png"])
    report = sync_folder(collection, tmp_path / "new", READER, remove_missing=True, console=stderr())
    assert (report.updated, report.removed, report.unchanged) == (1, 1, 18)


def test_another_collection_is_not_taken_for_it(collection, tmp_path):
    other = write_folders(tmp_path / "other", each=5, seed=1)
    before = collection.root
    with pytest.raises(InputError, match=r"of 20 images of .* 0 are below"):
        move_index(collection, other, console=stderr())
    with pytest.raises(InputError, match="there is no folder"):
        move_index(collection, tmp_path / "absent", console=stderr())
    assert collection.root == before


def test_images_with_whole_paths_do_not_move(tmp_path):
    root = write_folders(tmp_path / "old", each=1)
    with Index.create(tmp_path / "index", 16, root=tmp_path / "elsewhere") as index:
        add_files(index, [root], READER, console=stderr())
        with pytest.raises(InputError, match="all have whole paths"):
            move_index(index, root, console=stderr())
