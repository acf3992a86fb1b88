"""Exact search by 8-bit copies: the same rows and distances as comparing everything, whatever the vectors are."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dr_keras.errors import RunError
from dr_keras.index import bounded_search, searcher
from dr_keras.index.bounded_search import BoundedSearch, write_copies
from dr_keras.index.exact_search import distances
from dr_keras.index.index import Entry, Index

pytest.importorskip("numkong")
RANDOM = np.random.default_rng(0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def clusters(count: int, dim: int, spread: float) -> np.ndarray:
    """Vectors around one of a few centers."""
    centers = RANDOM.normal(size=(20, dim))
    return unit(centers[RANDOM.integers(20, size=count)] + spread * RANDOM.normal(size=(count, dim)))


def near_ties(count: int, dim: int) -> np.ndarray:
    """Vectors whose distances differ in the last bits, and equal ones, in mixed order."""
    some = unit(RANDOM.normal(size=(40, dim)))
    chosen = some[RANDOM.integers(40, size=count)]
    chosen[:, RANDOM.integers(dim, size=5)] *= 1 + 1e-7 * RANDOM.integers(-1, 2, size=(count, 5))
    return chosen.astype(np.float32)


def spikes(count: int, dim: int) -> np.ndarray:
    """Vectors of one large value and many small ones, which rounding to a common step hurts most."""
    vectors = 0.02 * RANDOM.normal(size=(count, dim))
    vectors[np.arange(count), RANDOM.integers(dim, size=count)] = RANDOM.choice([-1, 1], count)
    return unit(vectors)


def rounded(count: int, dim: int) -> np.ndarray:
    """Vectors whose length is off by as much as an index allows, so that products do not rank them."""
    return (clusters(count, dim, 0.5) * (1 + 9e-4 * RANDOM.uniform(-1, 1, size=(count, 1)))).astype(np.float32)


KINDS = {
    "random": lambda count, dim: unit(RANDOM.normal(size=(count, dim))),
    "clusters": lambda count, dim: clusters(count, dim, 0.3),
    "tight": lambda count, dim: clusters(count, dim, 1e-3),
    "near ties": near_ties,
    "equal": lambda count, dim: np.repeat(unit(RANDOM.normal(size=(1, dim))), count, axis=0),
    "spikes": spikes,
    "one-hot": lambda count, dim: np.eye(dim, dtype=np.float32)[RANDOM.integers(dim, size=count)],
    "rounded": rounded,
}


def true(queries: np.ndarray, vectors: np.ndarray, k: int, allowed: np.ndarray) -> np.ndarray:
    """The nearest rows by the distances to all, ties by row."""
    found = np.stack([distances(query[None], vectors, allowed[None])[0] for query in queries])
    return allowed[np.argsort(found, axis=1, kind="stable")[:, :k]]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("count", "dim", "k"), [(3000, 64, 30), (3000, 7, 1), (50, 256, 60)])
@pytest.mark.parametrize("block", [256, 1 << 15])
def test_it_finds_what_comparing_everything_finds(tmp_path, monkeypatch, name, count, dim, k, block):
    monkeypatch.setattr(bounded_search, "BLOCK_ROWS", block)
    monkeypatch.setattr(bounded_search, "FIRST_ROWS", block // 4)
    vectors = KINDS[name](count, dim)
    write_copies(tmp_path / "copies", vectors)
    search = BoundedSearch(tmp_path / "copies", count, dim)
    queries = np.concatenate([vectors[:3], unit(RANDOM.normal(size=(2, dim))), 1.5 * vectors[5:6], 0 * vectors[:1]])
    some = np.flatnonzero(RANDOM.random(count) < 0.6)
    for asked in (queries[:1], queries[3:5], queries):
        assert np.array_equal(search.search(asked, k, vectors, None), true(asked, vectors, k, np.arange(count)))
        assert np.array_equal(search.search(asked, k, vectors, some), true(asked, vectors, k, some))


def test_threads_that_search_at_once_find_what_one_finds(tmp_path):
    vectors = clusters(5000, 64, 0.5)
    write_copies(tmp_path / "copies", vectors)
    search = BoundedSearch(tmp_path / "copies", *vectors.shape)
    halves = [np.flatnonzero(RANDOM.random(5000) < 0.6), None]  # each remembered mask is in the other's way
    work = [(vectors[row : row + count], halves[row % 2]) for row in range(60) for count in (1, 7)]
    alone = [search.search(some, 20, vectors, searchable) for some, searchable in work]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: search.search(one[0], 20, vectors, one[1]), work * 3))
    assert all(np.array_equal(*pair) for pair in zip(together, alone * 3, strict=True))


def test_most_vectors_are_ruled_out(tmp_path):
    vectors = clusters(20_000, 256, 1.0)
    write_copies(tmp_path / "copies", vectors)
    search = BoundedSearch(tmp_path / "copies", *vectors.shape)
    candidates = list(search._candidates(vectors[:20], 30, None))
    assert max(map(len, candidates)) < 1000
    assert all(row in rows for row, rows in enumerate(candidates))


@pytest.fixture
def small(monkeypatch):
    """An index gets copies from 300 rows on, and a process opens them at once."""
    monkeypatch.setattr(bounded_search, "LEAST_ROWS", 300)
    monkeypatch.setattr(searcher, "FEW_SEARCHES", 0)


def made(folder: Path, vectors: np.ndarray) -> Index:
    index = Index.create(folder, vectors.shape[1], root="/")
    index.put([Entry(f"{number}.jpg", "") for number in range(len(vectors))], vectors)
    index.engine.update()
    return index


def ids(index: Index, queries: np.ndarray) -> list[list[str]]:
    names = {row: id for row, id, *_ in index.records.listing()}
    return [[names[row] for row in rows] for rows in index.search(queries, 10)[0].tolist()]


def copies(folder: Path) -> list[Path]:
    return list(folder.glob("engine-flat-*.i8"))


@pytest.mark.usefixtures("small")
def test_an_index_keeps_copies_and_makes_them_again(tmp_path):
    vectors = clusters(500, 32, 0.5)
    with made(tmp_path / "index", vectors) as index:
        assert index.engine.stats() == {"name": "flat", "chosen": "auto", "exact": True, "rows": 500, "recall": 1.0}
        expected = ids(index, vectors[:3])
        assert index._searcher._copies is not None
        index.put([Entry("twin.jpg", "")], vectors[:1])  # searched beside the copies
        assert ids(index, vectors[:1])[0][:2] == ["0.jpg", "twin.jpg"]
        index.remove(["twin.jpg", expected[1][0]])
        assert ids(index, vectors[:3])[0] == expected[0]
        assert ids(index, vectors[1:2])[0][:9] == expected[1][1:]
        index.compact()
        assert len(copies(tmp_path / "index")) == 1
        assert ids(index, vectors[1:2])[0][:9] == expected[1][1:]
    [file] = copies(tmp_path / "index")
    file.unlink()
    with Index.open(tmp_path / "index") as index:
        assert ids(index, vectors[:3])[0] == expected[0]  # without


@pytest.mark.usefixtures("small")
def test_a_query_that_is_not_a_number_is_answered_as_without_copies(tmp_path):
    vectors = clusters(400, 32, 0.5)
    with made(tmp_path / "index", vectors) as index:
        rows, _ = index.search(np.full((1, 32), np.nan, np.float32), 10)
        assert rows.shape == (1, 10)
        assert index._searcher._copies is None


@pytest.mark.usefixtures("small")
def test_altered_copies_are_noticed_and_made_again(tmp_path):
    vectors = clusters(400, 32, 0.5)
    with made(tmp_path / "index", vectors) as index:
        expected = ids(index, vectors[:3])
    [file] = copies(tmp_path / "index")
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with Index.open(tmp_path / "index") as index, pytest.raises(RunError, match="verify --repair"):
        index.search(vectors[:1], 10)
    with Index.open(tmp_path / "index", write=True) as index:
        assert index.verify()
        index.engine.repair()
        assert not index.verify()
        assert ids(index, vectors[:3]) == expected


@pytest.mark.usefixtures("small")
def test_a_full_disk_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    vectors = clusters(400, 32, 0.5)
    with made(tmp_path / "index", vectors[:200]) as index:
        index.put([Entry(f"{number}.jpg", "") for number in range(200, 400)], vectors[200:])

        def full(file: Path, _vectors: np.ndarray) -> None:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("dr_keras.index.approximate_search.write_copies", full)
        with pytest.raises(RunError, match="No space left"):
            index.engine.update()
        assert not copies(tmp_path / "index")
        assert ids(index, vectors[:1])[0][0] == "0.jpg"


@pytest.mark.usefixtures("small")
def test_without_the_kernels_everything_is_compared(tmp_path, monkeypatch):
    vectors = clusters(400, 32, 0.5)
    with made(tmp_path / "index", vectors) as index:
        expected = ids(index, vectors[:3])
    for module in (searcher, bounded_search):
        monkeypatch.setattr(module, "is_available", lambda: False)
    with Index.open(tmp_path / "index", write=True) as index:
        assert ids(index, vectors[:3]) == expected
        index.engine.update()
        assert not copies(tmp_path / "index")


@pytest.mark.usefixtures("small")
def test_copies_are_not_part_of_a_copied_index(tmp_path):
    vectors = clusters(400, 32, 0.5)
    with made(tmp_path / "index", vectors) as index:
        expected = ids(index, vectors[:3])
        index.save(tmp_path / "copy")
    assert not copies(tmp_path / "copy")
    shutil.rmtree(tmp_path / "index")
    with Index.open(tmp_path / "copy") as index:
        assert ids(index, vectors[:3]) == expected
