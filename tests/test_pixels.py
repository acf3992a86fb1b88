"""The three stores of decoded images."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import script, write_folders
from rich.console import Console

from dr_keras.data import decoding
from dr_keras.data import pixel_store as pixels
from dr_keras.data.augmentation_draws import Augmentation
from dr_keras.data.batches import TripletSource
from dr_keras.data.catalog import load_catalog
from dr_keras.data.decoding import decode_files
from dr_keras.data.images import decode
from dr_keras.data.pixel_store import load_pixels
from dr_keras.data.samplers import TripletSampler
from dr_keras.data.splits import TRAIN
from dr_keras.errors import InputError

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(root, store="memory", size=16, resize="stretch"):
    catalog = load_catalog(root, monitor=0, validation=0, seed=0)
    return load_pixels(catalog, size, resize, store=store, console=QUIET)


def spoil(root):
    """Makes three files unreadable: the first, one in the middle, and the last."""
    (root / "bars" / "bars_0.png").write_bytes(b"")
    (root / "disc" / "disc_3.png").write_bytes(b"rubbish")
    (root / "rings" / "rings_9.png").write_bytes((root / "rings" / "rings_9.png").read_bytes()[:99])


@pytest.mark.parametrize(
    ("images", "size", "expected"), [(3, 1 << 30, True), (4, 1 << 30, False), (9, 800, True), (9, 999, False)]
)
def test_processes_decode_many_files_or_large_ones(tmp_path, monkeypatch, images, size, expected):
    monkeypatch.setattr(decoding, "MIN_PARALLEL_IMAGES", images)
    monkeypatch.setattr(decoding, "MIN_PARALLEL_BYTES", size)
    asked = []
    monkeypatch.setattr(decoding._Decoding, "_in_children", lambda _self, processes: asked.append(processes))
    files = [os.fspath(tmp_path / name) for name in ("a.png", "b.png")]
    for file in files:
        Path(file).write_bytes(b"x" * 450)
    decode_files([*files, "missing.png"], 8)
    assert bool(asked) is expected


@pytest.mark.parametrize("processes", [0, 1, 3])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_processes_decode_what_one_call_decodes(tmp_path, monkeypatch, processes, resize):
    monkeypatch.setattr(decoding, "BLOCK_IMAGES", 7)
    write_folders(tmp_path, each=10)
    spoil(tmp_path)
    catalog = load_catalog(tmp_path, monitor=0, validation=0, seed=0)
    done = []
    found, failures = decode_files(catalog.paths(), 24, resize, processes=processes, advance=done.append)
    assert list(failures) == [0, 13, 39]
    assert failures[0] == "is empty (0 bytes)"
    assert sum(done) == len(catalog)
    for row, path in enumerate(catalog.paths()):
        if row not in failures:
            assert np.array_equal(found[row], decode(path, 24, resize))


def test_names_that_are_not_valid_text_reach_the_child_processes(tmp_path):
    write_folders(tmp_path, each=2, classes=("bars", "日本"))
    (tmp_path / "bars" / "bars_0.png").rename(tmp_path / "bars" / os.fsdecode(b"\xff\n.png"))
    catalog = load_catalog(tmp_path, monitor=0, validation=0, seed=0)
    assert not decode_files(catalog.paths(), 8, processes=1)[1]


def test_a_child_process_that_dies_is_a_clear_error(folders, monkeypatch):
    monkeypatch.setattr(decoding.subprocesses, "command", lambda _: [sys.executable, "-c", "import os; os._exit(9)"])
    with pytest.raises(InputError, match=r"died with exit status 9"):
        decode_files([str(folders / "bars" / "bars_0.png")], 8, processes=1)


@pytest.mark.parametrize("store", ["memory", "disk", "stream"])
def test_bad_files_are_skipped_counted_and_named(tmp_path, store):
    write_folders(tmp_path, each=5, classes=("bars", "disc"))
    (tmp_path / "bars" / "bars_1.png").write_bytes(b"")
    (tmp_path / "disc" / "disc_3.png").write_bytes(b"rubbish")
    (tmp_path / "single").mkdir()
    (tmp_path / "bars" / "bars_0.png").rename(tmp_path / "single" / "one.png")
    for _ in range(2):  # the second time from the cache
        catalog, images, report = load(tmp_path, store)
        assert len(catalog) == len(images) == 8
        assert [item["id"] for item in report["skipped"]] == ["bars/bars_1.png", "disc/disc_3.png"]
        assert report["skipped"][0]["reason"] == "is empty (0 bytes)"
        assert report["skipped_count"] == 2
        assert report["classes"]["bars"] == {"train": 3, "monitor": 0, "validation": 0}
        assert report["splits"]["train"] == len(catalog.rows(TRAIN))
        assert any("only as negatives: single" in note for note in report["notes"])
        assert np.array_equal(images[3], decode(catalog.paths()[3], 16))
        assert report["store"] == store


@pytest.mark.parametrize("store", ["memory", "disk", "stream"])
def test_nothing_readable_is_an_error(tmp_path, store):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="none of the 2 images"):
        load(tmp_path, store)


def test_all_stores_give_the_same_tensors_for_the_same_step(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MOVE_CHUNK_IMAGES", 4)  # so rows after a bad file move in several blocks
    write_folders(tmp_path, each=10)
    spoil(tmp_path)
    batches = []
    for store in ("memory", "disk", "disk", "stream"):
        catalog, images, _ = load(tmp_path, store)
        assert images.shape == (37, 16, 16, 3)
        rows = catalog.rows(TRAIN)
        source = TripletSource(images, rows, TripletSampler(catalog.labels[rows], 8, 0), Augmentation(True, 2))
        batches.append([source.batch(step) for step in (0, 3, 11)])
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            assert all(np.array_equal(one[name], two[name]) for name in one)


def test_streamed_images_are_indexed_like_an_array(folders):
    kept, streamed = (load(folders, store)[1] for store in ("memory", "stream"))
    for rows in (3, slice(90, 99), np.array([5, 5, 0]), np.array([], int)):
        assert np.array_equal(kept[rows], streamed[rows])
        assert kept[rows].shape == streamed[rows].shape
    assert len(kept) == len(streamed)


def test_a_streamed_image_that_disappears_is_gray_and_reported(tmp_path):
    write_folders(tmp_path, each=3)
    catalog, images, _ = load(tmp_path, "stream")
    Path(catalog.paths()[4]).unlink()
    assert (images[4] == 128).all()
    assert images.lost == {catalog.paths()[4]}


def stores(cache):
    return sorted(path for path in (cache / "pixels").iterdir() if path.is_dir())


def decodes(monkeypatch):
    """Counts the files decoded from now on."""
    counted = []
    real = pixels.decode_files
    monkeypatch.setattr(
        pixels, "decode_files", lambda files, *a, **k: (counted.append(len(files)), real(files, *a, **k))[1]
    )
    return counted


@pytest.mark.parametrize("change", ["touched", "rewritten", "added", "removed", "renamed"])
def test_the_disk_store_is_used_again_until_a_file_changes(tmp_path, cache, monkeypatch, change):
    root = write_folders(tmp_path / "data", each=5)
    counted = decodes(monkeypatch)
    first = load(root, "disk")[1]
    assert isinstance(first, np.memmap)
    again = load(root, "disk")[1]
    assert counted == [20]
    assert np.array_equal(first, again)
    file = root / "disc" / "disc_2.png"
    if change == "touched":
        os.utime(file, ns=(1, 1))
    elif change == "rewritten":
        (root / "disc" / "disc_2.png").write_bytes((root / "bars" / "bars_0.png").read_bytes())
    elif change == "added":
        (root / "disc" / "more.png").write_bytes(file.read_bytes())
    elif change == "removed":
        file.unlink()
    else:
        file.rename(root / "disc" / "other.png")
    catalog, images, _ = load(root, "disk")
    assert len(counted) == 2
    assert all(np.array_equal(images[row], decode(path, 16)) for row, path in enumerate(catalog.paths()))
    assert len(stores(cache)) == 1  # the old one is gone
    assert len(first) == 20  # but usable by whoever has it open
    assert first.sum() > 0


def test_sizes_and_ways_of_resizing_have_stores_of_their_own(folders, cache, monkeypatch):
    counted = decodes(monkeypatch)
    for size, resize in ((16, "stretch"), (24, "stretch"), (16, "crop"), (16, "stretch"), (16, "crop")):
        assert load(folders, "disk", size, resize)[1].shape == (96, size, size, 3)
    assert len(counted) == len(stores(cache)) == 3


@pytest.mark.parametrize("damage", ["cut off", "no description", "bad description"])
def test_a_damaged_store_is_made_again(folders, cache, damage):
    expected = np.array(load(folders, "disk")[1])
    (store,) = stores(cache)
    if damage == "cut off":
        os.truncate(store / "pixels", 1000)
    elif damage == "no description":
        (store / "store.json").unlink()
    else:
        (store / "store.json").write_text("{")
    assert np.array_equal(load(folders, "disk")[1], expected)


def test_two_runs_at_once_make_one_store(folders, cache, monkeypatch):
    counted = decodes(monkeypatch)
    found = []
    threads = [threading.Thread(target=lambda: found.append(load(folders, "disk")[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [96]
    assert all(np.array_equal(found[0], other) for other in found)
    assert len(stores(cache)) == 1


def test_auto_chooses_by_size_and_room(monkeypatch, tmp_path):
    def room(disk, memory):
        monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: type("", (), {"free": disk})())
        monkeypatch.setattr(pixels.psutil, "virtual_memory", lambda: type("", (), {"available": memory})())

    gigabyte = 2**30
    room(100 * gigabyte, 100 * gigabyte)
    assert pixels._choose_store(10 * 2**20) == "memory"
    assert pixels._choose_store(gigabyte) == "disk"
    room(2 * gigabyte, 8 * gigabyte)
    assert pixels._choose_store(gigabyte) == "memory"
    room(2 * gigabyte, gigabyte)
    assert pixels._choose_store(gigabyte) == "stream"
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    room(100 * gigabyte, 100 * gigabyte)
    assert pixels._choose_store(gigabyte) == "memory"


def mount(folder: Path, size: str) -> bool:
    """Tries to mount a file system of `size`; returns whether that worked."""
    folder.mkdir()
    call = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(call, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB."""
    folder = tmp_path / "small"
    if not mount(folder, "256k"):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_that_leaves_nothing(small_disk, folders, monkeypatch):
    monkeypatch.setenv("DR_KERAS_CACHE", str(small_disk))
    with pytest.raises(InputError, match="No space left on device; use --store memory or stream"):
        load(folders, "disk", size=64)
    assert not [path for path in (small_disk / "pixels").iterdir() if path.is_dir()]


@pytest.mark.usefixtures("eagerly")
def test_a_run_on_a_full_disk_is_one_line_and_no_run_that_looks_finished(small_disk, folders):
    command = [
        *("train.py", "--data", folders, "--run", "r", "--image-size", 16, "--backbone"),
        *("resnet10", "--width", 8, "--epochs", 1, "--steps-per-epoch", 3, "--batch-size", 4, "--shift", 1),
    ]
    result = script(small_disk, *command)
    assert result.returncode == 2, result.stderr
    assert "No space left on device" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    run = small_disk / "runs" / "r"
    assert not (run / "metrics.json").exists()
    assert not list(run.glob(".*")), "temporary files were left behind"
    assert not (run / "checkpoint.npz").exists()
    assert not (run / "embedding.keras").exists()
