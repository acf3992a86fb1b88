"""Variety among results: `--distinct` and `--diverse`."""

import json

import numpy as np
import pytest
from conftest import draw, script
from PIL import Image
from searched import unit

from dr_keras import load
from dr_keras.duplicates.copies import CopyFinder
from dr_keras.errors import InputError
from dr_keras.variety import Variety, marginal, vary


def slow_marginal(vectors, distances, k, weight):
    """Maximal marginal relevance, as its paper defines it."""
    cosines = 1 - np.asarray(distances, np.float64) ** 2 / 2
    chosen = [int(np.argmin(distances))]
    while len(chosen) < min(k, len(vectors)):
        scores = [
            -np.inf
            if number in chosen
            else weight * cosines[number] - (1 - weight) * max(vectors[number] @ vectors[other] for other in chosen)
            for number in range(len(vectors))
        ]
        chosen.append(int(np.argmax(scores)))
    return chosen


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_marginal_relevance_equals_the_plain_loop(weight, k):
    vectors = unit(30, 5).astype(np.float64)
    distances = np.sort(np.linalg.norm(vectors - vectors[0], axis=1))
    vectors = vectors[np.argsort(np.linalg.norm(vectors - vectors[0], axis=1))]
    assert marginal(vectors, distances, k, weight).tolist() == slow_marginal(vectors, distances, k, weight)


def test_a_weight_of_one_is_the_order_by_distance():
    vectors = unit(30, 5)
    assert marginal(vectors, np.linspace(0, 2, 30), 10, 1.0).tolist() == list(range(10))


def test_less_weight_gives_results_that_are_less_alike():
    vectors = unit(200, 6)
    order = np.argsort(np.linalg.norm(vectors - vectors[0], axis=1))
    vectors, distances = vectors[order], np.sort(np.linalg.norm(vectors - vectors[0], axis=1))

    def alike(weight):
        chosen = vectors[marginal(vectors, distances, 10, weight)]
        return (chosen @ chosen.T)[~np.eye(10, dtype=bool)].mean()

    assert alike(0.2) < alike(0.5) < alike(1.0)


def test_copies_are_folded_and_the_order_is_kept():
    group = np.array([0, 1, 0, 3, 1, 0])
    chosen, copies = vary(Variety(distinct=True), np.zeros((6, 2)), np.arange(6.0), 3, lambda: group)
    assert chosen == [0, 1, 3]
    assert copies == [[2, 5], [4], []]


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_weight_out_of_range(weight):
    with pytest.raises(InputError, match="diverse is"):
        Variety(diverse=weight)


@pytest.fixture
def copied(place):
    """A working folder whose index also has four copies of one picture, and two of another."""
    random = np.random.default_rng(9)
    one, _faint, other = (draw("rings", random, 96) for _ in range(3))
    folder = place / "copies"
    folder.mkdir()
    one.save(folder / "one.png")
    one.save(folder / "one-70.jpg", quality=70)
    one.resize((64, 64), Image.Resampling.LANCZOS).save(folder / "one-small.png")
    Image.fromarray((np.asarray(one) * 0.9).astype(np.uint8)).save(folder / "one-dark.png")
    other.save(folder / "other.png")
    other.save(folder / "other-70.jpg", quality=70)
    Image.new("RGB", (50, 50), "red").save(folder / "red.png")
    Image.new("RGB", (60, 60), "red").save(folder / "red-too.png")
    assert script(place, "index.py", "add", "copies", "--run", "small", "--index", "my-index").returncode == 0
    return place


def test_groups_of_files(copied, monkeypatch):
    monkeypatch.chdir(copied)
    model = load("small", index="my-index")
    names = [
        "one.png",
        "other.png",
        "one-70.jpg",
        "red.png",
        "one-small.png",
        "red-too.png",
        "other-70.jpg",
        "gone.png",
    ]
    paths = [str(copied / "copies" / name) for name in names]
    files = [(path, None) for path in paths]
    vectors = model.embed([*paths[:-1], paths[0]])
    finder = CopyFinder()
    for _ in range(2):  # the second time from memory
        assert finder.groups(files, vectors).tolist() == [0, 1, 0, 3, 0, 5, 1, 7]  # flat ones have no fingerprint
    hashed = [(path, b"same" if "red" in path else None) for path in paths]
    assert finder.groups(hashed, vectors).tolist() == [0, 1, 0, 3, 0, 3, 1, 7]  # equal files are copies, flat or not
    (copied / "copies" / "one-70.jpg").write_bytes((copied / "copies" / "other.png").read_bytes())
    assert finder.groups(files, vectors).tolist()[2] in (1, 2)  # it is another picture now


def test_distinct_results(copied):
    command = ["retrieve.py", "--run", "small", "--index", "my-index", "--query", "one.png", "--include-self"]
    plain = json.loads(script(copied, *command, "--top", 24, "--json").stdout)["results"]
    answer = json.loads(script(copied, *command, "--top", 3, "--distinct", "--json").stdout)["results"]
    assert answer[0]["id"] == "../copies/one.png" or answer[0]["id"].endswith("copies/one.png")
    assert len(answer[0]["copies"]) == 3
    assert [one["rank"] for one in answer] == [1, 2, 3]
    folded = {id for one in answer for id in one["copies"]}
    kept = [one["id"] for one in plain if one["id"] not in folded]
    assert [one["id"] for one in answer] == kept[:3]  # the order is otherwise that of the distances
    assert all(one["copies"] == [] for one in plain)
    shown = script(copied, *command, "--top", 3, "--distinct", "--save", "found.png")
    assert "and 3 like it" in shown.stdout


def test_as_many_results_as_asked_for_although_most_are_copies(place):
    folder = place / "many"
    folder.mkdir()
    picture = draw("rings", np.random.default_rng(9), 96)
    for quality in range(60, 95):
        picture.save(folder / f"{quality}.jpg", quality=quality)
    assert script(place, "index.py", "add", "many", "--run", "small", "--index", "my-index").returncode == 0
    command = ("retrieve.py", "--run", "small", "--index", "my-index", "--query", "70.jpg", "--distinct", "--top", 2)
    answer = json.loads(script(place, *command, "--json").stdout)
    assert [len(one["copies"]) for one in answer["results"]] == [33, 0]


def test_diverse_results(copied, monkeypatch):
    monkeypatch.chdir(copied)
    model = load("small", index="my-index")
    plain = model.retrieve("one.png", k=5)
    assert [one.id for one in model.retrieve("one.png", k=5, diverse=1).results] == [one.id for one in plain.results]
    diverse = model.retrieve("one.png", k=5, diverse=0.3, distinct=True)
    assert diverse.results[0].id == plain.results[0].id
    assert len({one.id for one in diverse.results}) == 5
    chosen = model.embed([result.path for result in diverse.results])
    nearest = model.embed([result.path for result in plain.results])
    assert (chosen @ chosen.T).mean() < (nearest @ nearest.T).mean()
    assert script(copied, "retrieve.py", "--run", "small", "--query", "one.png", "--diverse", 2).returncode == 2
    limit = plain.results[3].distance
    near = model.retrieve("one.png", k=4, diverse=0.1, max_distance=limit)
    assert sorted(one.id for one in near.results) == sorted(one.id for one in plain.results[:4])


def test_variety_by_http(copied):
    from served import client

    with client(copied) as page:
        named = {"positives": [page.get("/v1/find", params={"name": "one.png"}).json()["id"]]}
        answer = page.post("/v1/search", params={"k": 3}, json=named | {"distinct": True, "include_self": True}).json()
        assert len(answer["results"][0]["copies"]) == 3
        form = {"distinct": "true", "diverse": "0.5"}
        picture = (copied / "copies/one.png").read_bytes()
        answer = page.post("/v1/search", params={"k": 3}, data=form, files={"image": picture}).json()
        assert len(answer["results"][0]["copies"]) == 3
        refused = page.post("/v1/search", json=named | {"diverse": 1.5})
        assert refused.status_code == 422
        assert "diverse" in refused.json()["detail"]
