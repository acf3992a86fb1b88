"""What every kind of index does alike: the same calls in a folder and in Milvus, against plain NumPy and Python."""

import json
import secrets

import numpy as np
import pytest
from searched import slow, unit

from dr_keras.data.exif import FIELDS
from dr_keras.errors import InputError, RunError
from dr_keras.index.cutoff import Cutoff
from dr_keras.index.export import export_index
from dr_keras.index.groups import group_images, groups_of, rename_group
from dr_keras.index.index import Entry, Index
from dr_keras.index.umap_layout import Layout

KINDS = ["folder", pytest.param("milvus", marks=pytest.mark.milvus)]
COUNT, HELD = 60, 10
NAMES = ("ant", "bee", "cat")


def stamp(number):
    return bytes([number]) * 32, 1000 + number, 1_700_000_000_000_000_000 + number


def made(number):
    label = "abc"[number % 3]
    split = "validation" if number >= COUNT - HELD else "monitor" if number % 10 == 0 else "train"
    attributes = {"year": 2000 + number, "camera": {"model": f"Pixel {number % 4}"}, "odd": bool(number % 2)}
    if number % 5 == 0:
        attributes |= {"taken": f"2024-0{1 + number % 9}-03T10:00:00", "latitude": 48 + number / 100, "longitude": 11.5}
    return Entry(f"{label}/images/{number}.JPEG", label, split, *stamp(number), attributes)


@pytest.fixture
def vectors():
    vectors = unit(COUNT)
    vectors[7] = vectors[3]  # a duplicate, for ties
    return vectors


@pytest.fixture(scope="module")
def milvus_place(milvus_address):
    """A place in Milvus that the tests take over from each other: to make a collection takes seconds."""
    return f"{milvus_address}/kinds_{secrets.token_hex(4)}"


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    return request.getfixturevalue("milvus_place") if request.param == "milvus" else str(tmp_path / "index")


@pytest.fixture
def index(place, tmp_path, vectors):
    with emptied(place, tmp_path) as index:
        index.add([made(number) for number in range(COUNT)], vectors, class_names=dict(zip("abc", NAMES, strict=True)))
        yield index


def emptied(place, tmp_path, dim=8):
    """An empty index open for writing; one in Milvus that is there already is emptied."""
    about = {"root": tmp_path / "data", "model": "m", "run": "r"}
    if not place.startswith("milvus:") or not Index.exists(place):
        return Index.create(place, dim, **about)
    index = Index.open(place, write=True)
    index.remove([id for _, id, *_ in index.records.listing()])
    collection = index._collection
    collection.forget(collection.others())
    collection.change(root=str(tmp_path / "data"))
    return index


def ids(index, rows):
    return [[entry.id for entry in index.records.entries(some)] for some in rows]


def searched():
    return [made(number).id for number in range(COUNT - HELD)]


def test_it_finds_the_nearest_of_what_is_not_held_out(index, vectors):
    queries = unit(7)
    rows, found = index.search(queries, 10)
    places, expected = slow(queries, vectors[: COUNT - HELD], 10)
    assert ids(index, rows) == [[made(place).id for place in some] for some in places]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(index) == COUNT - HELD
    rows, found = index.search(queries[:1], 1000)
    assert rows.shape == found.shape == (1, COUNT - HELD)
    many = np.concatenate([queries] * 40)
    assert np.array_equal(index.search(many, 10)[0][-7:], index.search(queries, 10)[0])


def test_equal_distances_are_in_the_order_of_adding(index, vectors):
    copies = [Entry(f"copies/{name}.png") for name in "zyxwvutsrq"]
    for start in (0, 5):
        index.add(copies[start : start + 5], np.repeat(vectors[3:4], 5, axis=0))
    rows, found = index.search(vectors[3:4], 12)
    assert ids(index, rows)[0] == [made(3).id, made(7).id, *(copy.id for copy in copies)]
    assert found[0].tolist() == [0] * 12
    assert ids(index, index.search(vectors[3:4], 3)[0])[0] == [made(3).id, made(7).id, copies[0].id]
    index.update([copies[0]], vectors[3:4])  # which is like adding it anew
    assert ids(index, index.search(vectors[3:4], 12)[0])[0][-1] == copies[0].id


@pytest.mark.parametrize("k", [1, 5, 49, 99])
def test_excluded_rows_are_left_out(index, vectors, k):
    own = np.array(list(index.records.rows_of([made(n).id for n in (3, 7, 20)]).values()))
    everything = index.search(vectors[[3, 7, 20]], 50)[0]
    rows, distances = index.search(vectors[[3, 7, 20]], k, exclude=own)
    for query, kept in enumerate(rows):
        assert kept.tolist() == [row for row in everything[query] if row != own[query]][:k]
    assert (np.diff(distances, axis=1) >= 0).all()
    rows, _ = index.search(vectors[[3]], 5, exclude=everything[:1, [0, 2, 5]])
    assert rows[0].tolist() == everything[0, [1, 3, 4, 6, 7]].tolist()


def test_wrong_searches(index):
    with pytest.raises(InputError, match=r"\(Q, 8\)"):
        index.search(unit(1, 9))
    with pytest.raises(InputError, match="at least 1"):
        index.search(unit(1), 0)
    with pytest.raises(InputError, match="a value was expected"):
        index.search(unit(1), where="label =")
    with pytest.raises(InputError, match=r"no image has the attribute 'yaer'; did you mean 'year'\?"):
        index.search(unit(1), where="yaer = 2001")
    with pytest.raises(InputError, match="keeps no parts"):
        index.search_parts(unit(1))


CONDITIONS = {
    "label = a": lambda entry: entry.label == "a",
    "class_name IN (ant, bee)": lambda entry: entry.label in "ab",
    "class_name LIKE '%A%' AND NOT split = monitor": lambda e: e.label in "ac" and e.split != "monitor",
    "year >= 2020 AND year < 2030": lambda entry: 2020 <= entry.attributes["year"] < 2030,
    "camera.model LIKE 'pixel 1%' OR year = 2000": lambda e: (
        e.attributes["camera"]["model"] == "Pixel 1" or e.attributes["year"] == 2000
    ),
    "odd = true": lambda entry: entry.attributes["odd"],
    "taken >= 2024-05": lambda entry: entry.attributes.get("taken", "") >= "2024-05",
    "taken IS NULL": lambda entry: "taken" not in entry.attributes,
    "NOT taken >= 2024-05": lambda entry: not entry.attributes.get("taken", "") >= "2024-05",
    "near(48.1, 11.5, 8 km)": lambda e: "latitude" in e.attributes and abs(e.attributes["latitude"] - 48.1) < 0.07,
    "size > 1030": lambda entry: entry.size > 1030,
    "time >= 2023-11-14": lambda entry: entry.mtime_ns > 0,
    "id GLOB 'c/images/1*'": lambda entry: entry.id.startswith("c/images/1"),
    "name = '9.JPEG'": lambda entry: entry.name == "9.JPEG",
    "year = 1": lambda _: False,
}


@pytest.mark.parametrize("where", CONDITIONS)
def test_conditions(index, vectors, where):
    kept = [made(n).id for n in range(COUNT - HELD) if CONDITIONS[where](made(n))]
    rows, distances = index.search(vectors[3:5], 100, where=where)
    assert rows.shape == (2, len(kept))
    for found in ids(index, rows):
        assert sorted(found) == sorted(kept)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_withheld_attributes(index):
    index.withhold(FIELDS)
    entry = index.get(made(5).id)[0]
    assert "taken" not in entry.attributes
    assert entry.attributes["year"] == 2005
    with pytest.raises(InputError, match="'taken' is not available here"):
        index.search(unit(1), where="taken >= 2024")
    with pytest.raises(InputError, match="sizes and times of files are not available"):
        index.search(unit(1), where="size > 3")
    assert index.records.photos().first is None


def test_names(index):
    find = index.records.find
    root = index.root
    known = index.records.rows_of([made(n).id for n in range(COUNT)])
    assert list(known) == [made(n).id for n in range(COUNT)]
    assert find("a/images/39.JPEG") == find("39.JPEG") == find("images/39.JPEG") == known["a/images/39.JPEG"]
    assert find(str(root / "a/images/39.JPEG")) == known["a/images/39.JPEG"]
    index.add([Entry("other/39.JPEG")], unit(1))
    with pytest.raises(InputError, match=r"2 images: a/images/39.JPEG, other/39.JPEG"):
        find("39.JPEG")
    with pytest.raises(InputError, match=r"no image is called.*Similar names: .*38\.JPEG"):
        find("38.JPG")
    assert index.records.matching("a/images/3?.JPEG") == [f"a/images/{n}.JPEG" for n in (30, 33, 36, 39)]
    index.add([Entry(f"odd/IMG{end}.png") for end in ("1", "[1]", "[1]x")], unit(3))
    assert index.records.matching("IMG[1].png") == ["odd/IMG[1].png"]
    assert index.records.matching("odd/IMG[1]*") == ["odd/IMG[1].png", "odd/IMG[1]x.png"]
    assert index.records.matching("dog*") == []
    with pytest.raises(InputError, match="'nobody' is not in the index"):
        index.records.known_rows(["nobody"])


@pytest.mark.parametrize(
    "id", ["caf\udce9/b\udcff.png", "日本/\U0001f600.jpg", "a'b\"c\\d/\n\t.png", "\U0010ffffx", " "]
)
def test_ids_of_any_bytes(index, id):
    vector = unit(1)
    entry = Entry(id, "caf\udce9", "", *stamp(1), {"note": "caf\u00e9 \U0001f600 \"'\\"})
    index.add([entry], vector)
    rows, _ = index.search(vector, 1)
    assert index.records.entries(rows[0]) == [entry]
    assert index.get(id)[0] == entry
    assert index.records.matching("*" + id[-2:])[-1:] == [id]
    assert index.records.class_names()["caf\udce9"] == "caf\udce9"
    index.image_files.skip({id + "x": (1, None, "is bad")})
    assert index.image_files.skipped() == {id + "x": (1, None, "is bad")}
    assert index.verify() == []
    assert index.remove([id]) == 1


def test_both_forms_of_a_name(index):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    index.add([Entry(f"one/{composed}"), Entry("two/fe\u0301e.png")], unit(2))
    assert index.records.find(decomposed) == index.records.row(f"one/{composed}")
    assert index.records.find("f\u00e9e.png") == index.records.row("two/fe\u0301e.png")


def test_listing_and_counts(index):
    assert [listed[1:] for listed in index.records.listing()] == [
        (made(n).id, made(n).label, made(n).split) for n in range(COUNT)
    ]
    assert index.records.count() == COUNT
    assert index.records.class_names() == {"a": "ant", "b": "bee", "c": "cat"}
    assert index.records.class_counts() == {"a": 17, "b": 17, "c": 16}
    assert index.records.label_count() == 3
    assert index.records.split_counts() == {"monitor": 5, "train": 45, "validation": 10}
    assert index.records.own_classes() == {"a", "b", "c"}
    photos = index.records.photos()
    assert (photos.first, photos.last) == ("2024-01-03T10:00:00", "2024-09-03T10:00:00")
    assert dict(photos.cameras) == {"Pixel 0": 13, "Pixel 1": 13, "Pixel 2": 12, "Pixel 3": 12}
    assert photos.placed == 10
    assert ids(index, [index.searched_rows()])[0] == searched()
    about = index.stats()
    assert (about["images"], about["searched"], about["classes"], about["dim"]) == (COUNT, 50, 3, 8)
    assert about["splits"] == {"monitor": 5, "train": 45, "validation": 10}


def test_changes(index, vectors):
    new = unit(3)
    entries = [Entry(f"new/{n}.png", "new", "", *stamp(n), {"n": n}) for n in range(3)]
    version = index.version
    index.add(entries, new)
    assert index.version != version
    assert len(index) == 53
    assert ids(index, index.search(new, 1)[0]) == [[entry.id] for entry in entries]
    index.update([Entry("new/0.png", "renamed", "", *stamp(9), {"m": [1, {"x": None}]})])
    changed, vector = index.get("new/0.png")
    assert (changed.label, changed.attributes) == ("renamed", {"m": [1, {"x": None}]})
    np.testing.assert_array_equal(vector, new[0])
    moved = unit(2)
    index.put([entries[1], Entry("new/7.png")], moved)
    assert ids(index, index.search(moved, 1)[0]) == [["new/1.png"], ["new/7.png"]]
    assert len(index) == 54
    index.update([made(3), made(55)], vectors[[5, 6]])
    np.testing.assert_array_equal(index.get(made(3).id)[1], vectors[5])
    assert index.remove([made(4).id, "new/7.png"]) == 2
    assert index.records.row(made(4).id) is None
    assert index.remove([]) == 0
    assert len(index) == 52
    assert index.verify() == []
    index.update([Entry("new/2.png", "new", "validation")])
    assert len(index) == 51
    assert "new/2.png" not in ids(index, index.search(new[2:], 60)[0])[0]


def test_refused_changes_change_nothing(index):
    before = index.records.listing()
    cases = [
        (lambda: index.add([made(3)], unit(1)), "is in the index already; use update"),
        (lambda: index.add([Entry("x"), Entry("x")], unit(2)), "'x' is given twice"),
        (lambda: index.add([Entry("x")], unit(1, 9)), r"expected \(1, 8\)"),
        (lambda: index.add([Entry("x")], 2 * unit(1)), "length"),
        (lambda: index.add([Entry("x")], np.full((1, 8), np.nan, np.float32)), "finite"),
        (lambda: index.update([Entry("x")], unit(1)), "'x' is not in the index"),
        (lambda: index.update([Entry("x")]), "'x' is not in the index"),
        (lambda: index.remove(["x"]), "'x' is not in the index"),
        (lambda: index.remove([made(1).id, made(1).id]), "is given twice"),
        (lambda: index.add([Entry("x", attributes={"x": {1, 2}})], unit(1)), "JSON cannot hold"),
    ]
    for change, words in cases:
        with pytest.raises(InputError, match=words):
            change()
        assert index.records.listing() == before


@pytest.mark.usefixtures("index")
def test_readers_cannot_change_it(place):
    with Index.open(place) as reader:
        for change in (
            lambda: reader.add([Entry("x")], unit(1)),
            lambda: reader.remove([made(1).id]),
            lambda: reader.image_files.skip({"x": (1, 2, "is no image")}),
            lambda: reader.image_files.unskip(["x"]),
            lambda: reader.image_files.forget_stamps([made(1).id]),
            lambda: reader.image_files.change_root("/elsewhere", {}),
        ):
            with pytest.raises(RunError, match="opened for reading"):
                change()


def test_a_reader_follows_a_writer(index, place, vectors):
    with Index.open(place) as reader:
        assert len(reader) == 50
        index.add([Entry("x/new.png", "new")], unit(1))
        index.remove([made(1).id])
        assert reader.refresh()
        assert not reader.refresh()
        assert reader.records.row("x/new.png") is not None
        assert reader.records.row(made(1).id) is None
        assert reader.records.class_counts()["new"] == 1
        assert "x/new.png" in ids(reader, reader.search(vectors[:1], 100)[0])[0]


def test_files_of_images(index):
    files = index.image_files
    assert files.stamps([made(2).id, "nothing"]) == {made(2).id: stamp(2)}
    assert files.stamps() == {made(n).id: stamp(n) for n in range(COUNT)}
    assert files.ids_by_stamp({stamp(2)[1:], stamp(3)[1:], (1, 2)}) == {
        stamp(2)[1:]: [made(2).id],
        stamp(3)[1:]: [made(3).id],
    }
    index.add([Entry("copy.png", "-", "", *stamp(2))], unit(1))
    assert files.ids_by_hash([stamp(2)[0], stamp(5)[0], b"x" * 32]) == {
        stamp(2)[0]: [made(2).id, "copy.png"],
        stamp(5)[0]: [made(5).id],
    }
    files.forget_stamps(["copy.png"])
    assert files.stamps(["copy.png"]) == {"copy.png": (None, None, None)}
    files.skip({"bad.png": (3, 4, "is no image"), "worse.png": (None, None, "is gone")})
    files.skip({"bad.png": (5, 6, "is no image")})
    assert files.skipped() == {"bad.png": (5, 6, "is no image"), "worse.png": (None, None, "is gone")}
    files.unskip(["worse.png"])
    index.add([Entry("bad.png")], unit(1))  # it can be read by now
    assert files.skipped() == {}
    files.change_root("/elsewhere", {made(2).id: (None, 7, 8)})
    assert str(index.root) == "/elsewhere"
    assert files.stamps([made(2).id])[made(2).id] == (None, 7, 8)
    assert index.verify() == []


def test_small_files_are_kept(index, place):
    assert index.read_file("calibration.json") is None
    cutoff = Cutoff(index.model, "labels", 0.9, 1.5, 0.1, 40, 0.91, 0.5, 0.8, 0.2)
    cutoff.save(index)
    data = np.random.default_rng(0).bytes(200_000)
    index.write_file("map.npz", data)
    index.write_file("map.npz", data[:70_000])
    with Index.open(place) as other:
        assert Cutoff.of(other) == cutoff
        assert other.read_file("map.npz") == data[:70_000]
        with pytest.raises(RunError, match="is damaged"):
            Layout.load(other)


def test_groups(index):
    group_images(index, groups=4)
    groups = groups_of(index)
    assert sum(group.count for group, _ in groups) == 50
    rename_group(index, groups[0][0].name, "best")
    [members] = [ids for group, ids in groups_of(index) if group.name == "best"]  # groups of one size are in any order
    assert sorted(members) == sorted(groups[0][1])
    rows, _ = index.search(unit(1), 100, where="group = best")
    assert rows.shape[1] == groups[0][0].count


def test_export(index, tmp_path):
    export_index(index, tmp_path / "out.npy")
    known = json.loads((tmp_path / "out.json").read_text())["images"]
    assert [one["id"] for one in known] == [made(n).id for n in range(COUNT)]
    assert known[5]["attributes"] == made(5).attributes
    assert np.load(tmp_path / "out.npy").shape == (COUNT, 8)


def test_an_index_is_made_once(index, place, tmp_path):
    assert (index.model, index.run, index.dim, index.head, index.exif, index.parts) == ("m", "r", 8, "trained", True, 0)
    index.close()
    assert Index.exists(place)
    with pytest.raises(RunError, match=r"exists already|is not empty"):
        Index.create(place, 8, root=tmp_path)
    with pytest.raises(RunError, match=r"there is no index|is not an index"):
        Index.open(place + "_no")
    assert not Index.exists(place + "_no")
