"""The index against plain NumPy and Python: every kind of change, refused input, and damage.

Above 400 lines because everything here changes or damages the one small index of the fixtures below.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from searched import slow, unit

from dr_keras.data.catalog import Catalog
from dr_keras.data.splits import MONITOR, TRAIN, VALIDATION
from dr_keras.errors import InputError, RunError
from dr_keras.index import database, store
from dr_keras.index.export import export_index
from dr_keras.index.index import Entry, Index
from dr_keras.index.searcher import Searcher
from dr_keras.index.write_index import write_index


def a_catalog(root):
    """40 searchable images, every tenth of them a monitor image, and 10 held-out ones."""
    rows = np.arange(50)
    ids = [f"train/{'abc'[row % 3]}/images/{row}.JPEG" for row in range(40)]
    return Catalog(
        root=root,
        source=root,
        ids=(*ids, *(f"val/images/{row - 40}.JPEG" for row in range(40, 50))),
        labels=(rows % 3).astype(np.int32),
        classes=("a", "b", "c"),
        class_names=("ant", "bee", "cat"),
        splits=np.where(rows >= 40, VALIDATION, np.where(rows % 10 == 0, MONITOR, TRAIN)).astype(np.uint8),
    )


@pytest.fixture
def vectors():
    vectors = unit(50)
    vectors[7] = vectors[3]  # a duplicate, for ties
    return vectors


@pytest.fixture
def folder(tmp_path, vectors):
    write_index(tmp_path / "index", a_catalog(tmp_path / "data"), vectors, model="m", run="r")
    return tmp_path / "index"


@pytest.fixture
def index(folder):
    with Index.open(folder, write=True) as index:
        yield index


def test_search_is_exact_and_only_over_what_is_not_held_out(index, vectors):
    queries = unit(6)
    rows, found = index.search(queries, 10)
    expected_rows, expected = slow(queries, vectors[:40], 10)
    assert np.array_equal(rows, expected_rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(index) == 40


def test_equal_distances_are_ordered_by_row_and_a_vector_is_at_zero_from_itself(index):
    rows, found = index.search(index.vectors[3:4], 3)
    assert rows[0, :2].tolist() == [3, 7]
    assert found[0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("k", [1, 5, 39, 40, 99])
def test_exclude_leaves_out_one_row_and_nothing_else(index, k):
    own = np.array([3, 7, 20])
    everything, _ = index.search(index.vectors[own], 40)
    rows, found = index.search(index.vectors[own], k, exclude=own)
    assert rows.shape == (3, min(k, 39))
    for query, kept in enumerate(rows):
        assert kept.tolist() == [row for row in everything[query] if row != own[query]][:k]
    assert (np.diff(found, axis=1) >= 0).all()


def test_exclude_of_a_held_out_row_keeps_k_neighbors_and_several_rows_may_be_left_out(index):
    rows, _ = index.search(index.vectors[45:46], 5, exclude=np.array([45]))
    assert rows.shape == (1, 5)
    everything, _ = index.search(index.vectors[45:46], 8)
    rows, _ = index.search(index.vectors[45:46], 5, exclude=everything[:, [0, 2, 5]])
    assert rows[0].tolist() == everything[0, [1, 3, 4, 6, 7]].tolist()


def test_wrong_vectors_and_k(index):
    with pytest.raises(InputError, match=r"\(Q, 8\)"):
        index.search(unit(1, 9))
    with pytest.raises(InputError, match="at least 1"):
        index.search(unit(1), 0)
    with pytest.raises(InputError, match="a value was expected"):
        index.search(unit(1), where="label =")


def test_find_and_matching(index):
    assert index.records.find("train/b/images/1.JPEG") == 1
    assert index.records.find("39.JPEG") == 39
    assert index.records.find("b/images/1.JPEG") == 1
    assert index.records.find(str(index.root / "val/images/5.JPEG")) == 45
    with pytest.raises(InputError, match=r"2 images: train/b/images/1.JPEG, val/images/1.JPEG"):
        index.records.find("1.JPEG")
    with pytest.raises(InputError, match=r"no image is called.*Similar names: .*38\.JPEG"):
        index.records.find("38.JPG")
    assert index.records.matching("39.JPEG") == ["train/a/images/39.JPEG"]
    assert index.records.matching("val/*/?.JPEG")[:2] == ["val/images/0.JPEG", "val/images/1.JPEG"]
    index.add([Entry(f"odd/IMG{end}.png") for end in ("1", "[1]", "[1]x")], unit(3))
    assert index.records.matching("IMG[1].png") == ["odd/IMG[1].png"]
    assert index.records.matching("odd/IMG[1]*") == ["odd/IMG[1].png", "odd/IMG[1]x.png"]
    assert index.records.matching("dog*") == []


def test_a_copy_and_an_opened_index_are_the_same(index, tmp_path, vectors):
    index.save(tmp_path / "copy")
    with pytest.raises(RunError, match="choose another place"):
        index.save(tmp_path / "copy")
    with Index.open(tmp_path / "copy") as copy:
        assert np.array_equal(copy.vectors, vectors)
        assert copy.records.listing() == index.records.listing()
        assert copy.records.class_names() == {"a": "ant", "b": "bee", "c": "cat"}
        assert (copy.root, copy.model, copy.run, copy.dim, len(copy)) == (index.root, "m", "r", 8, 40)
        assert copy.verify() == []
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["index.sqlite", "vectors-0.f32"]


def test_a_copy_has_the_files_that_are_kept_with_the_index(index, tmp_path):
    for name in store.KEPT_FILES:
        index.write_file(name, name.encode())
    index.save(tmp_path / "copy")
    with Index.open(tmp_path / "copy") as copy:
        assert {name: copy.read_file(name) for name in store.KEPT_FILES} == {
            "head.npz": b"head.npz",
            "calibration.json": b"calibration.json",
            "map.npz": b"map.npz",
        }


def test_other_threads_see_a_state_while_one_refreshes(index):
    index.add([Entry(f"{n}.png", "new") for n in range(20)], unit(20))
    before = len(index.vectors)
    stop, seen = threading.Event(), []

    def look():
        while not stop.is_set():
            seen.append((str(index.root), index.dim, len(index.vectors)))
            time.sleep(1e-4)

    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        try:
            for number in range(50):
                index.refresh()
                if number % 5 == 0:
                    index.add([Entry(f"new/{number}.png", "new")], unit(1))
        finally:
            stop.set()
        for one in looking:
            one.result()
    assert {count for *_, count in seen} <= set(range(before, before + 11))


def test_too_few_images_for_an_engine(index):
    with pytest.raises(InputError, match="50 images are too few for the engine hnsw"):
        index.engine.build("hnsw")
    assert index.stats()["engine"]["name"] == "flat"


def test_changes_do_what_they_say(index, vectors):
    index.add([Entry("new/1.png", "d", hash=b"h" * 32, size=5, mtime_ns=6, attributes={"a": [1, None]})], unit(1))
    entry, vector = index.get("new/1.png")
    assert entry == Entry("new/1.png", "d", "", b"h" * 32, 5, 6, {"a": [1, None]})
    assert index.search(vector[None], 1)[0].tolist() == [[50]]
    other = unit(1)
    index.update([Entry("new/1.png", "a")], other)
    entry, vector = index.get("new/1.png")
    assert (entry, vector.tolist()) == (Entry("new/1.png", "a"), other[0].tolist())
    assert index.search(other, 1)[0].tolist() == [[51]]
    index.update([Entry("new/1.png", "e", split="validation")])
    assert len(index) == 40
    index.update([Entry("new/1.png", "e")])
    assert len(index) == 41
    assert index.records.class_names() == {"a": "ant", "b": "bee", "c": "cat", "d": "d", "e": "e"}
    assert index.remove(["new/1.png", "train/a/images/0.JPEG"]) == 2
    assert index.records.row("new/1.png") is None
    assert len(index) == 39
    rows, _ = index.search(vectors[:1], 50)
    assert 0 not in rows
    assert rows.shape == (1, 39)
    assert index.verify() == []
    assert index.remove([]) == 0


def test_updates_leave_no_gaps_behind(index, monkeypatch):
    monkeypatch.setattr("dr_keras.index.local_index.MIN_GAPS", 20)
    for _ in range(5):
        index.update([Entry(f"val/images/{n}.JPEG", split="validation") for n in range(10)], unit(10))
    assert index.stats()["gaps"] <= 20
    assert index.verify() == []


def test_near_copies_are_ranked_exactly(index):
    copies = unit(1) + 1e-4 * unit(30)  # too close for matrix products to tell apart
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    index.add([Entry(f"copies/{n}") for n in range(30)], copies)
    rows, found = index.search(copies, 1)
    assert (rows[:, 0].tolist(), found.max()) == (list(range(50, 80)), 0)


def test_what_is_refused_changes_nothing(index):
    before = (index.stats(), index.records.listing())
    bad = unit(1)
    for change, message in (
        (lambda: index.add([Entry("val/images/0.JPEG")], bad), "is in the index already"),
        (lambda: index.add([Entry("x"), Entry("x")], unit(2)), "'x' is given twice"),
        (lambda: index.add([Entry("x")], unit(2)), r"vectors are \(2, 8\); expected \(1, 8\)"),
        (lambda: index.add([Entry("x")], 2 * bad), "vector 0 is not finite or not of unit length"),
        (lambda: index.add([Entry("x")], bad * np.nan), "vector 0 is not finite"),
        (lambda: index.add([Entry("x", attributes={"a": {1}})], bad), "JSON cannot hold"),
        (lambda: index.add([Entry("x", attributes={"a": float("nan")})], bad), "JSON cannot hold"),
        (lambda: index.update([Entry("x")], bad), "'x' is not in the index"),
        (lambda: index.update([Entry("x")]), "'x' is not in the index"),
        (lambda: index.remove(["val/images/0.JPEG", "x"]), "'x' is not in the index"),
        (lambda: index.get("x"), "'x' is not in the index"),
    ):
        with pytest.raises(InputError, match=message):
            change()
    assert (index.stats(), index.records.listing()) == before
    index.close()
    with pytest.raises(RunError, match="exists and is not empty"):
        Index.create(index.folder, 8, root=".")


def test_names_need_not_be_utf_8(index, tmp_path):
    index.add([Entry("odd\udcff/\udcfe 'x'.png", "odd\udcff")], unit(1))
    assert index.records.entries([50])[0].label == "odd\udcff"
    assert index.records.find("\udcfe 'x'.png") == 50
    assert index.records.matching("odd\udcff/*") == ["odd\udcff/\udcfe 'x'.png"]
    export_index(index, tmp_path / "odd.npy")
    assert json.loads((tmp_path / "odd.json").read_text())["images"][50]["id"] == "odd\udcff/\udcfe 'x'.png"
    assert index.remove(["odd\udcff/\udcfe 'x'.png"]) == 1


def test_one_writer_and_readers_that_keep_their_state(index):
    with pytest.raises(RunError, match=rf"is being written to by .*process {os.getpid()}, since"):
        Index.open(index.folder, write=True)
    with Index.open(index.folder) as reader:
        with pytest.raises(RunError, match="opened for reading"):
            reader.remove(["val/images/0.JPEG"])
        state = (len(reader), reader.records.listing(), reader.search(unit(3), 40)[0].shape)
        index.remove([f"train/{'abc'[row % 3]}/images/{row}.JPEG" for row in range(10)])
        index.add([Entry(f"new/{n}") for n in range(5)], unit(5))
        index.compact()
        assert (len(reader), reader.records.listing(), reader.search(unit(3), 40)[0].shape) == state
        assert reader.verify() == []
        assert reader.refresh()
        assert not reader.refresh()
        assert (len(reader), reader.records.row("new/4")) == (35, 44)
    index.close()
    Index.open(index.folder, write=True).close()  # the lock was released


def test_a_reader_in_another_process_sees_each_change_whole(index):
    code = (
        "import sys; from dr_keras.index.index import Index\n"
        "index = Index.open(sys.argv[1]); print('ready', flush=True)\n"
        "for _ in sys.stdin:\n"
        "    for _ in range(200):\n"
        "        index.refresh(); assert len(index) % 40 == 0, len(index); assert index.verify() == []\n"
        "    print('done', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(index.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("go\n")
        child.stdin.flush()
        for number in range(30):
            index.add([Entry(f"{number}/{n}") for n in range(40)], unit(40))
            if number % 3 == 2:
                index.remove([f"{number}/{n}" for n in range(40)])
            if number % 10 == 9:
                index.compact()
        assert child.stdout.readline() == "done\n"
        child.stdin.close()
    assert child.returncode == 0


def test_only_one_of_several_makes_an_index(tmp_path):
    code = (
        "import sys; import numpy as np; from dr_keras.errors import RunError\n"
        "from dr_keras.index.index import Entry, Index\n"
        "print(flush=True); sys.stdin.readline()\n"
        "try: index = Index.create(sys.argv[1], 4, root='/')\n"
        "except RunError as error: sys.exit(str(error))\n"
        "index.add([Entry('a')], np.eye(4, dtype=np.float32)[:1]); sys.stdin.read()\n"
    )
    for turn in range(3):
        place = tmp_path / str(turn)
        command = [sys.executable, "-c", code, str(place)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        children = [subprocess.Popen(command, **pipes) for _ in range(4)]
        for child in children:
            child.stdout.readline()
        for child in children:
            child.stdin.write(b"\n")
            child.stdin.flush()
        for _ in range(6000):
            if sum(child.poll() is None for child in children) <= 1:  # the one that created it keeps writing
                break
            time.sleep(0.01)
        said = [child.communicate()[1].decode() for child in children]
        assert sorted(child.returncode for child in children) == [0, 1, 1, 1], said
        assert all("is being written to by" in text or "is not empty" in text for text in said if text)
        with Index.open(place) as index:
            assert (len(index), index.verify()) == (1, [])
    place.joinpath("index.sqlite").write_bytes(b"damaged")
    with Index.create(place, 4, root="/", replace=True) as index:
        assert (len(index), index.verify()) == (0, [])
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be used"):
        Index.create(tmp_path / "file", 4, root="/")


@pytest.mark.parametrize("moment", ["map", "look"])
def test_an_error_after_a_compaction_was_made_loses_nothing(index, vectors, monkeypatch, moment):
    index.remove(["train/a/images/0.JPEG"])

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "map":
            patch.setattr(store.Store, "_mapped", fail)
        else:
            patch.setattr(Searcher, "refresh", fail)
        with pytest.raises(KeyboardInterrupt):
            index.compact()
    if moment == "map":
        with pytest.raises(RunError, match="could not be refreshed; open it again"):
            index.search(vectors[:1])
    index.refresh()
    index.close()
    with Index.open(index.folder, write=True) as index:
        assert (index.stats()["images"], index.stats()["gaps"], index.verify()) == (49, 0, [])


def test_what_a_killed_process_left_is_removed(index):
    for name in ("vectors-7.f32", "engine-hnsw-3.faiss", ".engine-hnsw-4.xyz.faiss"):
        (index.folder / name).write_bytes(b"left")
    index.close()
    with pytest.raises(RunError, match="is closed"):
        index.search(unit(1))
    Index.open(index.folder, write=True).close()
    assert sorted(file.name for file in index.folder.iterdir()) == ["index.sqlite", "lock", "vectors-0.f32"]


@pytest.mark.parametrize("file", ["vectors-0.f32", "index.sqlite"])
@pytest.mark.parametrize("damage", ["removed", "empty", "truncated", "altered"])
def test_damage_is_noticed_when_it_is_opened(folder, file, damage):
    path = folder / file
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif file == "index.sqlite":
        path.write_bytes(b"no database" + data[11:])
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RunError):
        Index.open(folder).verify()


def test_verify_names_each_damaged_image(folder, vectors):
    path = folder / "vectors-0.f32"
    damaged = vectors.copy()
    damaged[4, 2] += 1e-6
    damaged[9] = np.nan
    damaged[44] *= 2
    path.write_bytes(damaged.tobytes()[:-4])
    with Index.open(folder, repair=True) as index:
        found = {one.id for one in index.verify()}
    assert path.stat().st_size == 50 * 8 * 4 - 4  # verifying changes nothing
    assert found == {f"train/{'abc'[row % 3]}/images/{row}.JPEG" for row in (4, 9)} | {
        "val/images/4.JPEG",
        "val/images/9.JPEG",
    }


def test_vectors_of_a_wrong_length_are_found_though_their_checksum_is_right(folder, vectors):
    damaged = vectors.copy()
    damaged[3] *= 2
    (folder / "vectors-0.f32").write_bytes(damaged.tobytes())
    with sqlite3.connect(folder / "index.sqlite") as db:
        crc = zlib.crc32(damaged[3].data, zlib.crc32(b"train/a/images/3.JPEG"))
        db.execute("UPDATE images SET crc = ? WHERE row = 3", (crc,))
        db.execute("UPDATE segments SET crc = ?", (zlib.crc32(damaged.data),))
        db.execute("DELETE FROM images WHERE row = 30")
    with Index.open(folder) as index:
        one, lost = index.verify()
    assert one.id == "train/a/images/3.JPEG"
    assert one.what.startswith("its vector is of length")
    assert lost.what == "1 rows belong to no image and would be found, 30 first"


def test_another_format_says_so(folder):
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute("UPDATE meta SET value = '9' WHERE key = 'format'")
    with pytest.raises(RunError, match=r"format 9.*reads format 2"):
        Index.open(folder)


def test_a_full_disk_leaves_the_index_as_it_was(index, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = index.records.listing()
    for name in ("vector_file.write_at", "vector_file.os.fdatasync"):
        with monkeypatch.context() as patch:
            patch.setattr(f"dr_keras.index.{name}", full)
            with pytest.raises(RunError, match="No space left on device"):
                index.add([Entry("new/1")], unit(1))
        assert index.records.listing() == before
        assert (index.folder / "vectors-0.f32").stat().st_size == 50 * 8 * 4
    with monkeypatch.context() as patch:
        patch.setattr("dr_keras.index.vector_file.os.fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            index.compact()
    assert len(list(index.folder.glob("vectors-*"))) == 1
    db = index._store.db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(RunError, match="full"):
        index.add([Entry(f"new/{n}", attributes={"long": "x" * 1000}) for n in range(200)], unit(200))
    assert index.records.listing() == before
    assert index.verify() == []


@pytest.mark.parametrize("read_only", [True, False])
def test_a_folder_that_may_not_be_written_can_be_read(folder, monkeypatch, read_only):
    connect = sqlite3.connect

    def refused(address, **options):
        if "immutable" not in address and "memory" not in address:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(address, **options)

    with monkeypatch.context() as patch:
        patch.setattr(database.sqlite3, "connect", refused)
        patch.setattr(database.os, "statvfs", lambda _: _Flags(read_only))
        with pytest.raises(RunError, match="unable to open"):
            Index.open(folder, write=True)
        reader = Index.open(folder)
        assert (len(reader), reader.verify()) == (40, [])
    with Index.open(folder, write=True) as index:
        index.add([Entry("new")], unit(1))
        if not read_only:
            with pytest.raises(RunError, match="may not be written here"), monkeypatch.context() as patch:
                patch.setattr(database.sqlite3, "connect", refused)
                patch.setattr(database.os, "statvfs", lambda _: _Flags(False))
                patch.setattr(database.time, "sleep", lambda _: None)
                Index.open(folder)  # the log cannot be read
    if not read_only:
        assert reader.refresh()
        assert len(reader) == 41
    reader.close()


class _Flags:
    """The result of statvfs for a file system."""

    def __init__(self, read_only):
        self.f_flag = os.ST_RDONLY if read_only else 0


def test_exports_hold_everything(index, tmp_path, vectors):
    import pyarrow.parquet as pq

    index.remove(["train/b/images/1.JPEG"])
    index.add([Entry("new/1.png", "d", hash=b"h" * 32, size=5, mtime_ns=6, attributes={"a": 1})], vectors[:1])
    export_index(index, tmp_path / "all.npy")
    export_index(index, tmp_path / "all.parquet")
    expected = np.concatenate([vectors[:1], vectors[2:], vectors[:1]])
    assert np.array_equal(np.load(tmp_path / "all.npy"), expected)
    known = json.loads((tmp_path / "all.json").read_text())
    table = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert [row["id"] for row in table] == [image["id"] for image in known["images"]]
    assert np.array_equal(np.array([row["vector"] for row in table], np.float32), expected)
    last = {"id": "new/1.png", "label": "d", "split": "", "sha256": "68" * 32, "size": 5, "mtime_ns": 6}
    assert known["images"][-1] == last | {"attributes": {"a": 1}}
    assert table[-1] == last | {"attributes": '{"a": 1}', "vector": pytest.approx(vectors[0].tolist())}
    with pytest.raises(InputError, match=r"ends in .csv; an index is exported as"):
        export_index(index, tmp_path / "all.csv")
    with pytest.raises(RunError, match="cannot be used"):
        export_index(index, Path("/proc/nowhere/all.npy"))


def test_vectors_are_compared_with_their_checksums_unless_nothing_touched_them(tmp_path, monkeypatch):
    vectors = unit(20)
    with Index.create(tmp_path / "index", vectors.shape[1], root="/") as index:
        index.put([Entry(f"{number}.jpg", "") for number in range(20)], vectors)
    compared = []
    compare = store.Store._compare
    monkeypatch.setattr(store.Store, "_compare", lambda one, *rest: (compared.append(one.folder), compare(one, *rest)))
    Index.open(tmp_path / "index").close()
    assert not compared
    [file] = (tmp_path / "index").glob("vectors-*.f32")
    os.utime(file, ns=(1, file.stat().st_mtime_ns))  # the times that one can set are as before
    Index.open(tmp_path / "index").close()
    assert len(compared) == 1
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    Index.open(tmp_path / "copy").close()
    assert len(compared) == 2
    with Index.open(tmp_path / "copy", write=True) as index:
        index.put([Entry("new.jpg", "")], vectors[:1])
    compared.clear()
    Index.open(tmp_path / "copy").close()
    assert not compared
