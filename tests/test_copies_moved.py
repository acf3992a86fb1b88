"""Copies that are moved away and back, and new files that are compared with an index."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import draw, script
from PIL import Image

from dr_keras.duplicates import moving
from dr_keras.duplicates.find import find_duplicates
from dr_keras.duplicates.moving import UNDO, move_copies, undo
from dr_keras.errors import InputError
from dr_keras.progress import stderr


@pytest.fixture
def pictures(tmp_path):
    """Three equal files, a larger one that looks the same, and another picture."""
    random = np.random.default_rng(9)
    one = draw("rings", random, 96)
    _faint, other = (draw("bars", random, 96) for _ in range(2))
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    one.resize((64, 64), Image.Resampling.LANCZOS).save(root / "a.png")
    shutil.copy(root / "a.png", root / "b.png")
    shutil.copy(root / "a.png", root / "sub" / "a.png")
    one.save(root / "large.png")
    other.save(root / "other.png")
    return root


def tree(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}


def test_equal_files_are_moved_and_moved_back(pictures, tmp_path):
    before = tree(pictures)
    place = tmp_path / "moved"
    moves = move_copies(find_duplicates(pictures, console=stderr()), place)
    assert sorted(moves.moved) == [str(pictures / "b.png"), str(pictures / "sub" / "a.png")]
    assert moves.left == {}
    assert set(tree(pictures)) == {"a.png", "large.png", "other.png"}
    assert set(tree(place)) == {"b.png", "sub/a.png"}
    assert undo(place / UNDO) == 2
    assert tree(pictures) == before
    assert not (place / UNDO).exists()


def test_nearly_equal_ones_leave_the_largest(pictures, tmp_path):
    moves = move_copies(find_duplicates(pictures, console=stderr()), tmp_path / "moved", near=True)
    assert len(moves.moved) == 3
    assert set(tree(pictures)) == {"large.png", "other.png"}
    assert undo(tmp_path / "moved" / UNDO) == 3


def test_the_last_copy_is_never_touched(pictures, tmp_path):
    found = find_duplicates(pictures, console=stderr())
    (pictures / "a.png").unlink()  # the one that would stay
    moves = move_copies(found, tmp_path / "moved")
    assert moves.moved == []
    assert len(moves.left) == 2
    shutil.copy(pictures / "other.png", pictures / "a.png")  # it is another picture now
    moves = move_copies(found, tmp_path / "moved")
    assert moves.moved == []
    assert all("not equal" in reason for reason in moves.left.values())


def test_links_stay(pictures, tmp_path):
    (pictures / "b.png").unlink()
    os.link(pictures / "a.png", pictures / "b.png")
    (pictures / "sub" / "a.png").unlink()
    found = find_duplicates(pictures, console=stderr())
    assert move_copies(found, tmp_path / "moved").moved == []
    (pictures / "a.png").unlink()
    (pictures / "sub" / "z.png").write_bytes((pictures / "b.png").read_bytes())
    found = find_duplicates(pictures, console=stderr())
    (pictures / "b.png").unlink()
    (pictures / "b.png").symlink_to(pictures / "sub" / "z.png")
    assert move_copies(found, tmp_path / "moved").moved == []
    assert (pictures / "b.png").read_bytes()


def test_a_link_to_an_equal_file_elsewhere_stays(pictures, tmp_path):
    shutil.copyfile(pictures / "a.png", tmp_path / "elsewhere.png")
    for copy in (pictures / "b.png", pictures / "sub" / "a.png"):
        copy.unlink()
        copy.symlink_to(tmp_path / "elsewhere.png")
    moves = move_copies(find_duplicates(pictures, console=stderr()), tmp_path / "moved")
    assert moves.moved == []
    assert set(moves.left.values()) == {"it is a link, or the other is"}


def test_files_of_an_archive_are_not_moved(pictures, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "album"), "zip", pictures)
    refused = script(tmp_path, "index.py", "duplicates", archive, "--move-to", "moved")
    assert refused.returncode == 2
    assert "--move-to moves files of a folder; unpack" in refused.stderr
    assert not (tmp_path / "moved").exists()


def test_a_stop_in_the_middle_can_be_undone(pictures, tmp_path, monkeypatch):
    before, found, real = tree(pictures), find_duplicates(pictures, console=stderr()), os.rename
    done = []

    def move(old, new):
        if done:
            raise OSError(28, "No space left on device")
        done.append(old)
        real(old, new)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(moving.os, "rename", move)
        move_copies(found, tmp_path / "moved")
    lines = (tmp_path / "moved" / UNDO).read_text().splitlines()
    assert len(lines) == 2  # the second was about to be moved
    (tmp_path / "moved" / UNDO).write_text("\n".join(lines) + '\n{"from": "/cut o')
    assert undo(tmp_path / "moved" / UNDO) == 1
    assert tree(pictures) == before


def test_a_torn_line_is_mended_before_the_next_move(pictures, tmp_path):
    place = tmp_path / "moved"
    place.mkdir()
    (place / UNDO).write_text('{"from": "/cut o')
    move_copies(find_duplicates(pictures, console=stderr()), place)
    assert undo(place / UNDO) == 2


def test_two_files_of_one_place_are_not_moved_back(pictures, tmp_path):
    place, before = tmp_path / "moved", (pictures / "b.png").read_bytes()
    move_copies(find_duplicates(pictures, console=stderr()), place)
    (pictures / "other.png").rename(pictures / "aa.png")
    shutil.copy(pictures / "aa.png", pictures / "b.png")
    move_copies(find_duplicates(pictures, console=stderr()), place)
    with pytest.raises(InputError, match="several files would be moved back"):
        undo(place / UNDO)
    assert (place / "b.png").read_bytes() == before
    assert (place / "b-1.png").exists()


def test_moves_to_another_disk(pictures, tmp_path, monkeypatch):
    before, place, real = tree(pictures), tmp_path / "moved", os.rename

    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    with monkeypatch.context() as patch:
        patch.setattr(moving.os, "rename", other_disk)
        moves = move_copies(find_duplicates(pictures, console=stderr()), place)
        assert len(moves.moved) == 2
    moved = place / "b.png"
    shutil.copy(moved, pictures / "b.png")  # as if it was stopped before the first was removed
    assert undo(place / UNDO) == 2
    assert tree(pictures) == before
    assert not moved.exists()
    assert real is os.rename


def test_nothing_is_overwritten(pictures, tmp_path):
    place = tmp_path / "moved"
    place.mkdir()
    (place / "b.png").write_bytes(b"another")
    move_copies(find_duplicates(pictures, console=stderr()), place)
    assert (place / "b.png").read_bytes() == b"another"
    assert (place / "b-1.png").exists()
    (pictures / "b.png").write_bytes(b"something else")
    with pytest.raises(InputError, match="cannot be moved back: there is another"):
        undo(place / UNDO)
    assert (place / "b-1.png").exists()
    assert (pictures / "b.png").read_bytes() == b"something else"


def test_bad_places_and_lists(pictures, tmp_path):
    found = find_duplicates(pictures, console=stderr())
    for inside in (pictures, pictures / "new"):
        with pytest.raises(InputError, match="is inside"):
            move_copies(found, inside)
    for text in ("{}\n{}\n", "no\nno\n", "[1]\n[2]\n"):
        (tmp_path / UNDO).write_text(text)
        with pytest.raises(InputError, match="line 1, is not a move"):
            undo(tmp_path / UNDO)
    with pytest.raises(InputError, match="cannot be read"):
        undo(tmp_path / "none.jsonl")


def test_names_of_any_bytes(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for name in (b"a.png", b"b\xff\n.png"):
        draw("disc", np.random.default_rng(1)).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(root / os.fsdecode(name))
    move_copies(find_duplicates(root, console=stderr()), tmp_path / "moved")
    assert len(list(root.iterdir())) == 1
    assert undo(tmp_path / "moved" / UNDO) == 1
    assert os.path.exists(os.path.join(os.fsencode(root), b"b\xff\n.png"))


def test_copies_are_moved_by_the_script(pictures, tmp_path):
    result = script(tmp_path, "index.py", "duplicates", "pictures", "--move-to", "moved", "--move", "near")
    assert (result.returncode, "3 copies were moved to moved; 0 were left" in result.stdout) == (0, True), result.stderr
    result = script(tmp_path, "index.py", "duplicates", "--undo", "moved/undo.jsonl")
    assert result.stdout == "3 files were moved back\n"
    assert len(tree(pictures)) == 5
    for arguments in ((), ("pictures", "--new", "a.png"), ("--new", "a.png")):
        assert script(tmp_path, "index.py", "duplicates", *arguments).returncode == 2


def test_new_files_are_compared_with_an_index(place):
    shutil.copy(place / "mine/disc/disc_0.png", place / "same.png")
    with Image.open(place / "mine/rings/rings_1.png") as picture:
        picture.resize((128, 128), Image.Resampling.LANCZOS).save(place / "like.jpg", quality=90)
    draw("bars", np.random.default_rng(77)).save(place / "fresh.png")
    command = ("index.py", "duplicates", "--index", "my-index", "--new")
    result = script(place, *command, "same.png", "like.jpg", "fresh.png", "mine/bars/bars_0.png")
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "same.png is equal to disc/disc_0.png",
        "like.jpg looks like rings/rings_1.png",
        "fresh.png has no copies",
        "mine/bars/bars_0.png has no copies",  # but itself
    ]
    assert script(place, *command, "fresh.png").returncode == 0
    (place / "broken.png").write_bytes(b"broken")
    refused = script(place, *command, "broken.png")
    assert (refused.returncode, "broken.png is not an image" in refused.stderr) == (2, True)
    assert json.loads(json.dumps(refused.stderr)).count("\n") == 1
