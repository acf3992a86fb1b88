"""How near is near enough, for each query."""

import json

import numpy as np
import pytest
from conftest import script, write_folders

from dr_keras import Entry, Index, load
from dr_keras.errors import InputError, RunError
from dr_keras.index.cutoff import (
    COPIES,
    KEPT,
    LABELS,
    MIN_KEPT,
    SLOPES,
    Cutoff,
    Searched,
    calibrate,
    entropy,
    fit,
    incoherence,
)
from dr_keras.index.index import CUTOFF_FILE


def searches(seed, queries=60):
    """Made-up searches in which disagreement tells queries of unknown kinds."""
    random = np.random.default_rng(seed)

    def made(known):
        away = np.sort(random.uniform(0.3, 1.2, (queries, KEPT)), axis=1)
        right = (random.random((queries, KEPT)) < 1 - 0.2 * away) & known
        return Searched(away, right, random.uniform(0, 2, queries) + (0 if known else 1.5))

    return made(True), made(False)


def figures(known, unknown, slope, intercept):
    """How many kept results are right, the precision, its standard error, and what is kept."""
    kept = [one.distances <= intercept - slope * one.disagreement[:, None] for one in (known, unknown)]
    shown = np.concatenate([one.sum(axis=1) for one in kept])
    hits = np.concatenate([(kept[0] & known.right).sum(axis=1), np.zeros(len(kept[1]))])
    share = hits.sum() / max(1, shown.sum())
    error = np.sqrt(((hits - share * shown) ** 2).sum()) / max(1, shown.sum())
    return int(hits.sum()), share, error, kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wanted", [0.6, 0.7])
def test_the_fit_keeps_the_most_of_what_is_right(seed, wanted):
    known, unknown = searches(seed)
    found = fit(known, unknown, wanted, "model", LABELS)
    right, precision, error, kept = figures(known, unknown, found.slope, found.intercept)
    assert precision == pytest.approx(found.found)
    assert precision - error >= wanted
    assert found.recall == pytest.approx(right / known.right.sum())
    assert found.answered == pytest.approx(kept[0].any(axis=1).mean())
    assert found.unknown_answered == pytest.approx(kept[1].any(axis=1).mean())
    most = 0
    for slope in SLOPES:
        for intercept in np.quantile(known.distances + slope * known.disagreement[:, None], np.linspace(0.02, 1, 50)):
            other, precision, error, kept = figures(known, unknown, slope, intercept)
            if precision - error >= wanted and kept[0].sum() + kept[1].sum() >= MIN_KEPT:
                most = max(most, other)
    assert right >= 0.97 * most  # not every limit is tried
    with pytest.raises(InputError, match="no cutoff reaches"):
        fit(known, unknown, wanted, "model", LABELS, np.zeros(1))  # one distance for all does not


def test_a_precision_that_cannot_be_reached():
    known, unknown = searches(0)
    with pytest.raises(InputError, match="no cutoff reaches a precision of 1"):
        fit(known, unknown, 1.0, "model", LABELS)
    for wanted in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="must be above 0 and at most 1"):
            fit(known, unknown, wanted, "model", LABELS)


def test_disagreement():
    assert entropy(["a", "a", "a"]) == 0
    assert entropy([1, 1, 2, 2]) == pytest.approx(np.log(2))
    assert entropy([]) == 0
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    assert incoherence(vectors) == pytest.approx(1)
    assert incoherence(np.stack([vectors[0]] * 4)) == pytest.approx(0)
    mixed = np.stack([vectors[0], vectors[0], vectors[1]])
    assert incoherence(mixed) == pytest.approx(1 - 1 / 3)
    assert incoherence(vectors[:1]) == 0


def test_the_limit_falls_with_disagreement_and_equal_pictures_always_pass():
    cutoff = Cutoff("model", LABELS, 0.9, 0.8, 0.5, 10, 0.9, 0.5, 0.5, 0.1)
    assert [cutoff.limit(one) for one in (0, 1, 5)] == [0.8, pytest.approx(0.3), 0]


@pytest.fixture
def index(tmp_path):
    """Eight classes that are told apart, of 40 images each."""
    random = np.random.default_rng(1)
    centers = np.linalg.qr(random.normal(size=(16, 16)))[0][:8]
    vectors = np.repeat(centers, 40, axis=0) + 0.12 * random.normal(size=(320, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = Index.create(tmp_path / "index", 16, root=tmp_path, model="a model")
    made.add([Entry(f"{n}.png", f"class{n // 40}") for n in range(320)], vectors.astype(np.float32))
    yield made
    made.close()


def test_an_index_is_calibrated_by_its_classes(index):
    found = calibrate(index, 0.995)
    assert found.found >= 0.995
    assert found.queries == 320
    assert found.unknown_answered < 0.2
    assert found.answered > 0.9
    assert Cutoff.of(index) is None
    found.save(index)
    assert Cutoff.of(index) == found
    row = 5
    rows, _ = index.search(index.vectors[row : row + 1], 100, exclude=np.array([row]))
    labels = [entry.label for entry in index.records.entries(rows[0])]
    assert found.limit_for(index, index.vectors[row], [row]) == pytest.approx(found.limit(entropy(labels)))


def test_images_that_were_watched_are_the_queries(index):
    index.update([Entry(f"{n}.png", f"class{n // 40}", "monitor" if n % 10 == 0 else "train") for n in range(320)])
    assert calibrate(index, 0.9).queries == 32


def test_a_cutoff_of_other_vectors_or_a_damaged_one(index, tmp_path):
    calibrate(index, 0.9).save(index)
    index.save(tmp_path / "copy")
    with Index.open(tmp_path / "copy") as copy:
        assert Cutoff.of(copy) == Cutoff.of(index)
    said = json.loads(index.read_file(CUTOFF_FILE))
    index.write_file(CUTOFF_FILE, json.dumps(said | {"model": "another"}).encode())
    assert Cutoff.of(index) is None
    for text in ("{", "{}", '{"unknown": 1}', "[]"):
        index.write_file(CUTOFF_FILE, text.encode())
        with pytest.raises(RunError, match=r"calibration.json of .* cannot be read"):
            Cutoff.of(index)


def test_classes_are_needed(tmp_path):
    with Index.create(tmp_path / "index", 2, root=tmp_path) as index:
        index.add([Entry(f"{n}.png") for n in range(9)], np.tile([[1.0, 0.0]], (9, 1)))
        with pytest.raises(InputError, match="two classes with two images at least; see --copies"):
            calibrate(index, 0.9)


@pytest.fixture
def larger(place):
    write_folders(place / "more", each=30, seed=11)
    assert script(place, "index.py", "add", "more", "--run", "small", "--index", "larger").returncode == 0
    return place


def test_every_front_keeps_the_same_results(larger):
    from served import client

    (larger / "my-index").rename(larger / "old")
    (larger / "larger").rename(larger / "my-index")
    base = ("--run", "small", "--index", "my-index", "--query", "disc_0.png")
    refused = script(larger, "retrieve.py", *base, "--max-distance", "auto")
    assert refused.returncode == 2
    assert "or for an index of your own python index.py calibrate" in refused.stderr
    said = script(larger, "index.py", "calibrate", "--index", "my-index", "--precision", "0.3")
    assert said.stdout.startswith("precision 0.3"), said.stdout + said.stderr
    answer = json.loads(script(larger, "retrieve.py", *base, "--max-distance", "auto", "--json").stdout)
    with Index.open(larger / "my-index") as index:
        cutoff, row = Cutoff.of(index), index.records.find("disc_0.png")
        assert answer["max_distance"] == pytest.approx(cutoff.limit_for(index, index.vectors[row], [row]))
    assert all(one["distance"] <= answer["max_distance"] for one in answer["results"])
    model = load(larger / "runs/small", index=larger / "my-index")
    assert model.retrieve("disc_0.png", max_distance="auto").max_distance == answer["max_distance"]
    with client(larger) as page:
        body = {"positives": ["disc_0.png"], "max_distance": "auto"}
        found = page.post("/v1/search", json=body).json()
        assert found["max_distance"] == answer["max_distance"]
        assert [one["id"] for one in found["results"]] == [one["id"] for one in answer["results"]]
        assert page.get("/v1/stats").json()["calibrated"] == pytest.approx(cutoff.intercept)


def test_without_classes_the_same_picture_is_right(larger):
    said = script(larger, "index.py", "calibrate", "--index", "larger", "--precision", "0.6", "--copies")
    assert said.returncode == 0, said.stderr
    with Index.open(larger / "larger") as index:
        found = Cutoff.of(index)
        assert (found.kind, found.queries) == (COPIES, 120)
        assert found.found >= 0.6
        limit = found.limit_for(index, index.vectors[0])
        rows, _ = index.search(index.vectors[:1], 100)
        assert limit == pytest.approx(found.limit(incoherence(index.vectors[rows[0]])))
