"""Groups by HTTP: listed, named and corrected."""

import pytest
from conftest import script
from served import BEARER, TOKEN, client, refused


@pytest.fixture
def grouped(place):
    assert script(place, "index.py", "cluster", "--index", "my-index", "--groups", 4).returncode == 0
    return place


def test_groups_are_listed_renamed_and_corrected(grouped):
    with client(grouped, writable=True, token=TOKEN, uploads=grouped / "uploads") as page:
        groups = page.get("/v1/groups").json()
        assert sum(group["count"] for group in groups) == 16
        assert [group["name"] for group in groups] == ["1", "2", "3", "4"]
        first, second = groups[:2]
        members = page.get("/v1/group", params={"name": first["name"]}).json()
        assert len(members) == first["count"]
        assert members[0] == first["center"]
        assert {one["attributes"]["group"] for one in members} == {"1"}
        assert len(page.get("/v1/group", params={"name": "1", "k": 2}).json()) == min(2, first["count"])

        renaming = {"name": "1", "to": "beach"}
        refused(page.post("/v1/groups/rename", json=renaming), 401, "a token is needed")
        said = page.post("/v1/groups/rename", json=renaming, headers=BEARER)
        assert said.json() == {"images": first["count"]}
        refused(page.get("/v1/group", params={"name": "1"}), 404, "there is no such group")
        moving = {"ids": [members[1]["id"]], "group": second["name"]}
        assert page.post("/v1/groups/move", json=moving, headers=BEARER).json() == {"images": 1}
        counts = {group["name"]: group["count"] for group in page.get("/v1/groups").json()}
        assert (counts["beach"], counts["2"]) == (first["count"] - 1, second["count"] + 1)
        out = {"ids": [members[1]["id"]], "group": None}
        page.post("/v1/groups/move", json=out, headers=BEARER)
        assert sum(group["count"] for group in page.get("/v1/groups").json()) == 15
        found = page.post("/v1/search", json={"positives": [members[0]["id"]], "where": "group = beach"}).json()
        assert len(found["results"]) == first["count"] - 2


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("rename", {"name": "none", "to": "x"}, 404, "no such group"),
        ("rename", {"name": "1", "to": "a/b"}, 422, "cannot name a group"),
        ("rename", {"name": "1"}, 422, "to: Field required"),
        ("move", {"ids": ["none"], "group": "1"}, 404, "no image of this id"),
        ("move", {"ids": [], "group": "1"}, 422, "ids: "),
        ("move", {"ids": ["disc/disc_0.png"], "group": ".."}, 422, "cannot name a group"),
        ("move", {"ids": ["disc/disc_0.png"] * 2, "group": "1"}, 422, "is given twice"),
        ("move", {"ids": ["disc/disc_0.png"], "group": "1", "more": 1}, 422, "more: "),
    ],
)
def test_changes_that_are_refused(grouped, path, body, status, words):
    with client(grouped, writable=True, token=TOKEN, uploads=grouped / "uploads") as page:
        refused(page.post(f"/v1/groups/{path}", json=body, headers=BEARER), status, words)


def test_a_server_that_takes_no_changes(page):
    assert page.get("/v1/groups").json() == []
    refused(page.post("/v1/groups/rename", json={"name": "1", "to": "x"}, headers=BEARER), 403, "takes no changes")
