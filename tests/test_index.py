import json

import numpy as np
import pytest

from dr_keras.errors import InputError, RunError
from dr_keras.retrieval import search
from dr_keras.retrieval.index import Index
from dr_keras.retrieval.search import distances, nearest

RANDOM = np.random.default_rng(0)


def unit(count, length=8):
    vectors = RANDOM.standard_normal((count, length)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def index(tmp_path):
    vectors = unit(50)
    vectors[7] = vectors[3]  # a duplicate: equal distances
    return Index(
        vectors=vectors,
        labels=(np.arange(50) % 3).astype(np.int32),
        ids=[f"train/{'abc'[row % 3]}/images/{row}.JPEG" for row in range(40)]
        + [f"val/images/{row - 40}.JPEG" for row in range(40, 50)],
        classes=["a", "b", "c"],
        class_names=["ant", "bee", "cat"],
        gallery=40,
        root=tmp_path / "data",
    )


def slow(queries, gallery, k):
    d = np.linalg.norm(queries[:, None].astype(np.float64) - gallery[None], axis=2)
    return np.argsort(d, axis=1, kind="stable")[:, :k], np.sort(d, axis=1)[:, :k]


@pytest.mark.parametrize("queries", [1, 8, 9, 60])
@pytest.mark.parametrize("k", [1, 5, 300, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_nearest_equals_the_full_sort(queries, k, dtype, monkeypatch):
    monkeypatch.setattr(search, "GALLERY_VALUES", 700)  # a uint8 gallery goes in parts of 100
    gallery = (RANDOM.random((300, 7)) * 255).astype(dtype)
    asked = (RANDOM.random((queries, 7)) * 255).astype(dtype)
    rows, squared = nearest(asked, gallery, k)
    _, expected = slow(asked, gallery, k)
    assert rows.shape == squared.shape == (queries, min(k, 300))
    np.testing.assert_allclose(np.sqrt(squared), expected, rtol=1e-3, atol=0.3)
    np.testing.assert_allclose(distances(asked, gallery, rows), expected, rtol=1e-3, atol=0.3)
    assert all(len(set(found)) == len(found) for found in rows.tolist())


def test_search_is_exact_and_only_over_the_gallery(index):
    queries = unit(6)
    rows, found = index.search(queries, 10)
    expected_rows, expected = slow(queries, index.vectors[:40], 10)
    assert np.array_equal(rows, expected_rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


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


def test_exclude_of_a_held_out_row_keeps_k_neighbours(index):
    rows, _ = index.search(index.vectors[45:46], 5, exclude=np.array([45]))
    assert rows.shape == (1, 5)


def test_wrong_vectors_and_k(index):
    with pytest.raises(InputError, match=r"\(Q, 8\)"):
        index.search(unit(1, 9))
    with pytest.raises(InputError, match="at least 1"):
        index.search(unit(1), 0)


def test_find(index):
    assert index.find("train/b/images/1.JPEG") == 1
    assert index.find("39.JPEG") == 39
    assert index.find("b/images/1.JPEG") == 1
    assert index.find(str(index.root / "val/images/5.JPEG")) == 45
    with pytest.raises(InputError, match=r"2 images: train/b/images/1.JPEG, val/images/1.JPEG"):
        index.find("1.JPEG")
    with pytest.raises(InputError, match=r"no image is called.*Near it: .*38\.JPEG"):
        index.find("38.JPG")


def test_round_trip(index, tmp_path):
    index.save(tmp_path / "index")
    copy = Index.open(tmp_path / "index")
    assert np.array_equal(copy.vectors, index.vectors)
    assert np.array_equal(copy.labels, index.labels)
    assert (list(copy.ids), copy.gallery, copy.root) == (list(index.ids), 40, index.root)
    assert (list(copy.classes), list(copy.class_names)) == (["a", "b", "c"], ["ant", "bee", "cat"])
    index.save(tmp_path / "index")  # replaces
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("file", ["vectors.npy", "labels.npy", "index.json"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "altered"])
def test_damage_is_noticed(index, tmp_path, file, damage):
    index.save(tmp_path / "index")
    path = tmp_path / "index" / file
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif file == "index.json":
        path.write_text(json.dumps(json.loads(data) | {"ids": ["one"]}))
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RunError):
        Index.open(tmp_path / "index")


def test_another_format_says_so(index, tmp_path):
    index.save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(RunError, match=r"format 9.*reads 1"):
        Index.open(tmp_path / "index")


def test_pickles_are_not_loaded(index, tmp_path):
    index.save(tmp_path / "index")
    np.save(tmp_path / "index" / "labels.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(RunError, match="cannot be read"):
        Index.open(tmp_path / "index")
