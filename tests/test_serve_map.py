"""The map of a gallery as sent by the server."""

import numpy as np
import pytest
from conftest import draw_encoded
from served import BEARER, client, refused, search

from dr_keras.index.index import Index
from dr_keras.index.umap_layout import Layout
from dr_keras.server import schemas
from dr_keras.server.map import decode_map, encode_map, fit_pca, project_rows


def test_the_map(place, page):
    answer = page.get("/v1/map")
    points, kinds, about = decode_map(answer.content)
    assert (points.shape, kinds.shape) == ((16, 2), (16,))
    assert [(one["name"], one["count"]) for one in about["classes"]] == [
        (n, 4) for n in ("bars", "disc", "plain", "rings")
    ]
    assert about["classes"] == page.get("/v1/classes").json()
    again = page.get("/v1/map", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    number = 5
    one = page.get(f"/v1/map/{about['key']}/{number}").json()
    schemas.Image.model_validate(one)
    assert one["label"] == about["classes"][kinds[number]]["label"]
    where = page.post("/v1/map/query?k=3", json={"positives": [one["id"]]}).json()
    schemas.Place.model_validate(where)
    assert where["queries"] == [number]
    assert points[number].tolist() == pytest.approx([where["x"], where["y"]], abs=1e-5)
    found = search(page, 3, positives=[one["id"]])["results"]
    ids = [page.get(f"/v1/map/{about['key']}/{n}").json()["id"] for n in where["neighbors"]]
    assert ids == [result["id"] for result in found]
    refused(page.get(f"/v1/map/{about['key']}/16"), 404, "16 points")
    refused(page.get("/v1/map/v0/1"), 409, "load it again")
    refused(page.get(f"/v1/map/{about['key']}/x"), 422, "number")
    with Index.open(place / "my-index", write=True) as index:
        index.remove(["disc/disc_0.png"])
    refused(page.get(f"/v1/map/{about['key']}/1"), 409, "load it again")
    assert len(decode_map(page.get("/v1/map").content)[0]) == 15


def test_a_map_is_of_one_state_of_the_index(place, page, monkeypatch):
    records = type(page.app.state.service.live_index.index.records)
    listing = records.listing

    def change_meanwhile(self):
        found = listing(self)
        monkeypatch.undo()
        with Index.open(place / "my-index", write=True) as other:
            other.remove([f"disc/disc_{number}.png" for number in range(4)])
            other.compact()
        return found

    monkeypatch.setattr(records, "listing", change_meanwhile)
    points, _, about = decode_map(page.get("/v1/map").content)
    assert (len(points), len(about["classes"])) == (16, 4)
    points, _, about = decode_map(page.get("/v1/map").content)
    assert (len(points), len(about["classes"])) == (12, 3)


def test_a_map_has_a_new_key_after_a_new_layout_and_follows_the_index(place, writable):
    with client(place) as page:
        first = page.get("/v1/map")
        assert page.get("/v1/map", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    with Index.open(place / "my-index") as index:
        vectors = np.array(index.vectors)
        Layout(vectors, np.arange(2 * len(vectors), dtype=np.float32).reshape(-1, 2), index.model).save(index)
    with client(place) as page:
        second = page.get("/v1/map", headers={"If-None-Match": first.headers["etag"]})
        points, _, about = decode_map(second.content)
        assert about["method"] == "UMAP"
        np.testing.assert_allclose(points, np.arange(2 * len(vectors)).reshape(-1, 2), atol=1e-2)
        added = writable.post("/v1/images", files={"image": draw_encoded(9)}, data={"label": "new"}, headers=BEARER)
        assert added.status_code == 201
        after, _, _ = decode_map(page.get("/v1/map").content)
        assert np.array_equal(after[:-1], points)  # existing points do not move
        assert {one["label"]: one["count"] for one in page.get("/v1/classes").json()}["new"] == 1


def test_a_map_of_an_empty_index(place, page):
    with Index.open(place / "my-index", write=True) as index:
        index.remove(index.records.matching("*"))
    assert decode_map(page.get("/v1/map").content)[2]["classes"] == []
    assert page.get("/v1/sample").json() == []
    refused(page.post("/v1/search", json={"positives": ["disc_0.png"]}), 404, "no image is called")
    assert page.post("/v1/search", files={"image": draw_encoded()}).json()["results"] == []


def test_pca_finds_the_two_longest_axes():
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.normal(size=(8, 8)))[0]
    values = random.normal(size=(3000, 8)) * [9, 5, 1, 1, 1, 1, 1, 1]
    vectors = (values @ axes.T + 3).astype(np.float32)
    rows = np.arange(0, 3000, 2)
    points = project_rows(fit_pca(vectors[rows]), vectors, rows)
    for column in (0, 1):
        assert abs(np.corrcoef(points[:, column], values[rows, column])[0, 1]) > 0.99
    assert points.std(axis=0)[0] / points.std(axis=0)[1] == pytest.approx(9 / 5, rel=0.1)
    assert 0.99 < (np.abs(points) <= 1).all(axis=1).mean() <= 1
    one = fit_pca(np.ones((1, 1), np.float32))(np.ones((1, 1), np.float32))
    assert (one.shape, np.isfinite(one).all()) == ((1, 2), True)
    back = decode_map(encode_map(points, rows, {"a": "é"}))
    assert np.array_equal(back[0], points)
    assert np.array_equal(back[1], rows)
    assert back[2] == {"a": "é"}
    with pytest.raises(ValueError, match="a map begins with"):
        decode_map(b"")
    with pytest.raises(ValueError, match="were given"):
        decode_map(encode_map(points, rows, {})[:-1])
