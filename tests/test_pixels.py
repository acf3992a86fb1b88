import numpy as np
import pytest
from conftest import write_folders

from dr_keras.data import TRAIN
from dr_keras.data.catalog import load_catalog
from dr_keras.data.images import decode
from dr_keras.data.pixels import decode_files, load_pixels
from dr_keras.errors import InputError


def test_threads_decode_what_one_call_decodes(folders):
    catalog = load_catalog(folders, monitor=0, validation=0, seed=0)
    done = []
    pixels, failures = decode_files(catalog.paths(), 24, threads=3, advance=done.append)
    assert not failures
    assert sum(done) == len(catalog)
    assert np.array_equal(pixels, np.stack([decode(path, 24) for path in catalog.paths()]))


def test_bad_files_are_skipped_counted_and_named(tmp_path):
    write_folders(tmp_path, each=5, classes=("bars", "disc"))
    (tmp_path / "bars" / "bars_1.png").write_bytes(b"")
    (tmp_path / "disc" / "disc_3.png").write_bytes(b"rubbish")
    (tmp_path / "single").mkdir()
    (tmp_path / "bars" / "bars_0.png").rename(tmp_path / "single" / "one.png")
    catalog, pixels, report = load_pixels(load_catalog(tmp_path, monitor=0, validation=0, seed=0), 16)
    assert len(catalog) == len(pixels) == 8
    assert [item["id"] for item in report["skipped"]] == ["bars/bars_1.png", "disc/disc_3.png"]
    assert report["skipped"][0]["reason"] == "is empty (0 bytes)"
    assert report["skipped_count"] == 2
    assert report["classes"]["bars"] == {"train": 3, "monitor": 0, "validation": 0}
    assert report["splits"]["train"] == len(catalog.rows(TRAIN))
    assert any("negatives only: single" in note for note in report["notes"])
    assert np.array_equal(pixels[3], decode(catalog.paths()[3], 16))


def test_nothing_readable_is_an_error(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="none of the 2 images"):
        load_pixels(load_catalog(tmp_path, monitor=0, validation=0, seed=0), 16)
