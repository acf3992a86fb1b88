"""What monitors, caches and reverse proxies rely on: HEAD, entity tags, ranges, arbitrary names, a root path."""

import re
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import pytest
from conftest import draw_encoded, indexed, script, serving
from fastapi import FastAPI
from fastapi.testclient import TestClient
from served import BEARER, TOKEN, client, proxy, raw, refused, search

from dr_keras import load
from dr_keras.errors import InputError
from dr_keras.index.index import Index
from dr_keras.server.map import decode_map
from dr_keras.server.page import STATIC
from dr_keras.server.routes import create_app
from dr_keras.server.settings import Settings

IMAGE = "/v1/images/disc/disc_0.png"
SMALL = f"{IMAGE}?thumbnail=32"
TAGGED = (
    IMAGE,
    SMALL,
    "/",
    "/static/app.js",
    "/static/client.js",
    "/static/map.js",
    "/static/style.css",
    "/favicon.ico",
    "/v1/map",
)
OTHERS = ("/v1/stats", "/v1/classes", "/v1/find?name=disc_0.png", "/healthz", "/readyz", "/openapi.json")
REFUSED = ("/v1/images/none", "/nothing", "/v1/find?name=none", "/static/none", "/v1/sample?k=0", "/v1/map/v0/0")


@pytest.fixture(scope="module")
def page(workplace, tmp_path_factory):
    """A client of a server whose index does not change."""
    with client(indexed(tmp_path_factory.mktemp("http"), workplace)) as made:
        yield made


@pytest.mark.parametrize("path", [*TAGGED, *OTHERS, *REFUSED])
def test_head_is_get_without_its_body(page, path):
    whole, head = page.get(path), page.head(path)
    assert head.content == b""
    assert (head.status_code, head.headers) == (whole.status_code, whole.headers)
    assert int(head.headers["content-length"]) == len(whole.content)
    raw_head = raw(page, path, method="HEAD")  # what the application itself sends, without a client
    assert (raw_head.status_code, raw_head.content) == (whole.status_code, b"")
    if path in TAGGED:
        same = page.head(path, headers={"If-None-Match": whole.headers["etag"]})
        assert (same.status_code, same.headers["etag"]) == (304, whole.headers["etag"])


def test_head_of_what_changes_by_itself(page):
    for path in ("/v1/sample", "/metrics"):
        assert (page.head(path).status_code, page.head(path).content) == (200, b"")
    assert 'dr_keras_requests_total{method="HEAD",route="/v1/sample",status="200"} 2.0' in page.get("/metrics").text
    assert "head" not in page.get("/openapi.json").json()["paths"]["/v1/stats"]


@pytest.mark.parametrize("path", TAGGED)
def test_tags_are_compared_weakly(page, path):
    first = page.get(path)
    tag = first.headers["etag"]
    assert not tag.startswith("W/")
    for given in (tag, f"W/{tag}", f'"other", {tag}', f'W/"a,b" ,W/{tag},"c"', "*", " * ", ['"x"', f"W/{tag}"]):
        lines = [("If-None-Match", one) for one in ([given] if isinstance(given, str) else given)]
        answer = page.get(path, headers=lines)
        assert (answer.status_code, answer.content) == (304, b""), given
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"] == first.headers["cache-control"]
    for given in ('"other"', tag.strip('"'), f'"{tag}', "", f'"x{tag[1:]}', '"*"', tag[:-1]):
        answer = page.get(path, headers={"If-None-Match": given})
        assert (answer.status_code, answer.content) == (200, first.content), given


def test_a_tag_of_what_is_gone(page):
    refused(page.get("/v1/images/none", headers={"If-None-Match": "*"}), 404, "no image of this id")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=100-", 100, None),
        ("bytes=-5", -5, None),
        ("bytes=-999999", 0, None),
        ("bytes=0-999999999999999999", 0, None),
        ("Bytes= 7-7 ", 7, 7),
    ],
)
def test_a_part_of_an_image(page, asked, first, last):
    whole = page.get(IMAGE)
    size = len(whole.content)
    assert whole.headers["accept-ranges"] == "bytes"
    start = max(size + first, 0) if first < 0 else first
    stop = size if last is None else last + 1
    for more in ({}, {"If-Range": whole.headers["etag"]}):
        answer = page.get(IMAGE, headers={"Range": asked} | more)
        assert (answer.status_code, answer.content) == (206, whole.content[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert int(answer.headers["content-length"]) == stop - start
        assert answer.headers["etag"] == whole.headers["etag"]
        assert answer.headers["content-type"] == "image/png"
    same = page.get(IMAGE, headers={"Range": asked, "If-None-Match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


def test_ranges_that_cannot_be_satisfied(page):
    size = len(page.get(IMAGE).content)
    for asked in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
        answer = refused(page.get(IMAGE, headers={"Range": asked}), 416, "the requested range lies outside")
        assert answer.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-1,3-4", "bytes=5-2", "bytes=-", "bytes=", "bytes", "bytes=a-b", "bytes=1-2-3", "lines=0-1", "",
     "bytes=" + "9" * 5000 + "-", "bytes=--5", "bytes=+1-2", "bytes=\u0661-"],
)  # fmt: skip
def test_ranges_that_are_ignored(page, asked):
    whole = page.get(IMAGE)
    answer = page.get(IMAGE, headers={"Range": asked.encode()})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert "content-range" not in answer.headers


def test_a_range_of_another_version_or_where_ranges_are_not_supported(page):
    whole = page.get(IMAGE)
    for other in ('"other"', f"W/{whole.headers['etag']}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = page.get(IMAGE, headers={"Range": "bytes=0-1", "If-Range": other})
        assert (answer.status_code, answer.content) == (200, whole.content)
    head = page.head(IMAGE, headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))
    small = page.get(SMALL, headers={"Range": "bytes=0-1"})
    assert (small.status_code, small.content) == (200, page.get(SMALL).content)


NAMES = (b"two\nlines.png", b"\n.png", b"ends\n", b"\r\n\t.png", b"\xff\xfe.png", b"a?b#c%25;&=+.png", b"%0A.png", b" ",
         "\u2028\u0085é\U0001f600.png".encode())  # fmt: skip


def test_names_of_any_bytes(place):
    wanted = {}
    for number, name in enumerate(NAMES):
        name += b"" if name.endswith(b".png") else b".png"
        wanted[name] = draw_encoded(100 + number)
        Path(place / "mine" / "disc" / name.decode("utf-8", "surrogateescape")).write_bytes(wanted[name])
    assert script(place, "index.py", "add", "mine", "--index", "my-index").returncode == 0
    arguments = ("--index", "my-index", "--writable", "--uploads", "uploads")
    with serving(place, *arguments, env={"DR_KERAS_TOKEN": TOKEN}) as (_, address):
        at = HTTPConnection(urlsplit(address).netloc, timeout=60)

        def ask(method, target, **headers):
            at.request(method, target, headers=headers)
            answer = at.getresponse()
            return answer.status, answer.headers, answer.read()

        for name, data in wanted.items():
            target = "/v1/images/disc/" + quote(name)
            status, headers, body = ask("GET", target)
            assert (status, body) == (200, data), name
            head_status, head, nothing = ask("HEAD", target)
            assert (head_status, nothing) == (200, b"")
            del headers["Date"], head["Date"]
            assert head.items() == headers.items()
            assert ask("GET", target, Range="bytes=1-3")[2] == data[1:4]
            assert ask("GET", f"{target}?thumbnail=32")[1]["Content-Type"] == "image/jpeg"
            every = "/v1/images/" + "".join(f"%{byte:02x}" for byte in b"disc/" + name)
            assert ask("GET", every)[2] == data
            assert ask("GET", f"/v1%2fimages%2Fdisc/{quote(name)}")[2] == data  # an escaped slash works too
            assert ask("DELETE", target, **BEARER)[0] == 200
            assert ask("GET", target)[0] == 404
        at.close()
    with Index.open(place / "my-index") as index:
        assert len(index) == 16


# Behind a proxy


@pytest.mark.parametrize("given", [False, True])
def test_the_page_refers_to_what_is_below_it(place, given):
    """Without --root-path behind a proxy that strips the path, with it behind either kind."""
    with client(place, root_path="/photos" if given else "") as page:
        for base in ("/", "/photos/") if given else ("/",):
            html = page.get(base).text
            references = re.findall(r'(?:src|href)="([^"#]+)"', html)
            assert len(references) >= 4
            for reference in references:
                found = urljoin(base, reference)
                assert found.startswith(base)
                assert page.get(found).status_code == 200, found
    scripts = "".join(
        (STATIC / name).read_text()
        for name in ("app.js", "client.js", "map.js", "map_points.js", "state.js", "view.js")
    )
    assert len(re.findall(r"""["'`]v1/""", scripts)) >= 8
    assert not re.search(r"""["'`]/(v1|static|\?)""", scripts)


def test_it_is_mounted_in_another_application(place):
    """As examples/web_application.ipynb ends."""
    model = load(place / "runs" / "small", runtime="litert", index=place / "my-index")
    inner = create_app(model, Settings(root_path="/search"))

    @asynccontextmanager
    async def lifespan(_):
        async with inner.router.lifespan_context(inner):
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/search", inner)
    data = (place / "mine" / "disc" / "disc_0.png").read_bytes()
    with TestClient(app) as page:
        assert page.get("/search/readyz").status_code == 200
        found = page.post("/search/v1/search?k=1", files={"image": data}).json()["results"]
        assert found[0]["id"] == "disc/disc_0.png"
        assert page.get(f"/search{IMAGE}").content == data
        script_at = re.search(r'src="([^"]*app\.js[^"]*)"', page.get("/search/").text)[1]
        assert page.get(urljoin("http://testserver/search/", script_at)).status_code == 200
        assert page.get("/v1/search").status_code == 404


def test_a_root_path_is_taken_off_where_the_proxy_has_not(place):
    data = (place / "mine" / "disc" / "disc_0.png").read_bytes()
    odd = b"disc/photos\n\xff.png"
    Path(place / "mine" / odd.decode("utf-8", "surrogateescape")).write_bytes(draw_encoded(9))
    assert script(place, "index.py", "add", "mine", "--index", "my-index").returncode == 0
    with client(place, root_path="/photos", hosts=("testserver",)) as page:
        for base in ("", "/photos"):
            assert raw(page, f"{base}{IMAGE}").content == data
            assert raw(page, f"{base}/v1/images/{quote(odd)}").content == draw_encoded(9)
            assert page.get(f"{base}{SMALL}").headers["content-type"] == "image/jpeg"
            assert page.get(f"{base}/healthz").json() == {"status": "ok"}
            assert page.post(f"{base}/v1/search?k=1", json={"positives": ["disc_0.png"]}).status_code == 200
            assert page.get(f"{base}/openapi.json").json()["servers"] == [{"url": "/photos"}]
            refused(page.get(f"{base}/v1/images/none"), 404, "no image of this id")
            assert page.put(f"{base}{IMAGE}").headers["allow"] == "DELETE, GET, HEAD"
        assert raw(page, f"/%70hotos{IMAGE}").content == data
        assert raw(page, f"/photos/photos{IMAGE}").status_code == 404
        assert raw(page, f"/photosx{IMAGE}").status_code == 404
        text = page.get("/metrics").text
        assert 'route="/v1/images/{id}",status="200"' in text
        for method in ("GET", "HEAD"):
            answer = page.request(method, "/photos?q=a%2Fb&k=20", follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (307, "/photos/?q=a%2Fb&k=20")
            assert "content-security-policy" in answer.headers
        assert page.get("/photos", follow_redirects=False).headers["location"] == "/photos/"
    with client(place) as page:
        assert "servers" not in page.get("/openapi.json").json()
        assert page.get("/photos").status_code == 404
        assert page.get("/v1/stats/", follow_redirects=False).status_code == 404


@pytest.mark.parametrize("strips", [True, False])
def test_a_server_behind_a_proxy(place, strips):
    """Either kind of proxy, with the same flag."""
    data = draw_encoded(77)
    arguments = ("--index", "my-index", "--writable", "--uploads", "mine/sent", "--root-path", "/photos/")
    with serving(place, *arguments, env={"DR_KERAS_TOKEN": TOKEN}) as (_, address):
        with proxy(address, "/photos", strips) as outside:
            at = HTTPConnection(urlsplit(outside).netloc, timeout=60)

            def ask(method, target, body=None, **headers):
                at.request(method, target, body, headers)
                answer = at.getresponse()
                return answer.status, answer.headers, answer.read()

            html = ask("GET", "/photos/")[2].decode()
            for reference in re.findall(r'(?:src|href)="([^"#]+)"', html):
                assert ask("GET", urljoin("/photos/", reference))[0] == 200
            assert ask("GET", f"/photos{IMAGE}")[2] == (place / "mine" / "disc" / "disc_0.png").read_bytes()
            status, _, body = ask("HEAD", f"/photos{IMAGE}")
            assert (status, body) == (200, b"")
            form = {"Content-Type": "multipart/form-data; boundary=b"} | BEARER
            part = (
                b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data + b"\r\n--b--\r\n"
            )
            status, _, _ = ask("POST", "/photos/v1/images", part, **form)
            assert status == 201
            with Index.open(place / "my-index") as index:
                (id,) = index.records.matching("sent/*")
            assert ask("GET", f"/photos/v1/images/{id}")[2] == data
            assert ask("DELETE", f"/photos/v1/images/{id}", **BEARER)[0] == 200
            at.close()


# What is revealed about the machine

SENTINEL = "sentinel-folder"


@pytest.fixture
def hidden(place):
    """A working folder whose path contains a name that no response may contain."""
    inner = place / SENTINEL
    inner.mkdir()
    for name in ("runs", "mine"):
        (place / name).rename(inner / name)
    result = script(inner, "index.py", "add", "mine", "--run", "small", "--index", "my-index")
    assert result.returncode == 0, result.stderr
    return inner


def test_no_response_reveals_a_path_on_the_machine(hidden):
    answers = []
    disc = hidden / "mine" / "disc"
    with client(hidden, writable=True, token=TOKEN, uploads=hidden / "mine" / "sent") as page:

        def ask(method, path, **more):
            answers.append(page.request(method, path, **more))
            return answers[-1]

        def by(**body):
            return ask("POST", "/v1/search", json=body)

        for path in (*TAGGED, *OTHERS, *REFUSED, "/v1/sample", "/metrics"):
            for method in ("GET", "HEAD", "POST", "DELETE"):
                ask(method, path, headers=BEARER if method == "POST" else {})
        assert by(positives=["disc_0.png"]).json()["results"][0].keys() >= {"id", "rank"}
        assert "path" not in by(positives=["disc_0.png"]).json()["results"][0]
        key = decode_key(page)
        ask("GET", f"/v1/map/{key}/3")
        ask("POST", "/v1/map/query", json={"positives": ["disc_0.png"]})
        # Refusals
        (disc / "disc_1.png").write_bytes((disc / "disc_1.png").read_bytes()[:100])
        (disc / "disc_2.png").unlink()
        (disc / "disc_2.png").mkdir()
        (disc / "disc_3.png").unlink()
        for name in ("disc_1.png", "disc_2.png", "disc_3.png"):
            ask("GET", f"/v1/images/disc/{name}")
            ask("GET", f"/v1/images/disc/{name}?thumbnail=32")
        for name in ("none.png", "disc_9.png", "disc", "", ".", "..", "/", "/etc/passwd", "disc_0.png/", "a" * 300):
            by(positives=[name])
            ask("GET", "/v1/find", params={"name": name})
        for where in ("year <", "path = 1", "label", "'", "(" * 100, "label = " * 3, "id LIKE '%'", "nothing = 3"):
            by(positives=["bars_0.png"], where=where)
        by(positives=["bars_0.png"], negatives=["bars_0.png"])
        by(positives=["bars_0.png"], max_distance="auto")
        by(positives=["bars_0.png"], unknown=1)
        for data in (b"", b"x", b"\x89PNG\r\n\x1a\n" + b"x" * 50, b"GIF89a", b"II*\0" + b"\xff" * 30):
            ask("POST", "/v1/search", files={"image": data})
            ask("POST", "/v1/images", files={"image": data}, headers=BEARER)
        image = {"image": draw_encoded(44)}
        for attributes in ('{"a": NaN}', '{"a": 1e999}', "[", '{"a": "\\ud800"}'):
            ask("POST", "/v1/images", files=image, data={"attributes": attributes}, headers=BEARER)
        added = ask("POST", "/v1/images", files=image, headers=BEARER)
        assert added.json()["id"].startswith("sent/")
        ask("DELETE", f"/v1/images/{added.json()['id']}", headers=BEARER)
        with Index.open(hidden / "my-index", write=True) as index:
            ask("POST", "/v1/images", files=image, headers=BEARER)
            index.remove(["plain/plain_0.png"])
        with open(hidden / "my-index" / "vectors-0.f32", "r+b") as file:
            file.truncate(64)
        for path in (*OTHERS, "/v1/map", IMAGE):
            ask("GET", path)
        by(positives=["disc_0.png"])
        ask("POST", "/v1/images", files=image, headers=BEARER)
        ask("DELETE", IMAGE, headers=BEARER)
    assert {answer.status_code for answer in answers} == {
        200, 201, 400, 401, 403, 404, 405, 409, 415, 422, 500, 503, 507
    }  # fmt: skip
    for answer in answers:
        told = answer.text + str(answer.headers)
        assert SENTINEL not in told, (answer.request.method, answer.request.url, told)


def test_the_error_for_a_refused_image_does_not_reveal_its_path(monkeypatch, hidden):
    """An image in --uploads outside the gallery has its full path as its id, which the index's own errors contain."""
    with client(hidden, writable=True, token=TOKEN, uploads=hidden / "uploads") as page:

        def fail(*_):
            raise InputError(f"the attributes of '{hidden}/uploads/a.png' are wrong")

        monkeypatch.setattr(page.app.state.service.live_index, "add", fail)
        answer = page.post("/v1/images", files={"image": draw_encoded(1)}, headers=BEARER)
        assert SENTINEL not in refused(answer, 422, "log says why").text


def decode_key(page):
    return decode_map(page.get("/v1/map").content)[2]["key"]


def test_paths_are_shown_on_request(hidden):
    with client(hidden, show_paths=True) as page:
        found = search(page, 1, positives=["disc_0.png"])["results"][0]
        assert found["path"] == str(hidden / "mine" / found["id"])
