"""index.py, retrieve.py and evaluate.py on one index, as a user would run them."""

import fcntl
import json
import shutil

import numpy as np
import pytest
from conftest import script, write_folders

from dr_keras import load
from dr_keras.errors import InputError, RunError
from dr_keras.index.index import Index


@pytest.fixture
def place(workplace, tmp_path):
    """A working folder with a copy of the run `small` that tests may change."""
    shutil.copytree(workplace / "runs" / "small", tmp_path / "runs" / "small")
    return tmp_path


def say(place, *arguments, status=0):
    result = script(place, *arguments, process=True)
    assert result.returncode == status, result.stderr
    return result.stdout if status in (0, 1, 3) else result.stderr


def test_an_index_from_its_making_to_its_repair(place):
    mine = write_folders(place / "mine", each=2, seed=5)
    assert "8 added, 0 updated, 0 unchanged; 8 images in my-index" in say(
        place, "index.py", "add", "mine", "--run", "small", "--index", "my-index", "--set", "year=2020"
    )
    (mine / "bars" / "bars_0.png").unlink()
    shutil.copy(mine / "disc" / "disc_0.png", mine / "rings" / "more.png")
    said = say(place, "index.py", "sync", "mine", "--index", "my-index")
    assert said.startswith("1 added, 0 updated, 7 unchanged, 1 missing; 9 images")
    said = say(place, "index.py", "sync", "mine", "--remove-missing", "--index", "my-index")
    assert said.startswith("0 added, 0 updated, 8 unchanged, 1 removed; 8 images")
    said = say(place, "index.py", "remove", "plain/*", "bars_1.png", "--index", "my-index")
    assert said == "3 removed; 5 images in my-index\n"
    assert "Similar names: disc_1.png" in say(
        place, "index.py", "remove", "disc_9.png", "--index", "my-index", status=2
    )

    found = json.loads(say(place, "index.py", "stats", "--json", "--index", "my-index"))
    assert (found["images"], found["searched"], found["engine"]["name"], found["gaps"]) == (5, 5, "flat", 4)
    assert found["run"] == str(place / "runs" / "small")
    assert "engine      flat (exact), chosen: auto" in say(place, "index.py", "stats", "--index", "my-index")
    assert "saved all.npy" in say(place, "index.py", "export", "all.npy", "--index", "my-index")
    assert np.load(place / "all.npy").shape == (5, 32)

    # The index knows its run, and only images that match the condition are searched.
    answer = json.loads(
        say(place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", "--json", "--where", "year = 2020")
    )
    assert {result["id"] for result in answer["results"]} == {
        "disc/disc_1.png",
        "rings/rings_0.png",
        "rings/rings_1.png",
    }
    assert answer["results"][0]["attributes"] == {"width": 32, "height": 32, "year": 2020}
    assert "a value was expected at character 7, not its end" in say(
        place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", "--where", "year <", status=2
    )

    assert say(place, "index.py", "verify", "--index", "my-index") == "5 images, nothing wrong\n"
    file = place / "my-index" / "vectors-0.f32"
    with Index.open(place / "my-index") as index:
        row = index.records.find("rings_1.png")
    data = bytearray(file.read_bytes())
    data[row * 32 * 4] ^= 255
    file.write_bytes(data)
    said = say(place, "index.py", "verify", "--index", "my-index", status=1)
    assert said == "rings/rings_1.png: its vector or its id was altered: the checksum differs\n1 problems\n"
    assert "repair it with --repair" in say(
        place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", status=2
    )
    said = say(place, "index.py", "verify", "--repair", "--index", "my-index")
    assert said == "0 added, 1 updated, 4 unchanged; 5 images, nothing wrong\n"

    with (place / "my-index" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("index.py (process 77, since noon)" + 40 * " ")
        lock.flush()
        said = say(place, "index.py", "sync", "mine", "--index", "my-index", status=2)
        assert "is being written to by index.py (process 77, since noon)" in said
        say(place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png")


def test_the_index_of_the_run_grows_and_is_evaluated_as_before(place):
    before = json.loads(say(place, "evaluate.py", "--run", "small", "--no-baselines", "--json", "--calibrate", "0.2"))
    found = before["calibration"]
    kept = json.loads((place / "runs" / "small" / "calibration.json").read_text())
    assert kept == {name: value for name, value in found.items() if name != "held_out"}
    assert found["precision"] >= 0.2
    write_folders(place / "mine", each=1, seed=5)
    say(place, "index.py", "add", "mine", "--run", "small")
    with Index.open(place / "runs" / "small" / "index") as index:
        assert index.stats()["splits"] == {"added": 4, "monitor": 8, "train": 68, "validation": 20}
        assert index.get(str(place / "mine" / "disc" / "disc_0.png"))[0].label == "disc"
        assert all(entry.hash and entry.size for entry in index.records.entries(range(100)))
    after = json.loads(say(place, "evaluate.py", "--run", "small", "--no-baselines", "--json"))
    assert (after["queries"], after["gallery"]) == (before["queries"], before["gallery"] + 4)


def test_nearness(place):
    model = load(place / "runs" / "small")
    everything = model.retrieve("disc_0.png", 999)
    middle = everything.results[20].distance
    near = model.retrieve("disc_0.png", 999, max_distance=middle)
    assert [result.id for result in near.results] == [result.id for result in everything.results[:21]]
    with pytest.raises(RunError, match=r"is not calibrated; run dr-keras evaluate --run small --calibrate"):
        model.retrieve("disc_0.png", max_distance="auto")
    with pytest.raises(InputError, match="give a number or"):
        model.retrieve("disc_0.png", max_distance="near")
    (place / "runs" / "small" / "calibration.json").write_text(json.dumps({"max_distance": middle}))
    assert model.retrieve("disc_0.png", 999, max_distance="auto").results == near.results
    answer = json.loads(say(place, "retrieve.py", "--query", "disc_0.png", "--max-distance", "0", "--json", status=3))
    assert (answer["results"], answer["max_distance"]) == ([], 0)
    said = say(place, "retrieve.py", "--query", "disc_0.png", "--max-distance", "0", status=3)
    assert said == "disc_0.png, disc: no match within a distance of 0.0000\n"
    assert "invalid distance value" in say(
        place, "retrieve.py", "--query", "disc_0.png", "--max-distance", "-1", status=2
    )


def test_more_like_these_and_less_like_those(place):
    model = load(place / "runs" / "small")
    alone = model.retrieve("disc_0.png", 999)
    both = model.retrieve(["disc_0.png", "disc_1.png"], 999)
    assert (both.label, both.queries) == ("disc", ["disc_0.png", "disc_1.png"])
    assert {"disc/disc_0.png", "disc/disc_1.png"}.isdisjoint(result.id for result in both.results)
    assert model.retrieve(["disc_0.png", "bars_0.png"]).label is None
    unlike = model.retrieve("disc_0.png", 999, negatives=[alone.results[0].id])
    ranks = {result.id: result.rank for result in alone.results}
    assert alone.results[0].id not in {result.id for result in unlike.results}
    assert [ranks[result.id] for result in unlike.results] != sorted(ranks[result.id] for result in unlike.results)
    query = alone.results[3].id
    found = {r.id for r in model.retrieve(query, 999, include_self=True, negatives=[alone.results[5].id]).results}
    assert query in found
    assert alone.results[5].id not in found
    with pytest.raises(InputError, match="no query was given"):
        model.retrieve([])
    file = str(place / "loose.png")
    shutil.copy(model.index.root / "disc" / "disc_3.png", file)
    answer = json.loads(
        say(
            place,
            "retrieve.py",
            "--query",
            "disc_0.png",
            "--query",
            "./loose.png",
            "--negative",
            "bars_0.png",
            "--json",
        )
    )
    assert (answer["queries"], answer["negatives"]) == (["disc_0.png", "./loose.png"], ["bars_0.png"])
    assert len(answer["results"]) == 30


def test_an_index_of_another_model_is_refused(place):
    write_folders(place / "mine", each=1)
    say(place, "index.py", "add", "mine", "--run", "small", "--index", "my-index")
    shutil.copytree(place / "runs" / "small", place / "runs" / "other")
    network = place / "runs" / "other" / "embedding.keras"
    network.write_bytes(network.read_bytes() + b"\0")
    for command in (
        ("index.py", "add", "mine", "--run", "other", "--index", "my-index"),
        ("retrieve.py", "--run", "other", "--index", "my-index", "--query", "disc_0.png"),
    ):
        assert "another model than" in say(place, *command, status=2)
    assert "there is no folder" in say(place, "index.py", "sync", "absent", "--run", "small", status=2)
    assert "--set takes NAME=VALUE" in say(place, "index.py", "add", "mine", "--run", "small", "--set", "x", status=2)
    assert "is not an index" in say(place, "index.py", "stats", "--index", "absent", status=2)
    said = say(place, "retrieve.py", "--index", "my-index", "--gallery", "mine", "--query", "x", status=2)
    assert "give only one of them" in said


def test_duplicates_are_written_and_shown(place):
    mine = write_folders(place / "mine", each=2)
    shutil.copy(mine / "bars" / "bars_0.png", mine / "disc" / "same.png")
    said = say(
        place, "index.py", "duplicates", "mine", "--json", "found.json", "--html", "found.html", "--run", "small"
    )
    assert "      1 group of equal files\n" in said
    found = json.loads((place / "found.json").read_text())
    assert found["exact"] == [["bars/bars_0.png", "disc/same.png"]]
    assert found["exact"][0] in found["cross_class"]
    assert "bars_0.png" in (place / "found.html").read_text()
