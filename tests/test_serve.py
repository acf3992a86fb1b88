"""The HTTP API: what it returns and what it refuses."""

import asyncio
import errno
import io
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import draw_encoded, script
from PIL import Image
from served import BEARER, TOKEN, client, raw, refused, search

from dr_keras.index.index import Index
from dr_keras.index.local_index import LocalIndex
from dr_keras.server import schemas
from dr_keras.server.batching import Batcher
from dr_keras.server.errors import Problem
from dr_keras.server.queries import Query

SIDES = {"width": 32, "height": 32}  # what a drawn picture says of itself


def printed(said, *, paths=False):
    """The output of retrieve.py in the server's format."""
    answer = json.loads(said.stdout)
    for result in answer["results"]:
        assert paths or result.pop("path")
    return answer


def test_a_search_answers_what_retrieve_prints(place, page):
    said = script(place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", "--json", "--top", "7")
    assert search(page, 7, positives=["disc_0.png"]) == printed(said)
    with client(place, show_paths=True) as other:
        assert search(other, 7, positives=["disc_0.png"]) == printed(said, paths=True)
    more = ("--query", "disc_1.png", "--negative", "bars_1.png", "--where", "label != rings", "--max-distance", "1.2")
    said = script(place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", *more, "--json")
    found = search(
        page,
        positives=["disc_0.png", "disc_1.png"],
        negatives=["bars_1.png"],
        where="label != rings",
        max_distance=1.2,
    )
    assert found == printed(said)
    schemas.SearchResponse.model_validate(found)
    none = search(page, positives=["disc_0.png"], max_distance=0)
    assert (none["results"], none["max_distance"]) == ([], 0)
    with_self = search(page, 1, positives=["disc_0.png"], include_self=True)
    assert with_self["results"][0]["id"] == "disc/disc_0.png"


def test_a_search_with_images_that_are_sent(place, page):
    data = (place / "mine" / "rings" / "rings_2.png").read_bytes()
    answer = page.post("/v1/search?k=3", files={"image": ("../../evil.png", data, "text/html")}).json()
    assert answer["results"][0]["id"] == "rings/rings_2.png"
    assert answer["results"][0]["distance"] == pytest.approx(0, abs=1e-3)
    assert (answer["label"], answer["queries"]) == (None, ["uploaded image"])
    fields = {"positives": ["disc_1.png"], "negatives": "bars_0.png", "where": "label = disc", "max_distance": "1.9"}
    answer = page.post("/v1/search", files=[("image", data), ("image", draw_encoded())], data=fields).json()
    assert answer["queries"] == ["uploaded image", "uploaded image", "disc_1.png"]
    assert answer["negatives"] == ["bars_0.png"]
    assert {result["label"] for result in answer["results"]} == {"disc"}
    assert "disc/disc_1.png" not in {result["id"] for result in answer["results"]}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "no query was given"),
        ({"positives": ["nothing.png"]}, 404, "no image is called 'nothing.png'"),
        ({"positives": ["../../etc/passwd"]}, 404, "no image is called"),
        ({"positives": ["/etc/passwd"]}, 404, "no image is called"),
        ({"positives": ["disc_0.png"], "where": "year <"}, 400, "a value was expected"),
        ({"positives": ["disc_0.png"], "where": "x" * 3000}, 422, "where"),
        ({"positives": ["disc_0.png"], "max_distance": "auto"}, 400, "not calibrated"),
        ({"positives": ["disc_0.png"], "max_distance": -1}, 422, "max_distance"),
        ({"positives": ["disc_0.png"], "max_distance": "near"}, 422, "max_distance"),
        ({"positives": ["disc_0.png"] * 65}, 422, "positives"),
        ({"positives": ["x" * 2000]}, 422, "positives.0"),
        ({"positives": ["!" * 1000]}, 404, "no image is called"),
        ({"positives": "disc_0.png"}, 422, "positives"),
        ({"positives": ["disc_0.png"], "files": ["/etc/passwd"]}, 422, "files"),
        ([1, 2], 422, "the body"),
    ],
)
def test_queries_that_cannot_be_answered(page, body, status, words):
    refused(page.post("/v1/search", json=body), status, words)


def test_a_large_image_needs_no_file(page, monkeypatch):
    """A full disk does not stop searches."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
    picture = io.BytesIO()
    Image.new("RGB", (1200, 1000), "red").save(picture, "BMP")
    assert picture.tell() > 3_000_000
    answer = page.post("/v1/search?k=3", files={"image": picture.getvalue()})
    assert (answer.status_code, len(answer.json()["results"])) == (200, 3)


def test_bodies_that_are_not_valid_requests(page):
    json_type = {"Content-Type": "application/json"}
    refused(page.post("/v1/search", content=b"{", headers=json_type), 400, "not JSON")
    refused(page.post("/v1/search", content=b"[" * 100_000, headers=json_type), 400, "nests too deeply")
    refused(page.post("/v1/search", content=b"\xff\xfe", headers=json_type), 400, "not JSON")
    nan = b'{"positives": ["disc_0.png"], "max_distance": NaN}'
    refused(page.post("/v1/search", content=nan, headers=json_type), 422, "max_distance")
    huge = b'{"positives": ["disc_0.png"], "max_distance": ' + b"9" * 5000 + b"}"
    refused(page.post("/v1/search", content=huge, headers=json_type), 400, "not JSON")
    lone = b'{"positives": ["\\udcff"]}'
    refused(page.post("/v1/search", content=lone, headers=json_type), 404, "no image is called")
    half = b'{"positives": ["\\ud800"]}'
    refused(page.post("/v1/search", content=half, headers=json_type), 422, "positives.0")
    refused(page.post("/v1/search", content=b"x" * 300_000, headers=json_type), 413, "at most 262,144")
    refused(page.post("/v1/search", content=b"x", headers={"Content-Type": "text/plain"}), 415, "'text/plain'")
    refused(page.post("/v1/search"), 415, "of no type")
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert page.post("/v1/search", content=b"x", headers=no_boundary).status_code == 400
    refused(page.post("/v1/search", files={"file": b"x"}), 422, "images are sent in the field 'image'")
    refused(
        page.post("/v1/search", files={"image": draw_encoded()}, data={"run": "x"}),
        422,
        "the field 'run', which is unknown",
    )
    many = [("image", draw_encoded(seed)) for seed in range(9)]
    assert page.post("/v1/search", files=many).status_code == 400
    for k in ("0", "1001", "many"):
        refused(page.post(f"/v1/search?k={k}", json={"positives": ["disc_0.png"]}), 422, "k: ")


def test_a_name_finds_its_image(page):
    found = page.get("/v1/find", params={"name": "disc_0.png"}).json()
    assert found == {
        "id": "disc/disc_0.png", "name": "disc_0.png", "label": "disc", "class_name": "disc", "attributes": SIDES
    }  # fmt: skip
    refused(page.get("/v1/find", params={"name": "disc_o.png"}), 404, "Similar names: disc_")
    refused(page.get("/v1/find", params={"name": ""}), 422, "name")


def test_a_method_that_a_path_does_not_support(page):
    answer = refused(page.put("/v1/images/disc/disc_0.png"), 405, "PUT is not allowed here")
    assert answer.headers["allow"] == "DELETE, GET, HEAD"
    for method, path, allowed in (
        ("GET", "/v1/search", "POST"),
        ("HEAD", "/v1/images", "POST"),
        ("POST", "/v1/images/two%0Alines.png", "DELETE, GET, HEAD"),
        ("DELETE", "/v1/stats", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ):
        answer = page.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path


def test_images_are_added_and_removed(place, writable):
    data = draw_encoded(seed=3, kind="JPEG")
    form = {"label": "coins", "attributes": '{"year": 2026}'}
    answer = writable.post("/v1/images", files={"image": ("../../../x.php", data)}, data=form, headers=BEARER)
    added = answer.json()
    assert (answer.status_code, added["created"], added["label"]) == (201, True, "coins")
    assert added["attributes"] == SIDES | {"year": 2026}
    file = place / "uploads" / added["name"]
    assert (file.read_bytes(), file.suffix) == (data, ".jpg")
    assert [one.name for one in (place / "uploads").iterdir()] == [added["name"]]
    schemas.Added.model_validate(added)
    # The next search finds it and its file is served.
    found = writable.post("/v1/search?k=1", files={"image": data}).json()["results"][0]
    assert (found["id"], found["attributes"]) == (added["id"], SIDES | {"year": 2026})
    assert writable.get(f"/v1/images/{added['id']}").content == data
    again = writable.post("/v1/images", files={"image": data}, headers=BEARER)
    assert (again.status_code, again.json()) == (200, added | {"created": False})

    assert writable.delete(f"/v1/images/{added['id']}", headers=BEARER).json() == {
        "id": added["id"],
        "file_removed": True,
    }
    assert not file.exists()
    refused(writable.get(f"/v1/images/{added['id']}"), 404, "no image of this id")
    refused(writable.delete(f"/v1/images/{added['id']}", headers=BEARER), 404, "no image of this id")
    assert writable.post("/v1/search?k=1", files={"image": data}).json()["results"][0]["id"] != added["id"]
    # A gallery image is removed from the index, but its file stays.
    gone = writable.delete("/v1/images/disc/disc_0.png", headers=BEARER).json()
    assert gone == {"id": "disc/disc_0.png", "file_removed": False}
    assert (place / "mine" / "disc" / "disc_0.png").is_file()
    refused(raw(writable, "/v1/images/disc/disc_0.png"), 404, "no image of this id")
    with Index.open(place / "my-index") as index:
        assert (len(index), index.verify()) == (15, [])


def test_changes_that_are_refused(place, writable, page):
    files = {"image": draw_encoded()}
    refused(page.post("/v1/images", files=files, headers=BEARER), 403, "takes no changes")
    refused(page.delete("/v1/images/disc/disc_0.png", headers=BEARER), 403, "takes no changes")
    for wrong in (None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer " + "é"):
        headers = {} if wrong is None else {"Authorization": wrong.encode()}
        answer = refused(writable.post("/v1/images", files=files, headers=headers), 401, "a token is needed")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        refused(writable.delete("/v1/images/disc/disc_0.png", headers=headers), 401, "a token is needed")

    def add(**parts):
        return writable.post("/v1/images", headers=BEARER, **parts)

    refused(add(json={}), 415, "multipart/form-data")
    refused(add(files={"picture": b"x"}), 422, "images are sent in the field 'image'")
    refused(add(files={"image": b"GIF89a, not"}), 415, "")
    refused(add(files=files, data={"attributes": "[1]"}), 422, "a JSON object")
    refused(add(files=files, data={"attributes": '{"a": NaN}'}), 422, "a JSON object")
    refused(add(files=files, data={"label": "a\nb"}), 422, "printable characters")
    refused(add(files=files, data={"label": "a" * 201}), 422, "printable characters")
    assert not list((place / "uploads").iterdir())
    with Index.open(place / "my-index", write=True):
        answer = refused(add(files=files), 503, "another process is writing")
        assert answer.headers["retry-after"] == "2"
        refused(writable.delete("/v1/images/disc/disc_0.png", headers=BEARER), 503, "another process is writing")
    assert add(files=files).status_code == 201


def test_a_picture_that_nobody_sent_stays_where_it_is(place):
    with client(place, writable=True, token=TOKEN, uploads=place / "mine" / "disc") as page:
        removed = page.delete("/v1/images/disc/disc_0.png", headers=BEARER).json()
        assert removed == {"id": "disc/disc_0.png", "file_removed": False}
        assert (place / "mine" / "disc" / "disc_0.png").is_file()


def test_why_a_change_failed_is_in_the_log(writable, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalIndex, "remove", fail)
    refused(writable.delete("/v1/images/disc/disc_0.png", headers=BEARER), 507, "the server's log says why")
    assert "No space left on device" in caplog.text


def test_a_file_that_cannot_be_removed_is_said_to_stay(writable, monkeypatch, caplog):
    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("dr_keras.server.changes.remove_upload", fail)
    assert not writable.delete("/v1/images/disc/disc_0.png", headers=BEARER).json()["file_removed"]
    assert "Permission denied" in caplog.text
    refused(writable.get("/v1/images/disc/disc_0.png"), 404, "")


def test_a_search_goes_on_while_others_write(place, writable):
    with client(place) as reader, ThreadPoolExecutor(4) as pool:
        images = [draw_encoded(seed) for seed in range(20, 28)]
        searches = [pool.submit(search, reader, 30, positives=["disc_0.png"]) for _ in range(20)]
        for image in images:
            added = writable.post("/v1/images", files={"image": image}, headers=BEARER).json()
            found = reader.post("/v1/search?k=1", files={"image": image}).json()["results"][0]
            assert found["id"] == added["id"]  # another server on the same index
        assert all(len(one.result()["results"]) >= 15 for one in searches)


def test_concurrent_requests_are_batched():
    sizes = []
    begun, go_on = threading.Event(), threading.Event()

    def work(numbers):
        begun.set()
        assert go_on.wait(60)
        if 98 in numbers:
            raise OSError("all is lost")
        return [ValueError("a bad one") if number == 99 else 10 * number for number in numbers]

    async def scene():
        batcher = Batcher(work, "test", 8, sizes.append)
        with pytest.raises(RuntimeError, match="not running"):
            await batcher.do(0)
        batcher.start()
        tasks = [asyncio.create_task(batcher.do(number)) for number in range(20)]
        gone = asyncio.create_task(batcher.do(50))
        assert await asyncio.to_thread(begun.wait, 60)
        gone.cancel()
        go_on.set()
        assert await asyncio.gather(*tasks) == [10 * number for number in range(20)]
        bad, good = await asyncio.gather(batcher.do(99), batcher.do(1), return_exceptions=True)
        assert (str(bad), good) == ("a bad one", 10)
        lost = await asyncio.gather(batcher.do(98), batcher.do(2), return_exceptions=True)
        assert [str(error) for error in lost] == ["all is lost"] * 2
        last = asyncio.create_task(batcher.do(7))  # finishes before the stop
        await asyncio.sleep(0)
        await batcher.stop()
        assert await last == 70
        assert not batcher.working

    asyncio.run(scene())
    assert sizes == [8, 8, 4, 2, 2, 1]


def test_batched_searches_are_answered_as_if_alone(place):
    with client(place) as page:
        gallery = page.app.state.service.live_index
        asked = [
            (Query([], ["disc_0.png"]), 5),
            (Query([], ["nothing.png"]), 5),
            (Query([], ["rings_1.png", "rings_2.png"], ["bars_0.png"], max_distance=1.2), 5),
            (Query([], ["disc_1.png"], include_self=True), 3),
            (Query([], ["disc_0.png"], where="label = bars"), 5),
            (Query([], ["disc_0.png"], where="year <"), 5),
            (Query([], ["bars_2.png"]), 5),
        ]
        together = gallery.search_many(asked)
        broken = gallery.search_many([*asked, (Query([], [None]), 5)])  # a bad query affects no other
        assert [type(answer) for answer in broken] == [*map(type, together), TypeError]
        for answer, one in zip(together, asked, strict=True):
            if isinstance(answer, Problem):
                with pytest.raises(Problem) as alone:
                    gallery.search(*one)
                assert alone.value.message == answer.message
            else:
                assert answer.to_dict() == gallery.search(*one).to_dict()
        assert [getattr(answer, "status", 200) for answer in together] == [200, 404, 200, 200, 200, 400, 200]


def test_a_condition_that_takes_too_long(monkeypatch, place):
    monkeypatch.setattr("dr_keras.index.searcher.CLOCK_STEPS", 10)
    with client(place) as page:
        page.app.state.service.live_index.index.condition_seconds = 0
        body = {"positives": ["disc_0.png"], "where": " OR ".join(f"name LIKE '%{n}%a%'" for n in range(40))}
        refused(page.post("/v1/search", json=body), 400, "the condition takes more than 0 seconds")
        search(page, positives=["disc_0.png"])
