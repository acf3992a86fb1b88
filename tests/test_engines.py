"""Every engine of an index, exact or approximate, searches, filters, removes and refreshes the same way."""

import shutil

import numpy as np
import pytest
from searched import RANDOM, slow, unit

from dr_keras.errors import InputError, RunError
from dr_keras.index import approximate_search as engines
from dr_keras.index.index import Entry, Index

CENTERS = unit(40, 16)


def clustered(count):
    """Vectors (count, 16) around 40 centers, like those of a trained network."""
    vectors = CENTERS[RANDOM.integers(0, 40, count)] + 0.15 * RANDOM.standard_normal((count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=engines.ENGINES)
def built(request, tmp_path_factory):
    """An index of 3,000 images of 10 classes with each engine, and its vectors."""
    vectors = clustered(3000)
    folder = tmp_path_factory.mktemp("built") / "index"
    with Index.create(folder, 16, root="/data") as index:
        entries = [Entry(f"{row % 10}/{row}.png", str(row % 10), attributes={"row": row}) for row in range(3000)]
        index.add(entries, vectors)
        index.engine.build(request.param)
    return folder, vectors, request.param


@pytest.fixture
def of_engine(built, tmp_path):
    """A copy of `built` that tests may change."""
    folder, vectors, engine = built
    shutil.copytree(folder, tmp_path / "index")
    with Index.open(tmp_path / "index", write=True) as index:
        assert index.stats()["engine"]["name"] == engine
        yield index, vectors, engine


def recall(found, true):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)])


def agrees(index, vectors, allowed, where=None, k=20):
    """Compares a search with a plain one over the allowed rows."""
    queries = clustered(50)
    rows, found = index.search(queries, k, where=where)
    places, _ = slow(queries, vectors[allowed], k)
    assert recall(rows, allowed[places]) >= (1 if index.stats()["engine"]["exact"] else 0.9)
    assert set(rows[rows >= 0].tolist()) <= set(allowed.tolist())
    expected = np.linalg.norm(queries[:, None].astype(np.float64) - vectors[rows], axis=2)
    np.testing.assert_allclose(found[rows >= 0], expected[rows >= 0], atol=1e-6)
    assert (np.diff(np.where(rows >= 0, found, np.inf), axis=1) >= 0).all() or (rows < 0).any()


def test_engines_find_the_nearest(of_engine):
    index, vectors, engine = of_engine
    agrees(index, vectors, np.arange(3000))
    rows, found = index.search(vectors[5:6], 3)
    assert (rows[0, 0], found[0, 0]) == (5, 0)
    assert index.verify() == []
    assert index.stats()["engine"]["recall"] >= (1 if engine == "flat" else engines.TARGET_RECALL)


@pytest.mark.parametrize(
    ("where", "allowed"),
    [
        ("label = 3", lambda row: row % 10 == 3),
        ("label != 3", lambda row: row % 10 != 3),
        ("row >= 2990", lambda row: row >= 2990),
        ("label IN (0, 1, 2, 3, 4, 5, 6) AND NOT row < 100", lambda row: row % 10 < 7 and row >= 100),
    ],
)
def test_engines_filter(of_engine, where, allowed):
    index, vectors, _ = of_engine
    agrees(index, vectors, np.array([row for row in range(3000) if allowed(row)]), where, k=10)


def test_engines_find_what_is_left_when_everything_near_is_excluded(of_engine):
    """Conditions and removals that correlate with the vectors: they exclude the query's own class."""
    index, vectors, _ = of_engine
    near = np.argmax(vectors @ CENTERS.T, axis=1)  # (3000,)
    index.put([Entry(f"{row % 10}/{row}.png", f"c{near[row]}") for row in range(3000)], None)
    for center in (0, 7):
        queries = vectors[near == center][:8]
        allowed = np.flatnonzero(near != center)
        places, _ = slow(queries, vectors[allowed], 20)
        assert recall(index.search(queries, 20, where=f"label != c{center}")[0], allowed[places]) > 0.9
    index.remove([f"{row % 10}/{row}.png" for row in np.flatnonzero(near == 0)])
    allowed = np.flatnonzero(near != 0)
    places, _ = slow(vectors[near == 0][:8], vectors[allowed], 20)
    assert recall(index.search(vectors[near == 0][:8], 20)[0], allowed[places]) > 0.9


def test_a_reader_follows_when_the_engine_is_replaced(of_engine):
    index, vectors, engine = of_engine
    with Index.open(index.folder) as reader, Index.open(index.folder) as late:
        agrees(reader, vectors, np.arange(3000))
        index.remove([f"{row % 10}/{row}.png" for row in range(500)])
        index.compact()
        agrees(late, vectors, np.arange(3000))  # its engine is gone before it was loaded, so it searches exactly
        assert reader.refresh()
        agrees(reader, vectors[500:], np.arange(2500))
        assert reader.stats()["engine"]["name"] == engine


def test_a_condition_that_nothing_meets_finds_nothing(of_engine):
    index, vectors, _ = of_engine
    rows, found = index.search(vectors[:2], 5, where="label = dog")
    assert rows.shape == found.shape == (2, 0)


@pytest.mark.parametrize("most", [0.1, 0.8])
def test_engines_forget_what_is_removed(of_engine, most, monkeypatch):
    monkeypatch.setattr("dr_keras.index.local_index.MIN_GAPS", 10**9)  # never compacts
    index, vectors, _ = of_engine
    gone = RANDOM.permutation(3000)[: int(most * 3000)]
    assert index.remove([f"{row % 10}/{row}.png" for row in gone]) == len(gone)
    agrees(index, vectors, np.setdiff1d(np.arange(3000), gone))
    assert index.stats()["gaps"] == len(gone)
    assert index.verify() == []


def test_engines_find_what_came_later(of_engine):
    index, vectors, engine = of_engine
    more = clustered(200)
    index.add([Entry(f"new/{n}.png", "new") for n in range(200)], more)
    vectors = np.concatenate([vectors, more])
    agrees(index, vectors, np.arange(3200))
    agrees(index, vectors, np.arange(3000, 3200), "label = new")
    assert index.stats()["engine"]["rows"] == (3200 if engine == "flat" else 3000)


def test_engines_survive_compaction(of_engine, monkeypatch):
    monkeypatch.setattr("dr_keras.index.local_index.MIN_GAPS", 100)
    index, vectors, engine = of_engine
    index.remove([f"{row % 10}/{row}.png" for row in range(0, 3000, 2)])
    stats = index.stats()
    assert (stats["rows"], stats["gaps"], stats["engine"]["name"]) == (1500, 0, engine)
    agrees(index, vectors[1::2], np.arange(1500))
    assert index.verify() == []
    assert [entry.id for entry in index.records.entries([0, 1499])] == ["1/1.png", "9/2999.png"]
    assert len(list(index.folder.glob("vectors-*"))) == 1
    assert len(list(index.folder.glob("engine-*"))) == (engine != "flat")


def test_an_outgrown_engine_is_rebuilt_and_auto_follows_the_image_count(of_engine, monkeypatch):
    monkeypatch.setattr(engines, "MIN_TAIL_ROWS", 100)
    index, _, engine = of_engine
    index.add([Entry(f"new/{n}.png", "new") for n in range(400)], clustered(400))
    index.engine.update()
    assert index.stats()["engine"]["rows"] == 3400
    for flat, expected in ((3400, "flat"), (100, "ivfpq")):
        monkeypatch.setattr(engines, "MAX_FLAT_ROWS", flat)
        assert index.engine.build() == expected
        assert index.stats()["engine"]["chosen"] == "auto"
    index.engine.build(engine)
    index.engine.update()  # keeps an explicit choice
    version = index.stats()["version"]
    index.engine.update(engine)  # and does not rebuild an existing engine
    assert (index.stats()["engine"]["name"], index.stats()["version"]) == (engine, version)


def test_no_queries_find_nothing(of_engine):
    index, _, _ = of_engine
    rows, found = index.search(np.empty((0, index.dim), np.float32), 5)
    assert rows.shape == found.shape == (0, 0)


def test_too_few_images_for_an_engine_are_searched_exactly(of_engine, monkeypatch):
    monkeypatch.setattr("dr_keras.index.local_index.MIN_GAPS", 100)
    index, vectors, engine = of_engine
    assert index.remove([f"{row % 10}/{row}.png" for row in range(2900)]) == 2900
    assert index.stats()["engine"] == {"name": "flat", "chosen": engine, "exact": True, "rows": 100, "recall": 1.0}
    agrees(index, vectors[2900:], np.arange(100))
    index.engine.update()
    index.add([Entry(f"new/{n}.png", "new") for n in range(400)], clustered(400))
    index.engine.update()
    assert index.stats()["engine"]["name"] == engine


def test_a_damaged_engine_is_reported_and_rebuilt(of_engine):
    index, vectors, engine = of_engine
    if engine == "flat":
        with pytest.raises(InputError, match="engine is 'annoy'; choose one of auto, flat, hnsw, ivfpq"):
            index.engine.build("annoy")
        return
    file = next(index.folder.glob("engine-*"))
    data = file.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(damaged)
        assert "was altered" in index.verify()[0].what
        with Index.open(index.folder) as other, pytest.raises(RunError, match="verify --repair"):
            other.search(vectors[:1])
    index.engine.repair()
    assert index.verify() == []
    agrees(index, vectors, np.arange(3000))


def test_where_lists_are_short_more_of_them_are_searched(of_engine, monkeypatch):
    index, vectors, engine = of_engine
    if engine != "ivfpq":
        pytest.skip("only this engine has lists")
    queries = clustered(50)
    index.search(queries[:1], 1)  # loads the engine
    index._searcher._loaded.breadth = 1  # a list holds about a dozen of the 3,000
    monkeypatch.setattr(index._searcher, "_exact", lambda *_: pytest.fail("all vectors were compared"))
    rows, _ = index.search(queries, 100)
    assert rows.shape == (50, 100)
    assert (rows >= 0).all()
    assert recall(rows, slow(queries, vectors, 100)[0]) > 0.8
