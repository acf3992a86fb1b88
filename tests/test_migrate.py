"""Moving an index to another model: the old one answers until the switch, and nothing is lost."""

import errno
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, draw_encoded, script
from PIL import Image
from served import BEARER, TOKEN, client

from dr_keras import Index, load
from dr_keras.errors import InputError, RunError
from dr_keras.index import rewriting
from dr_keras.index.migrate import Target, compare, embed_anew, switch
from dr_keras.progress import stderr
from dr_keras.server.errors import Problem
from dr_keras.server.queries import Query, Vector

NEW = "tiny-imagenet-64"
MIGRATE = ("index.py", "migrate", "--index", "my-index", "--run", NEW)


def target():
    model = load(NEW)
    return Target(model.reader, 256, model.fingerprint, NEW, "trained")


def contents(folder):
    """What an index says, and the vector of each image."""
    with Index.open(folder) as index:
        assert index.verify() == []
        listing = index.records.listing()
        entries = index.records.entries([row for row, *_ in listing])
        vectors = {id: np.array(index.vectors[row]) for row, id, *_ in listing}
        return (index.model, index.dim, index.run, index.head), {entry.id: entry for entry in entries}, vectors


def test_all_images_are_of_the_new_model_and_nothing_else_changes(place):
    script(place, "index.py", "add", "mine", "--index", "my-index", "--set", "year=2020")
    before = contents(place / "my-index")
    result = script(place, *MIGRATE, "--keep-old")
    assert result.returncode == 0, result.stderr
    assert "16 images in my-index are of tiny-imagenet-64 now; 0 were left out" in result.stdout
    about, entries, vectors = contents(place / "my-index")
    model = load(NEW)
    assert about == (model.fingerprint, 256, NEW, "trained")
    assert entries == before[1]
    ids = sorted(entries)
    expected = model.embed([place / "mine" / id for id in ids])
    np.testing.assert_allclose(np.stack([vectors[id] for id in ids]), expected, atol=1e-6)
    found = script(place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", "--where", "year = 2020")
    assert found.returncode == 0, found.stderr
    assert not (place / "my-index" / "migration").exists()
    old = contents(place / "my-index.old")
    assert (old[0], old[1]) == before[:2]
    assert all(np.array_equal(old[2][id], before[2][id]) for id in ids)
    again = script(place, *MIGRATE)
    assert (again.returncode, again.stdout) == (0, "my-index is of tiny-imagenet-64 already\n")
    refused = script(place, *MIGRATE, "--keep-old")
    assert (refused.returncode, "my-index.old exists" in refused.stderr) == (2, True)


def test_both_models_are_compared_before_the_switch(place):
    before = contents(place / "my-index")
    result = script(place, *MIGRATE, "--compare")
    said = re.fullmatch(
        r"(0\.\d{3}|1\.000) of the 10 nearest of 16 images are the same; "
        r"precision@10 is (0\.\d{4}) with the old model and (0\.\d{4}) with the new one\n",
        result.stdout,
    )
    assert said, result.stdout + result.stderr
    after = contents(place / "my-index")
    assert after[0] == before[0]
    labels = np.array([before[1][id].label for id in sorted(before[1])])
    for vectors, number in ((np.stack([before[2][id] for id in sorted(before[2])]), 2),):
        near = np.argsort(-(vectors @ vectors.T) + 9 * np.eye(16), axis=1)[:, :10]
        assert float(said[number]) == pytest.approx((labels[near] == labels[:, None]).mean(), abs=1e-4)
    switched = script(place, *MIGRATE)
    assert switched.returncode == 0
    assert "embedding" not in switched.stderr  # they are embedded already


def test_equal_models_have_equal_neighbors(place):
    with Index.open(place / "my-index") as index:
        found = compare(index, index)
    assert (found.overlap, found.queries, found.k) == (1.0, 16, 10)
    assert found.precision[0] == found.precision[1]


def test_files_that_are_gone_stop_it_unless_they_are_left_out(place):
    (place / "mine/disc/disc_0.png").unlink()
    before = contents(place / "my-index")
    result = script(place, *MIGRATE)
    assert result.returncode == 2
    assert "1 images cannot be embedded anew: disc/disc_0.png cannot be read" in result.stderr
    assert result.stderr.splitlines()[:-1] == ["embedding 16 images"]
    assert contents(place / "my-index")[0] == before[0]
    result = script(place, *MIGRATE, "--leave-out")
    assert "15 images in my-index are of tiny-imagenet-64 now; 1 were left out" in result.stdout
    assert set(before[1]) - set(contents(place / "my-index")[1]) == {"disc/disc_0.png"}


def test_what_changes_meanwhile_is_taken_over(place):
    folder, new = place / "my-index", target()
    with embed_anew(folder, new, console=stderr()) as fresh:
        draw("rings", np.random.default_rng(4)).save(place / "mine/rings/added.png")
        draw("rings", np.random.default_rng(5)).save(place / "mine/rings/rings_0.png")  # changed
        (place / "mine/bars/bars_0.png").unlink()
        assert script(place, "index.py", "sync", "mine", "--remove-missing", "--index", "my-index").returncode == 0
        with Index.open(folder, write=True) as index:
            assert switch(index, fresh, new, console=stderr()) == []
    _, entries, vectors = contents(folder)
    assert "rings/added.png" in entries
    assert "bars/bars_0.png" not in entries
    ids = sorted(entries)
    expected = load(NEW).embed([place / "mine" / id for id in ids])
    np.testing.assert_allclose(np.stack([vectors[id] for id in ids]), expected, atol=1e-6)


def test_another_model_starts_anew(place):
    new = target()
    embed_anew(place / "my-index", new, console=stderr()).close()
    other = Target(new.reader, 256, "other", NEW, "trained")
    with embed_anew(place / "my-index", other, console=stderr()) as fresh:
        assert (fresh.model, len(fresh)) == ("other", 16)


def test_a_full_disk_changes_nothing(place, monkeypatch):
    before, new = contents(place / "my-index"), target()

    def full(file, *_):
        file.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    with embed_anew(place / "my-index", new, console=stderr()) as fresh:
        with monkeypatch.context() as patch, Index.open(place / "my-index", write=True) as index:
            patch.setattr(rewriting, "write_rows", full)
            with pytest.raises(RunError, match="No space left"):
                switch(index, fresh, new, console=stderr())
    after = contents(place / "my-index")
    assert after[:2] == before[:2]
    assert [file.name for file in (place / "my-index").glob("vectors-*")] == ["vectors-0.f32"]
    assert script(place, *MIGRATE).returncode == 0


def test_a_migration_to_another_model_is_not_removed(place):
    embed_anew(place / "my-index", target(), console=stderr()).close()
    same = script(place, "index.py", "migrate", "--index", "my-index", "--run", "small")
    assert "is of" in same.stdout
    assert (place / "my-index" / "migration").exists()


def test_flags_that_are_missing(place):
    result = script(place, "index.py", "migrate", "--run", NEW)
    assert (result.returncode, "migrate needs --index PATH" in result.stderr) == (2, True)
    with pytest.raises(InputError, match="two images"):
        with Index.create(place / "empty", 3, root=place) as index:
            compare(index, index)


def test_the_server_follows_without_a_restart(place):
    sent = {"image": ("a.png", draw_encoded(3, "rings"), "image/png")}
    with client(place) as page:
        service = page.app.state.service
        old = page.post("/v1/search", files=sent).json()
        vector = Vector(np.zeros(32, np.float32), service.live_index.embedding.model)
        assert script(place, *MIGRATE).returncode == 0
        with pytest.raises(Problem) as raised:  # an image that was embedded just before the switch
            service.live_index.search(Query([vector]), 3)
        assert raised.value.status == 503
        new = page.post("/v1/search", files=sent).json()
        assert len(new["results"]) == len(old["results"])
        expected = load(NEW, index=place / "my-index").search([Image.open(sent_file(place))])[0]
        assert [one["id"] for one in new["results"]] == [one.id for one in expected][: len(new["results"])]
        assert new["results"][0]["distance"] == pytest.approx(expected[0].distance, abs=1e-4)
        assert page.get("/v1/stats").json()["run"] == NEW
        named = page.post("/v1/search", json={"positives": ["disc_0.png"]})
        assert named.status_code == 200
        explained = page.get("/v1/explain", params={"query": "disc_0.png", "neighbor": "disc_1.png"})
        assert explained.json()["total"] == pytest.approx(explained.json()["cosine"], abs=1e-4)
        assert page.get("/v1/map").status_code == 200
        shutil.rmtree(place / "runs" / "small")  # it is not needed any more
        assert page.get("/readyz").status_code == 200


def sent_file(place):
    (place / "a.png").write_bytes(draw_encoded(3, "rings"))
    return place / "a.png"


@pytest.mark.parametrize("kills", [pytest.param(60, marks=pytest.mark.slow), 20])
def test_kills_at_random_moments_lose_nothing(tmp_path, kills):
    program = Path(__file__).parent / "kill_migrate.py"
    command = [sys.executable, str(program), str(tmp_path), str(kills), "0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = [int(number) for number in re.findall(r"\d+", result.stdout)]
    assert found[0] == kills
    assert found[1] >= kills // 10
    assert found[2] >= 1


def test_an_image_added_after_a_switch_is_of_the_new_model_at_the_second_attempt(place):
    sent = {"image": ("new.png", draw_encoded(9, "bars"), "image/png")}
    with client(place, token=TOKEN, writable=True, uploads=place / "uploads") as page:
        assert script(place, *MIGRATE).returncode == 0
        answers = [page.post("/v1/images", files=sent, headers=BEARER).status_code for _ in range(2)]
        assert answers == [503, 201]
    with Index.open(place / "my-index") as index:
        assert (len(index), index.verify()) == (17, [])
