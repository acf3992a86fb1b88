"""The web page and the HTTP API: what they answer, and what they refuse."""

import asyncio
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn
from conftest import draw_encoded, script, serving, write_folders
from fastapi.testclient import TestClient
from PIL import Image

from dr_keras import load
from dr_keras.app import guard, protocol, schemas
from dr_keras.app.batching import Batcher
from dr_keras.app.files import Thumbnails, remove_upload, store_upload
from dr_keras.app.gallery import Query
from dr_keras.app.problems import Problem
from dr_keras.app.projection import decode_map, encode_map, fit_pca, project_rows
from dr_keras.app.server import create_app
from dr_keras.app.settings import Settings, read_token
from dr_keras.errors import InputError
from dr_keras.retrieval.index import Index
from dr_keras.retrieval.layout import Layout

TOKEN = "correct horse battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def place(workplace, tmp_path):
    """A working folder with a copy of the run `small` and an index of 16 pictures, `mine`."""
    shutil.copytree(workplace / "runs" / "small", tmp_path / "runs" / "small")
    write_folders(tmp_path / "mine", each=4, seed=5)
    result = script(tmp_path, "index.py", "add", "mine", "--run", "small", "--index", "my-index")
    assert result.returncode == 0, result.stderr
    return tmp_path


@contextmanager
def client(place, **settings):
    """A client of an application on the index `my-index`."""
    model = load(place / "runs" / "small", runtime="litert", index=place / "my-index")
    with TestClient(create_app(model, Settings(**settings))) as made:
        yield made


@pytest.fixture
def page(place):
    with client(place) as made:
        yield made


@pytest.fixture
def writable(place):
    with client(place, writable=True, token=TOKEN, uploads=place / "uploads") as made:
        yield made


def search(client, k=30, **body):
    answer = client.post("/v1/search", params={"k": k}, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer, status, words):
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), (answer.status_code, answer.text)
    assert answer.headers["content-security-policy"] == guard.POLICY
    return answer


# Search


def test_a_search_answers_what_retrieve_prints(place, page):
    said = script(place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", "--json", "--top", "7")
    assert search(page, 7, positives=["disc_0.png"]) == json.loads(said.stdout)
    more = ("--query", "disc_1.png", "--negative", "bars_1.png", "--where", "label != rings", "--max-distance", "1.2")
    said = script(place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", *more, "--json")
    found = search(
        page,
        positives=["disc_0.png", "disc_1.png"],
        negatives=["bars_1.png"],
        where="label != rings",
        max_distance=1.2,
    )
    assert found == json.loads(said.stdout)
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


def test_bodies_that_are_no_request(page):
    json_type = {"Content-Type": "application/json"}
    refused(page.post("/v1/search", content=b"{", headers=json_type), 400, "no JSON")
    refused(page.post("/v1/search", content=b"[" * 100_000, headers=json_type), 400, "nests too deeply")
    refused(page.post("/v1/search", content=b"\xff\xfe", headers=json_type), 400, "no JSON")
    nan = b'{"positives": ["disc_0.png"], "max_distance": NaN}'
    refused(page.post("/v1/search", content=nan, headers=json_type), 422, "max_distance")
    huge = b'{"positives": ["disc_0.png"], "max_distance": ' + b"9" * 5000 + b"}"
    refused(page.post("/v1/search", content=huge, headers=json_type), 400, "no JSON")
    lone = b'{"positives": ["\\udcff"]}'
    refused(page.post("/v1/search", content=lone, headers=json_type), 404, "no image is called")
    half = b'{"positives": ["\\ud800"]}'
    refused(page.post("/v1/search", content=half, headers=json_type), 422, "positives.0")
    refused(page.post("/v1/search", content=b"x" * 300_000, headers=json_type), 413, "at most 262,144")
    refused(page.post("/v1/search", content=b"x", headers={"Content-Type": "text/plain"}), 415, "'text/plain'")
    refused(page.post("/v1/search"), 415, "of no type")
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert page.post("/v1/search", content=b"x", headers=no_boundary).status_code == 400
    refused(page.post("/v1/search", files={"file": b"x"}), 422, "images come as the field 'image'")
    refused(page.post("/v1/search", files={"image": draw_encoded()}, data={"run": "x"}), 422, "the field 'run'")
    many = [("image", draw_encoded(seed)) for seed in range(9)]
    assert page.post("/v1/search", files=many).status_code == 400
    for k in ("0", "1001", "many"):
        refused(page.post(f"/v1/search?k={k}", json={"positives": ["disc_0.png"]}), 422, "k: ")


def bomb(side):
    """A PNG of a few bytes that says it has `side` x `side` pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_are_none(page):
    def send(data):
        return page.post("/v1/search", files={"image": data})

    refused(send(b""), 400, "is empty")
    refused(send(b"<script>alert(1)</script>"), 415, "no image of a known format")
    refused(send(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 415, "no image of a known format")
    refused(send(draw_encoded()[:200]), 415, "cannot be decoded")
    for side in (8_000, 13_000, 60_000):
        refused(send(bomb(side)), 413, "pixels")
    for kind in ("JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        assert send(draw_encoded(kind=kind)).status_code == 200


def test_a_body_that_is_too_large(place):
    with client(place, body_bytes=5000) as page:
        answer = page.post("/v1/search", files={"image": b"x" * 6000})
        assert refused(answer, 413, "at most 5,000")
        boundary = {"Content-Type": "multipart/form-data; boundary=b"}
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'

        def pieces():
            yield head
            for _ in range(10):
                yield b"x" * 1000

        refused(page.post("/v1/search", content=pieces(), headers=boundary), 413, "at most 5,000")


# Images


def test_images_and_thumbnails(place, page):
    file = place / "mine" / "disc" / "disc_0.png"
    answer = page.get("/v1/images/disc/disc_0.png")
    assert (answer.content, answer.headers["content-type"]) == (file.read_bytes(), "image/png")
    assert page.get("/v1/images/disc%2Fdisc_0.png").content == file.read_bytes()
    again = page.get("/v1/images/disc/disc_0.png", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for _ in range(2):
        small = page.get("/v1/images/disc/disc_0.png?thumbnail=16")
        assert small.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(small.content)).size == (16, 16)
    for side in (0, 15, 1025, "x"):
        refused(page.get(f"/v1/images/disc/disc_0.png?thumbnail={side}"), 422, "thumbnail")
    file.unlink()
    refused(page.get("/v1/images/disc/disc_0.png"), 404, "its file is gone")


class Raw:
    """The answer to a request whose path nobody has tidied up, as HTTP clients do."""

    def __init__(self, client, path):
        self.headers, self.content = {}, b""
        raw_path, _, query = path.encode().partition(b"?")
        scope = {
            "type": "http",
            "method": "GET",
            "path": unquote(raw_path.decode()),
            "raw_path": raw_path,
            "query_string": query,
            "headers": [(b"host", b"testserver")],
            "http_version": "1.1",
            "scheme": "http",
            "client": ("client", 1),
            "server": ("testserver", 80),
            "root_path": "",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        asyncio.run(client.app(scope, self._receive, self._send))

    async def _receive(self):
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status_code = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        self.content += message.get("body", b"")

    @property
    def text(self):
        return self.content.decode()

    def json(self):
        return json.loads(self.content)


def raw(client, path):
    return Raw(client, path)


def test_ids_that_climb(place, page):
    (place / "secret.png").write_bytes(draw_encoded())
    for path in (
        "../secret.png",
        "..%2fsecret.png",
        "%2e%2e/secret.png",
        "%2e%2e%2fsecret.png",
        "%252e%252e%252fsecret.png",
        "disc/../../secret.png",
        "disc/../disc/disc_0.png",
        f"{place}/secret.png",
        f"/{place}/mine/disc/disc_0.png",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "disc%00disc_0.png",
        "disc/disc_0.png%00",
        "",
        ".",
        "disc_0.png",
        "..\\secret.png",
    ):
        refused(raw(page, f"/v1/images/{path}"), 404, "no image of this id")
        refused(raw(page, f"/v1/images/{path}?thumbnail=32"), 404, "no image of this id")
    refused(raw(page, "/v1/images/" + "x" * 2000), 414, "2,000 characters")
    refused(raw(page, "/v1/images/" + "x" * 9000), 414, "9,011 bytes")
    for path in ("/static/../server.py", "/static/%2e%2e%2fserver.py", "/static//etc/passwd", "/static/..", "/x"):
        assert raw(page, path).status_code == 404


def test_files_that_leave_the_gallery(place, page):
    disc = place / "mine" / "disc"
    (place / "secret.png").write_bytes(draw_encoded())
    (disc / "disc_0.png").unlink()
    (disc / "disc_0.png").symlink_to(place / "secret.png")
    refused(page.get("/v1/images/disc/disc_0.png"), 403, "outside of the gallery")
    (disc / "disc_1.png").unlink()
    os.mkfifo(disc / "disc_1.png")
    refused(page.get("/v1/images/disc/disc_1.png?thumbnail=32"), 403, "no plain file")
    (disc / "disc_2.png").write_text("<html><script>alert(1)</script></html>")
    refused(page.get("/v1/images/disc/disc_2.png"), 415, "no image of a known format")
    (disc / "disc_3.png").unlink()
    (disc / "disc_3.png").symlink_to(disc.parent / "bars" / "bars_0.png")
    assert page.get("/v1/images/disc/disc_3.png").content == (place / "mine" / "bars" / "bars_0.png").read_bytes()
    shutil.move(place / "mine" / "bars", place / "bars")
    (place / "mine" / "bars").symlink_to(place / "bars")
    refused(page.get("/v1/images/bars/bars_1.png"), 403, "outside of the gallery")


def test_images_that_were_indexed_elsewhere(place):
    other = write_folders(place / "other", each=2, seed=9, classes=("disc",))
    assert script(place, "index.py", "add", "other", "--index", "my-index").returncode == 0
    with client(place) as page:
        id = str(other / "disc" / "disc_1.png")
        assert page.get(f"/v1/images/{id}").content == Path(id).read_bytes()
        (place / "secret.png").write_bytes(draw_encoded())
        Path(id).unlink()
        Path(id).symlink_to(place / "secret.png")
        refused(page.get(f"/v1/images/{id}"), 403, "outside of the gallery")


def test_names_that_are_not_utf8(place):
    folder = os.fsencode(place / "mine" / "disc")
    shutil.copy(folder + b"/disc_0.png", folder + b"/\xff.png")
    assert script(place, "index.py", "add", "mine", "--index", "my-index").returncode == 0
    with client(place) as page:
        assert raw(page, "/v1/images/disc/%ff.png").status_code == 200
        found = search(page, 1, positives=["disc_0.png"])
        assert found["results"][0]["id"] == "disc/\udcff.png"
        found = page.post("/v1/search", content=json.dumps({"positives": ["disc/\udcff.png"]}), headers={
            "Content-Type": "application/json"})  # fmt: skip
        assert found.json()["label"] == "disc"


def test_thumbnails_are_kept_up_to_a_size(page):
    gallery = page.app.state.server.gallery
    small = Thumbnails(limit=2000)
    for number in (0, 1, 2, 3):
        opened = gallery.open_image(f"rings/rings_{number}.png")
        assert small.get(opened, 32)[:2] == b"\xff\xd8"
        opened.close()
    assert small._bytes == sum(map(len, small._kept.values())) <= 2000


# Changes


def test_images_are_added_and_removed(place, writable):
    data = draw_encoded(seed=3, kind="JPEG")
    form = {"label": "coins", "attributes": '{"year": 2026}'}
    answer = writable.post("/v1/images", files={"image": ("../../../x.php", data)}, data=form, headers=BEARER)
    added = answer.json()
    assert (answer.status_code, added["created"], added["label"]) == (201, True, "coins")
    assert added["attributes"] == {"year": 2026}
    file = place / "uploads" / added["name"]
    assert (file.read_bytes(), file.suffix) == (data, ".jpg")
    assert [one.name for one in (place / "uploads").iterdir()] == [added["name"]]
    schemas.Added.model_validate(added)
    # The next search finds it, and its file is served.
    found = writable.post("/v1/search?k=1", files={"image": data}).json()["results"][0]
    assert (found["id"], found["attributes"]) == (added["id"], {"year": 2026})
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
    # An image of the gallery leaves the index, and its file stays.
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
    refused(add(files={"picture": b"x"}), 422, "images come as the field 'image'")
    refused(add(files={"image": b"GIF89a, not"}), 415, "")
    refused(add(files=files, data={"attributes": "[1]"}), 422, "a JSON object")
    refused(add(files=files, data={"attributes": '{"a": NaN}'}), 422, "are not what JSON can say")
    refused(add(files=files, data={"label": "a\nb"}), 422, "printable characters")
    refused(add(files=files, data={"label": "a" * 201}), 422, "printable characters")
    assert not list((place / "uploads").iterdir())
    with Index.open(place / "my-index", write=True):
        answer = refused(add(files=files), 503, "another process is writing")
        assert answer.headers["retry-after"] == "2"
        refused(writable.delete("/v1/images/disc/disc_0.png", headers=BEARER), 503, "another process is writing")
    assert add(files=files).status_code == 201


def test_uploads_never_leave_their_folder(tmp_path):
    inside, outside = tmp_path / "uploads", tmp_path / "outside.png"
    inside.mkdir()
    outside.write_bytes(b"x")
    (inside / "link.png").symlink_to(outside)
    assert remove_upload(inside / "link.png", inside)
    assert not (inside / "link.png").is_symlink()
    assert not remove_upload(outside, inside)
    assert not remove_upload(inside / ".." / "outside.png", inside)
    assert outside.exists()
    # A link that waits under the name of a content is not written through.
    from dr_keras.app.files import FORMATS

    first, _, _ = store_upload(b"data", FORMATS["PNG"], inside)
    first.unlink()
    first.symlink_to(outside)
    second, _, new = store_upload(b"data", FORMATS["PNG"], inside)
    assert (second.is_symlink(), second.read_bytes(), new, outside.read_bytes()) == (False, b"data", True, b"x")


def test_a_search_goes_on_while_others_write(place, writable):
    with client(place) as reader, ThreadPoolExecutor(4) as pool:
        images = [draw_encoded(seed) for seed in range(20, 28)]
        searches = [pool.submit(search, reader, 30, positives=["disc_0.png"]) for _ in range(20)]
        for image in images:
            added = writable.post("/v1/images", files={"image": image}, headers=BEARER).json()
            found = reader.post("/v1/search?k=1", files={"image": image}).json()["results"][0]
            assert found["id"] == added["id"]  # another server, on the same index
        assert all(len(one.result()["results"]) >= 15 for one in searches)


def test_settings_that_make_no_server(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="needs a token: set DR_KERAS_TOKEN"):
        Settings(writable=True, uploads=tmp_path)
    with pytest.raises(InputError, match="has 5 characters; at least 16"):
        Settings(writable=True, uploads=tmp_path, token="short")
    with pytest.raises(InputError, match="--uploads FOLDER"):
        Settings(writable=True, token=TOKEN)
    assert TOKEN not in repr(Settings(writable=True, token=TOKEN, uploads=tmp_path))
    monkeypatch.setenv("DR_KERAS_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    (tmp_path / "token").write_text("from a file\n")
    assert read_token(str(tmp_path / "token")) == "from a file"
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_token(str(tmp_path / "absent"))


# The map


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
    ids = [page.get(f"/v1/map/{about['key']}/{n}").json()["id"] for n in where["neighbours"]]
    assert ids == [result["id"] for result in found]
    refused(page.get(f"/v1/map/{about['key']}/16"), 404, "16 points")
    refused(page.get("/v1/map/v0/1"), 409, "load it again")
    refused(page.get(f"/v1/map/{about['key']}/x"), 422, "number")
    with Index.open(place / "my-index", write=True) as index:
        index.remove(["disc/disc_0.png"])
    refused(page.get(f"/v1/map/{about['key']}/1"), 409, "load it again")
    assert len(decode_map(page.get("/v1/map").content)[0]) == 15


def test_a_map_has_another_key_when_it_is_laid_out_anew_and_follows_the_index(place, writable):
    with client(place) as page:
        first = page.get("/v1/map")
        assert page.get("/v1/map", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    with Index.open(place / "my-index") as index:
        vectors = np.array(index.vectors)
        Layout(vectors, np.arange(2 * len(vectors), dtype=np.float32).reshape(-1, 2), index.model).save(index.folder)
    with client(place) as page:
        second = page.get("/v1/map", headers={"If-None-Match": first.headers["etag"]})
        points, _, about = decode_map(second.content)
        assert about["method"] == "UMAP"
        np.testing.assert_allclose(points, np.arange(2 * len(vectors)).reshape(-1, 2), atol=1e-2)
        added = writable.post("/v1/images", files={"image": draw_encoded(9)}, data={"label": "new"}, headers=BEARER)
        assert added.status_code == 201
        after, _, _ = decode_map(page.get("/v1/map").content)
        assert np.array_equal(after[:-1], points)  # what was there stays where it is
        assert {one["label"]: one["count"] for one in page.get("/v1/classes").json()}["new"] == 1


def test_a_map_of_nothing(place, page):
    with Index.open(place / "my-index", write=True) as index:
        index.remove(index.matching("*"))
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
    points = project_rows(fit_pca(vectors, rows), vectors, rows)
    for column in (0, 1):
        assert abs(np.corrcoef(points[:, column], values[rows, column])[0, 1]) > 0.99
    assert points.std(axis=0)[0] / points.std(axis=0)[1] == pytest.approx(9 / 5, rel=0.1)
    assert 0.99 < (np.abs(points) <= 1).all(axis=1).mean() <= 1
    one = fit_pca(np.ones((1, 1), np.float32), np.array([0]))(np.ones((1, 1), np.float32))
    assert (one.shape, np.isfinite(one).all()) == ((1, 2), True)
    back = decode_map(encode_map(points, rows, {"a": "é"}))
    assert np.array_equal(back[0], points)
    assert np.array_equal(back[1], rows)
    assert back[2] == {"a": "é"}
    with pytest.raises(ValueError, match="a map begins with"):
        decode_map(b"")
    with pytest.raises(ValueError, match="were given"):
        decode_map(encode_map(points, rows, {})[:-1])


# The page, and what watches the server


def test_the_page_loads_nothing_from_elsewhere(page):
    html = page.get("/").text
    assert page.get("/").headers["content-type"] == "text/html; charset=utf-8"
    parts = re.findall(r'(?:src|href)="(/static/[^"]+)"', html)
    assert {"/static/app.js", "/static/style.css", "/static/icon.svg"} <= set(parts)
    for part in (*parts, "/static/map.js"):
        answer = page.get(part)
        assert answer.status_code == 200
        assert not re.search(r"(?<!xmlns=\")https?://", answer.text)
        again = page.get(part, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", html)
    assert page.get("/favicon.ico").status_code == 200


def test_a_method_that_a_path_has_not(page):
    answer = refused(page.put("/v1/images/disc/disc_0.png"), 405, "PUT does nothing here")
    assert answer.headers["allow"] == "DELETE, GET"
    assert page.get("/v1/search").headers["allow"] == "POST"


def test_a_name_finds_its_image(page):
    found = page.get("/v1/find", params={"name": "disc_0.png"}).json()
    assert found == {
        "id": "disc/disc_0.png", "name": "disc_0.png", "label": "disc", "class_name": "disc", "attributes": {}
    }  # fmt: skip
    refused(page.get("/v1/find", params={"name": "disc_o.png"}), 404, "Near it: disc_")
    refused(page.get("/v1/find", params={"name": ""}), 422, "name")


def test_every_answer_has_its_headers(page):
    for answer in (page.get("/"), page.get("/v1/stats"), page.get("/v1/images/x"), page.get("/x"), page.put("/")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
    assert page.get("/docs").status_code == 404


def test_what_watches_the_server(page):
    assert page.get("/healthz").json() == page.get("/readyz").json() == {"status": "ok"}
    stats = schemas.Stats.model_validate(page.get("/v1/stats").json())
    assert (stats.searched, stats.classes, stats.writable, stats.run) == (16, 4, False, "small")
    assert len(page.get("/v1/sample?k=5").json()) == 5
    search(page, positives=["disc_0.png"])
    page.get("/v1/images/nothing")
    text = page.get("/metrics").text
    assert 'dr_keras_requests_total{method="POST",route="/v1/search",status="200"} 1.0' in text
    assert 'dr_keras_requests_total{method="GET",route="/v1/images/{id:path}",status="404"} 1.0' in text
    assert "dr_keras_images 16.0" in text
    document = page.get("/openapi.json").json()
    assert {"/v1/search", "/v1/images/{id}", "/v1/images", "/v1/stats", "/v1/map"} <= set(document["paths"])
    asked = document["paths"]["/v1/search"]["post"]
    assert set(asked["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert asked["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SearchResponse")
    assert document["paths"]["/v1/images"]["post"]["security"] == [{"token": []}]


def test_a_name_that_is_not_the_servers(place):
    with client(place, hosts=("localhost", "::1")) as page:
        assert page.get("/healthz", headers={"Host": "localhost:8000"}).status_code == 200
        assert page.get("/healthz", headers={"Host": "[::1]:8000"}).status_code == 200
        for host in ("evil.example", "", "localhost.evil.example", "[::1", "\u00e9"):
            refused(page.get("/healthz", headers={"Host": host.encode()}), 400, "Host header")
        twice = [("Host", "localhost"), ("Host", "evil.example")]
        refused(page.get("/healthz", headers=twice), 400, "several Host headers")


def test_an_index_that_breaks_says_so_without_its_path(place, page):
    with Index.open(place / "my-index", write=True) as index:
        index.remove(["disc/disc_0.png"])
    with open(place / "my-index" / "vectors-0.f32", "r+b") as file:
        file.truncate(64)
    answer = refused(page.post("/v1/search", json={"positives": ["disc_1.png"]}), 500, "its log says why")
    assert str(place) not in answer.text
    refused(page.get("/readyz"), 503, "the index cannot be read")


# Many at once


def test_what_comes_together_is_worked_on_together():
    sizes = []

    def work(numbers):
        time.sleep(0.05)
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
        await asyncio.sleep(0.02)
        gone.cancel()
        assert await asyncio.gather(*tasks) == [10 * number for number in range(20)]
        bad, good = await asyncio.gather(batcher.do(99), batcher.do(1), return_exceptions=True)
        assert (str(bad), good) == ("a bad one", 10)
        lost = await asyncio.gather(batcher.do(98), batcher.do(2), return_exceptions=True)
        assert [str(error) for error in lost] == ["all is lost"] * 2
        last = asyncio.create_task(batcher.do(7))  # is ended before the stop
        await asyncio.sleep(0)
        await batcher.stop()
        assert await last == 70
        assert not batcher.working

    asyncio.run(scene())
    assert sizes == [8, 8, 4, 2, 2, 1]


def test_searches_that_come_together_are_answered_as_if_alone(place):
    with client(place) as page:
        gallery = page.app.state.server.gallery
        nothing = np.empty((0, 0), np.float32)
        asked = [
            (Query(nothing, ["disc_0.png"]), 5),
            (Query(nothing, ["nothing.png"]), 5),
            (Query(nothing, ["rings_1.png", "rings_2.png"], ["bars_0.png"], max_distance=1.2), 5),
            (Query(nothing, ["disc_1.png"], include_self=True), 3),
            (Query(nothing, ["disc_0.png"], where="label = bars"), 5),
            (Query(nothing, ["disc_0.png"], where="year <"), 5),
            (Query(nothing, ["bars_2.png"]), 5),
        ]
        together = gallery.search_many(asked)
        broken = gallery.search_many([*asked, (Query(nothing, [None]), 5)])  # whatever is wrong with one, is its own
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
    monkeypatch.setattr("dr_keras.retrieval.index.PATIENCE", 10)
    with client(place) as page:
        page.app.state.server.gallery.index.condition_seconds = 0
        body = {"positives": ["disc_0.png"], "where": " OR ".join(f"name LIKE '%{n}%a%'" for n in range(40))}
        refused(page.post("/v1/search", json=body), 400, "the condition takes more than 0 seconds")
        search(page, positives=["disc_0.png"])


def test_beyond_the_limit_clients_are_told_to_come_again(place):
    with client(place, concurrency=1) as page:
        server = page.app.state.server
        enter, leave = threading.Event(), threading.Event()
        stats = server.gallery.stats

        def slow():
            enter.set()
            leave.wait(10)
            return stats()

        server.gallery.stats = slow
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(page.get, "/v1/stats")
            assert enter.wait(10)
            answer = refused(page.get("/v1/sample"), 503, "which is all that are at once")
            assert answer.headers["retry-after"] == "1"
            assert page.get("/healthz").status_code == 200
            assert "dr_keras_requests_in_flight 1.0" in page.get("/metrics").text
            leave.set()
            assert first.result().status_code == 200
        assert page.get("/v1/sample").status_code == 200


def test_a_body_that_does_not_come(place):
    async def scene():
        sent = []

        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        page = create_app(
            load(place / "runs" / "small", runtime="litert", index=place / "my-index"), Settings(body_seconds=0.05)
        )
        headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", b"20")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/search", "raw_path": b"/v1/search", "query_string": b"",
            "headers": headers, "http_version": "1.1", "scheme": "http", "client": ("x", 1), "server": ("x", 1),
            "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        await page(scope, receive, send)
        assert sent[0]["status"] == 408
        assert b"did not arrive within 0.05 seconds" in sent[1]["body"]

    asyncio.run(scene())


# The process


def test_serve_as_a_process(place, refuse):
    env = refuse("tensorflow", "keras") | {"DR_KERAS_TOKEN": TOKEN}
    arguments = ("--index", "my-index", "--writable", "--uploads", "uploads")
    with serving(place, *arguments, env=env) as (process, address), httpx.Client(base_url=address, timeout=30) as page:
        assert page.get("/readyz").status_code == 200
        data = draw_encoded(seed=4)
        added = page.post("/v1/images", files={"image": data}, headers=BEARER)
        assert added.status_code == 201
        assert page.post("/v1/search?k=1", files={"image": data}).json()["results"][0]["id"] == added.json()["id"]
        host, port = address.removeprefix("http://").split(":")
        climb = b"GET /v1/images/../../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert b" 404 " in said(host, port, climb).splitlines()[0]
        assert b" 400 " in said(host, port, b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert b" 400 " in said(host, port, b"\0\1\2\r\n\r\n")
        assert b" 400 " in said(host, port, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n")
        # What is in flight when the server is stopped is ended.
        with socket.create_connection((host, int(port))) as slow:
            body = json.dumps({"positives": ["disc_0.png"]}).encode()
            slow.sendall(
                b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)
            )
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            slow.sendall(body)
            answer = b"".join(iter(lambda: slow.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
            assert b"disc/disc_1.png" in answer
        process.wait(30)
    log = (place / "serve.log").read_text()
    assert "Application shutdown complete" in log
    assert TOKEN not in log
    assert "Traceback" not in log


def said(host, port, data):
    """What a server answers to some bytes."""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


@contextmanager
def listening(place, **settings):
    """An application that listens, in a thread: its host and port."""
    model = load(place / "runs" / "small", runtime="litert", index=place / "my-index")
    app = create_app(model, Settings(**settings))
    config = uvicorn.Config(app, port=0, http=protocol.PatientProtocol, ws="none", log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


def test_a_client_that_does_not_take_its_answer(place):
    Image.effect_noise((2000, 2000), 50).convert("RGB").save(place / "mine" / "disc" / "big.bmp")
    added = script(place, "index.py", "add", "mine", "--index", "my-index")
    assert added.returncode == 0, added.stderr
    ask = b"GET /v1/images/disc/big.bmp HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with listening(place, send_seconds=0.3) as (host, port):
        assert len(said(host, port, ask)) > 12_000_000
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((host, port))
            slow.sendall(ask)
            time.sleep(1)
            assert b" 200 " in said(host, port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            slow.settimeout(20)
            got = 0
            with suppress(ConnectionResetError):
                while piece := slow.recv(1 << 20):
                    got += len(piece)
            assert got < 12_000_000


def test_a_head_that_does_not_come(monkeypatch, place):
    monkeypatch.setattr(protocol.PatientProtocol, "head_seconds", 0.3)
    monkeypatch.setattr(protocol.PatientProtocol, "most", 2)
    with listening(place) as (host, port):
        assert b"HTTP/1.1 408 " in said(host, port, b"GET / HTT")
        assert b"HTTP/1.1 408 " in said(host, port, b"")
        whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        with socket.create_connection((host, port), timeout=20) as connection:
            connection.sendall(whole)
            answer = b""
            while b'"ok"}' not in answer:
                answer += connection.recv(65536)
            connection.sendall(b"GET /hea")
            assert b" 408 " in connection.recv(65536)
        monkeypatch.setattr(protocol.PatientProtocol, "head_seconds", 30)
        with socket.create_connection((host, port)), socket.create_connection((host, port)):
            time.sleep(0.1)
            answer = said(host, port, whole)
            assert b" 503 " in answer
            assert b"retry-after: 5" in answer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--index", "my-index", "--gallery", "mine"), "give one of them"),
        (("--index", "absent"), "is no index"),
        (("--index", "my-index", "--writable"), "needs a token"),
        (("--index", "my-index", "--concurrency", "0"), "at least 1"),
    ],
)
def test_flags_that_make_no_server(place, arguments, words):
    result = script(place, "serve.py", *arguments, env={"DR_KERAS_TOKEN": ""})
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
