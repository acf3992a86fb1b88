"""Syncing folders into an index: new, changed, touched, broken and missing files."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from conftest import write_folders

from dr_keras.errors import InputError, RunError
from dr_keras.index import batch
from dr_keras.index.index import Entry, Index
from dr_keras.index.repair import repair_index
from dr_keras.index.sync import Reader, add_files, sync_folder, timed_chunks
from dr_keras.progress import stderr

SIZE = 8
SIDES = {"width": 32, "height": 32}  # what a drawn picture says of itself


class Counting:
    """Computes vectors from pixels, and records how many images were requested."""

    def __init__(self):
        self.asked = []

    def __call__(self, pixels):
        self.asked.append(len(pixels))
        values = pixels.reshape(len(pixels), -1)[:, :: pixels[0].size // 16][:, :16].astype(np.float32) + 1
        return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def embed():
    return Counting()


@pytest.fixture
def reader(embed):
    return Reader(embed, SIZE, "stretch")


@pytest.fixture
def pictures(tmp_path):
    return write_folders(tmp_path / "pictures", each=3)


@pytest.fixture
def index(tmp_path, pictures):
    with Index.create(tmp_path / "index", 16, root=pictures) as index:
        yield index


def counts(report):
    return report.added, report.updated, report.unchanged, report.removed, report.skipped


def ids(index):
    return {id for _, id, *_ in index.records.listing()}


def test_only_what_changes_is_embedded(index, pictures, reader, embed):
    (pictures / "loose.png").write_bytes((pictures / "disc" / "disc_1.png").read_bytes())
    (pictures / "broken.jpg").write_bytes(b"no picture")
    report = sync_folder(index, pictures, reader, console=stderr())
    assert counts(report) == (13, 0, 0, 0, 1)
    assert report.unread == {"broken.jpg": "is not an image in a known format"}
    assert str(report) == "13 added, 0 updated, 0 unchanged, 1 could not be read"
    assert report.details() == ["could not be read: broken.jpg is not an image in a known format"]
    entry, vector = index.get("disc/disc_1.png")
    status = (pictures / "disc" / "disc_1.png").stat()
    content = hashlib.sha256((pictures / "disc" / "disc_1.png").read_bytes()).digest()
    assert entry == Entry("disc/disc_1.png", "disc", "", content, status.st_size, status.st_mtime_ns, SIDES)
    assert index.get("loose.png")[0].label == "-"
    assert np.array_equal(index.get("loose.png")[1], vector)

    assert counts(sync_folder(index, pictures, reader, console=stderr())) == (0, 0, 13, 0, 1)
    assert embed.asked == [13]

    os.utime(pictures / "disc" / "disc_0.png", ns=(1, 1))  # touched: read but not embedded
    (pictures / "rings" / "rings_0.png").unlink()
    shutil.copy(pictures / "bars" / "bars_0.png", pictures / "plain" / "plain_0.png")
    shutil.copy(pictures / "bars" / "bars_1.png", pictures / "broken.jpg")
    (pictures / "bars" / "bars_2.png").write_bytes(b"broken now")
    report = sync_folder(index, pictures, reader, console=stderr())
    assert (counts(report), report.missing) == ((1, 1, 10, 0, 1), ["rings/rings_0.png"])
    assert str(report).endswith("10 unchanged, 1 missing, 1 could not be read")
    assert report.details()[1:] == ["missing: rings/rings_0.png", "--remove-missing removes those that are missing"]
    report = sync_folder(index, pictures, reader, remove_missing=True, console=stderr())
    assert (counts(report), report.missing) == ((0, 0, 12, 1, 1), ["rings/rings_0.png"])
    assert embed.asked == [13, 2]
    assert index.get("disc/disc_0.png")[0].mtime_ns == 1
    assert np.array_equal(index.get("plain/plain_0.png")[1], index.get("bars/bars_0.png")[1])
    assert ids(index) == {path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*g")} - {
        "bars/bars_2.png"
    }
    assert index.verify() == []


def test_what_is_added_keeps_its_attributes_and_files_elsewhere_their_paths(index, pictures, reader, embed, tmp_path):
    add_files(index, [pictures / "disc"], reader, attributes={"year": 2020}, console=stderr())
    elsewhere = write_folders(tmp_path / "elsewhere", each=1, seed=1)
    add_files(index, [elsewhere], reader, attributes={"year": 2021}, console=stderr())
    own = elsewhere / "bars" / "bars_0.png"
    assert index.get(str(own))[0].label == "bars"
    assert index.records.find("elsewhere/bars/bars_0.png") == index.records.row(str(own))
    report = add_files(index, [own], reader, label="stripes", attributes={"good": True}, console=stderr())
    assert counts(report) == (0, 0, 1, 0, 0)
    assert index.get(str(own))[0].label == "stripes"
    assert dict(index.get(str(own))[0].attributes) == SIDES | {"year": 2021, "good": True}
    found, _ = index.search(index.get(str(own))[1][None], 99, where="year = 2020")
    assert {entry.name for entry in index.records.entries(found[0])} == {"disc_0.png", "disc_1.png", "disc_2.png"}
    shutil.copy(elsewhere / "disc" / "disc_0.png", own)
    assert counts(add_files(index, [own], reader, console=stderr())) == (0, 1, 0, 0, 0)
    assert dict(index.get(str(own))[0].attributes) == SIDES | {"year": 2021, "good": True}
    assert embed.asked == [3, 4, 1]
    sync_folder(index, pictures, reader, console=stderr())
    assert len(index) == 12 + 4  # images elsewhere stay
    shutil.rmtree(elsewhere)
    elsewhere.mkdir()
    with pytest.raises(InputError, match="holds no images; if that is meant"):
        sync_folder(index, elsewhere, reader, console=stderr())
    assert len(index) == 16
    assert counts(sync_folder(index, elsewhere, reader, empty=True, remove_missing=True, console=stderr()))[3] == 4


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("new/deep/a.png", "new"),
        ("deep/bars/b.png", "bars"),
        ("deep/disc/b.png", "deep"),
        ("train/new/images/c.png", "new"),
        ("val/d.png", "val"),
        ("e.png", "-"),
    ],
)
def test_the_class_is_the_innermost_folder_known_to_the_run_or_the_first_folder(index, pictures, reader, path, label):
    sync_folder(index, pictures, reader, console=stderr())
    index.update([Entry("bars/bars_0.png", "bars", split="train")])  # part of the run's own data
    (pictures / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(pictures / "bars" / "bars_0.png", pictures / path)
    sync_folder(index, pictures, reader, console=stderr())
    assert index.get(path)[0].label == label


def test_every_chunk_is_kept(index, pictures, reader, embed, monkeypatch):
    monkeypatch.setattr("dr_keras.index.sync.CHUNK_IMAGES", 5)
    plain = embed.__call__

    def interrupted(pixels):
        if len(embed.asked) == 1:
            raise KeyboardInterrupt
        return plain(pixels)

    with pytest.raises(KeyboardInterrupt):
        sync_folder(index, pictures, Reader(interrupted, SIZE, "stretch"), console=stderr())
    assert len(index) == 5
    assert counts(sync_folder(index, pictures, reader, console=stderr())) == (7, 0, 5, 0, 0)
    assert embed.asked == [5, 5, 2]


def test_temporarily_unreadable_files_are_not_forgotten(index, pictures, reader, monkeypatch):
    add_files(index, [pictures], reader, attributes={"note": "mine"}, label="keep", console=stderr())
    file = pictures / "bars" / "bars_0.png"
    os.utime(file, ns=(1, 1))
    opened, listed = os.open, os.scandir

    def refused(path, *arguments, **options):
        if str(path) == str(file):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refused)
        report = sync_folder(index, pictures, reader, console=stderr())
    assert (report.skipped, report.removed, index.image_files.skipped()) == (1, 0, {})
    assert dict(index.get("bars/bars_0.png")[0].attributes) == SIDES | {"note": "mine"}
    assert counts(sync_folder(index, pictures, reader, console=stderr())) == (0, 0, 12, 0, 0)

    def unlisted(folder):
        if str(folder) == str(pictures / "disc"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    (pictures / "rings" / "rings_0.png").unlink()
    shutil.move(pictures / "disc" / "disc_0.png", pictures)
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", unlisted)
        report = sync_folder(index, pictures, reader, remove_missing=True, console=stderr())
    # Files in a folder that cannot be listed may still exist.
    assert report.missing == ["rings/rings_0.png"]
    assert report.unlisted == [(str(pictures / "disc"), "Permission denied")]
    assert {"disc/disc_0.png", "disc/disc_1.png", "disc_0.png"} <= ids(index)
    assert len(index) == 12


def test_a_file_that_is_still_being_copied_is_tried_again(index, pictures, reader, monkeypatch):
    whole = (pictures / "bars" / "bars_0.png").read_bytes()
    file = pictures / "half.png"
    file.write_bytes(whole[: len(whole) // 2])
    decode = batch.decode_with_parts

    def complete_after(*arguments, **options):
        try:
            return decode(*arguments, **options)
        finally:
            file.write_bytes(whole)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "decode_with_parts", complete_after)
        assert sync_folder(index, pictures, reader, console=stderr()).skipped == 1
    assert counts(sync_folder(index, pictures, reader, console=stderr())) == (1, 0, 12, 0, 0)


def test_a_named_file_may_have_any_ending_and_stays_while_it_is_there(index, pictures, reader):
    shutil.copy(pictures / "bars" / "bars_0.png", pictures / "picture")
    add_files(index, [pictures / "picture"], reader, console=stderr())
    sync_folder(index, pictures, reader, console=stderr())
    assert len(index) == 13
    (pictures / "broken.png").write_bytes(b"broken")
    sync_folder(index, pictures, reader, console=stderr())
    assert set(index.image_files.skipped()) == {"broken.png"}
    add_files(index, [pictures / "broken.png"], reader, console=stderr())  # retried in vain
    (pictures / "broken.png").unlink()
    (pictures / "picture").unlink()
    assert counts(sync_folder(index, pictures, reader, remove_missing=True, console=stderr())) == (0, 0, 12, 1, 0)
    assert index.image_files.skipped() == {}


def test_damage_in_unused_rows_is_repaired_too(index, pictures, reader):
    sync_folder(index, pictures, reader, console=stderr())
    row = index.records.row("bars/bars_0.png")
    index.remove(["bars/bars_0.png"])
    index.close()
    file = index.folder / "vectors-0.f32"
    data = bytearray(file.read_bytes())
    data[row * 64] ^= 1
    file.write_bytes(data)
    with Index.open(index.folder, write=True, repair=True) as index:
        assert [one.what for one in index.verify()] == ["vectors of removed images were altered: a checksum differs"]
        repair_index(index, pytest.fail, console=stderr())
    with Index.open(index.folder) as index:
        assert (len(index), index.verify()) == (11, [])


def test_what_cannot_be_used(index, tmp_path, reader):
    for paths, message in (([tmp_path / "absent"], "does not exist"), ([tmp_path / "empty"], "holds no images")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for given in (paths, [*paths, index.root], [index.root, *paths]):
            with pytest.raises(InputError, match=message):
                add_files(index, given, reader, console=stderr())
    assert add_files(index, [index.root, index.root], reader, console=stderr()).added == 12
    with pytest.raises(InputError, match="there is no folder"):
        sync_folder(index, tmp_path / "absent", reader, console=stderr())


def test_repair_embeds_again_and_removes_what_is_gone(index, tmp_path, pictures, reader, embed):
    sync_folder(index, pictures, reader, console=stderr())
    index.add([Entry("own.png", "bars", "validation", attributes={"n": 1})], index.vectors[:1])
    before = {id: index.get(id) for id in ids(index)}
    index.close()
    file = tmp_path / "index" / "vectors-0.f32"
    data = bytearray(file.read_bytes()[:-40])  # the last vector is gone and the one before it damaged
    data[3] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match="verify --repair"):
        Index.open(tmp_path / "index")
    (pictures / "bars" / "bars_0.png").unlink()
    embed.asked.clear()
    with Index.open(tmp_path / "index", write=True, repair=True) as index:
        damaged = {one.id for one in index.verify()}
        assert damaged == {"bars/bars_0.png", "own.png"} | ({"rings/rings_2.png"} & damaged)
        report = repair_index(index, lambda: reader, console=stderr())
        assert report.removed == 2
        assert report.unchanged == len(before) - len(damaged)
        assert index.verify() == []
    with Index.open(tmp_path / "index") as index:
        assert ids(index) == before.keys() - {"bars/bars_0.png", "own.png"}
        for id in ids(index):
            assert index.get(id)[0] == before[id][0]
            assert np.array_equal(index.get(id)[1], before[id][1])
    assert repair_of_nothing(tmp_path / "index") == 0


def repair_of_nothing(folder):
    """Repairs an index that has no problems, without a model; returns how many problems are left."""
    with Index.open(folder, write=True, repair=True) as index:
        repair_index(index, pytest.fail, console=stderr())
        return len(index.verify())


def test_chunks_grow_and_shrink_with_the_time_that_an_image_takes(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("dr_keras.index.sync.time.monotonic", lambda: clock[0])
    files = [str(number) for number in range(40_000)]

    def sizes(seconds, most=8192, count=40_000):
        found, taken = [], []
        for chunk in timed_chunks(files[:count], most):
            found.append(len(chunk))
            taken += chunk
            clock[0] += seconds * len(chunk)
        assert taken == files[:count]
        return found

    assert sizes(1e-9)[:4] == [256, 2048, 8192, 8192]
    assert sizes(0.1, count=500) == [256, 150, 94]
    assert sizes(60.0, count=258) == [256, 1, 1]
    assert sizes(1e-9, most=5, count=12) == [5, 5, 2]
    assert sizes(1.0, count=0) == []
