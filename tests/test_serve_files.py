"""Files the server receives and sends: formats, sizes, path traversal in ids, links that leave the gallery."""

import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import draw_encoded, script, write_folders
from PIL import Image
from served import client, raw, refused, search

from dr_keras.server.image_files import Thumbnails, remove_upload, store_upload


def bomb(side):
    """A PNG of a few bytes that claims to have `side` x `side` pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_uploads_that_are_not_images(page):
    def send(data):
        return page.post("/v1/search", files={"image": data})

    refused(send(b""), 400, "is empty")
    refused(send(b"<script>alert(1)</script>"), 415, "not an image in a known format")
    refused(send(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 415, "is EPS, which is not supported here")
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
    refused(raw(page, "/v1/images/" + "x" * 17000), 414, "17,011 bytes")
    longest = quote("\U0010ffff" * 1024)  # four bytes per character, all escaped
    refused(raw(page, f"/v1/find?name={longest}"), 404, "no image")
    refused(raw(page, f"/v1/images/{longest}"), 404, "no image of this id")
    refused(raw(page, f"/v1/find?name={longest}x"), 422, "1024 characters")
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
    refused(page.get("/v1/images/disc/disc_2.png"), 415, "not an image in a known format")
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
    gallery = page.app.state.service.live_index
    small = Thumbnails(limit=2000)
    for number in (0, 1, 2, 3):
        opened = gallery.open_image(f"rings/rings_{number}.png")
        assert small.get(opened, 32)[:2] == b"\xff\xd8"
        opened.close()
    assert small.cache.size == sum(map(len, small.cache._values.values())) <= 2000


def test_uploads_never_leave_their_folder(tmp_path):
    inside, outside = tmp_path / "uploads", tmp_path / "outside.png"
    inside.mkdir()
    outside.write_bytes(b"x")
    link = inside / f"{'0a' * 20}.png"
    link.symlink_to(outside)
    assert remove_upload(link, inside)
    assert not link.is_symlink()
    assert not remove_upload(outside, inside)
    assert not remove_upload(inside / ".." / "outside.png", inside)
    assert outside.exists()
    # An existing link at the content's file name is not followed when writing.
    from dr_keras.data.formats import FORMATS

    first, _, _ = store_upload(b"data", FORMATS["PNG"], inside)
    first.unlink()
    first.symlink_to(outside)
    second, _, new = store_upload(b"data", FORMATS["PNG"], inside)
    assert (second.is_symlink(), second.read_bytes(), new, outside.read_bytes()) == (False, b"data", True, b"x")
