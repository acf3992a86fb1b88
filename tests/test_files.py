import stat

import numpy as np
import pytest

from dr_keras.atomic_files import new_file, new_folder, read_json, write_array, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), new_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder"
    for content in ("first", "second"):
        with new_folder(path) as temporary:
            (temporary / "x").write_text(content)
        assert (path / "x").read_text() == content
    with pytest.raises(RuntimeError), new_folder(path) as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert (path / "x").read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_are_as_readable_as_any(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "a.json", {"ключ": [1, 2.5]})
    write_array(tmp_path / "a.npy", np.arange(3))
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.json", "a.npy")}
    assert len(modes) == 1
    assert read_json(tmp_path / "a.json") == {"ключ": [1, 2.5]}
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
