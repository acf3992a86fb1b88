"""The server facing untrusted clients: headers, host names, limits, slow clients, settings, start and stop."""

import asyncio
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx2 as httpx
import pytest
import uvicorn
from conftest import draw_encoded, script, serving
from PIL import Image
from served import BEARER, TOKEN, client, refused, search

from dr_keras import load
from dr_keras.errors import InputError
from dr_keras.index.index import Index
from dr_keras.server import http_protocol as protocol
from dr_keras.server import schemas
from dr_keras.server.routes import create_app
from dr_keras.server.settings import Settings, read_token


def test_invalid_settings(monkeypatch, tmp_path):
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


def test_the_page_loads_nothing_from_elsewhere(page):
    html = page.get("/").text
    assert page.get("/").headers["content-type"] == "text/html; charset=utf-8"
    parts = re.findall(r'(?:src|href)="(static/[^"]+)"', html)
    assert {"static/app.js", "static/style.css", "static/icon.svg"} <= set(parts)
    for part in (*parts, *(f"static/{name}.js" for name in ("client", "map", "map_points", "state", "view"))):
        answer = page.get(part)
        assert answer.status_code == 200
        assert not re.search(r"(?<!xmlns=\")https?://", answer.text)
        again = page.get(part, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", html)
    assert page.get("/favicon.ico").status_code == 200


def test_every_answer_has_its_headers(page):
    for answer in (page.get("/"), page.get("/v1/stats"), page.get("/v1/images/x"), page.get("/x"), page.put("/")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
    assert page.get("/docs").status_code == 404


def test_monitoring_routes(page):
    assert page.get("/healthz").json() == page.get("/readyz").json() == {"status": "ok"}
    stats = schemas.Stats.model_validate(page.get("/v1/stats").json())
    assert (stats.searched, stats.classes, stats.writable, stats.run) == (16, 4, False, "small")
    assert len(page.get("/v1/sample?k=5").json()) == 5
    search(page, positives=["disc_0.png"])
    page.get("/v1/images/nothing")
    text = page.get("/metrics").text
    assert 'dr_keras_requests_total{method="POST",route="/v1/search",status="200"} 1.0' in text
    assert 'dr_keras_requests_total{method="GET",route="/v1/images/{id}",status="404"} 1.0' in text
    assert "dr_keras_images 16.0" in text
    document = page.get("/openapi.json").json()
    assert {"/v1/search", "/v1/images/{id}", "/v1/images", "/v1/stats", "/v1/map"} <= set(document["paths"])
    asked = document["paths"]["/v1/search"]["post"]
    assert set(asked["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert asked["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SearchResponse")
    assert document["paths"]["/v1/images"]["post"]["security"] == [{"token": []}]


def test_a_host_name_that_is_not_the_servers(place):
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


def test_beyond_the_limit_clients_are_told_to_retry(place):
    with client(place, concurrency=1) as page:
        server = page.app.state.service
        enter, leave = threading.Event(), threading.Event()
        stats = server.live_index.stats

        def slow():
            enter.set()
            leave.wait(10)
            return stats()

        server.live_index.stats = slow
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(page.get, "/v1/stats")
            assert enter.wait(10)
            answer = refused(page.get("/v1/sample"), 503, "which is the limit")
            assert answer.headers["retry-after"] == "1"
            assert page.get("/healthz").status_code == 200
            assert "dr_keras_requests_in_flight 1.0" in page.get("/metrics").text
            leave.set()
            assert first.result().status_code == 200
        assert page.get("/v1/sample").status_code == 200


def test_a_body_that_does_not_arrive(place):
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
        # Requests in flight when the server is stopped are completed.
        with socket.create_connection((host, int(port))) as slow:
            body = json.dumps({"positives": ["disc_0.png"]}).encode()
            slow.sendall(
                b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)
            )
            until(lambda: "dr_keras_requests_in_flight 1.0" in page.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            until(lambda: "Shutting down" in (place / "serve.log").read_text())
            slow.sendall(body)
            answer = b"".join(iter(lambda: slow.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
            assert b"disc/disc_1.png" in answer
        process.wait(30)
    log = (place / "serve.log").read_text()
    assert "Application shutdown complete" in log
    assert TOKEN not in log
    assert "Traceback" not in log


def until(reached, seconds=60):
    """Waits until `reached()` is true."""
    ends = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < ends
        time.sleep(0.02)


def said(host, port, data):
    """A server's response to raw bytes."""
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
    """Runs an application in a thread; yields its host and port."""
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


def answered_images(host, port):
    """How many requests for an image have been completed."""
    counts = said(host, port, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").decode()
    return sum(float(one) for one in re.findall(r"^dr_keras_requests_total\{.*images/.*\} (\S+)$", counts, re.M))


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
            until(lambda: answered_images(host, port) == 2)
            assert b" 200 " in said(host, port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            slow.settimeout(20)
            got = 0
            with suppress(ConnectionResetError):
                while piece := slow.recv(1 << 20):
                    got += len(piece)
            assert got < 12_000_000


def test_a_request_head_that_does_not_arrive(monkeypatch, place):
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
                piece = connection.recv(65536)
                assert piece, answer
                answer += piece
            connection.sendall(b"GET /hea")
            assert b" 408 " in connection.recv(65536)
        monkeypatch.setattr(protocol.PatientProtocol, "head_seconds", 30)
        with socket.create_connection((host, port)), socket.create_connection((host, port)):
            answer = said(host, port, whole)  # the other two were accepted first
            assert b" 503 " in answer
            assert b"retry-after: 5" in answer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--index", "my-index", "--gallery", "mine"), "give only one of them"),
        (("--index", "absent"), "is not an index"),
        (("--index", "my-index", "--writable"), "needs a token"),
        (("--index", "my-index", "--concurrency", "0"), "at least 1"),
        (("--index", "my-index", "--port", "99999"), "--port is 99999; a number from 0 to 65535"),
        (("--index", "my-index", "--port", "-1"), "--port is -1"),
        (("--index", "my-index", "--host", "203.0.113.7"), "cannot listen at 203.0.113.7"),  # a documentation address
        (("--index", "my-index", "--host", "no.such.invalid"), "cannot listen at no.such.invalid"),
        (("--index", "my-index", "--host", "x" * 70), "cannot listen at xxx"),
        (("--index", "my-index", "--root-path", "photos"), "a path such as /photos is expected"),
        (("--index", "my-index", "--root-path", "/a/../b"), "a path such as /photos is expected"),
        (("--index", "my-index", "--root-path", "/v1/x"), "the server's own paths begin so"),
    ],
)
def test_invalid_flags(place, arguments, words, monkeypatch):
    monkeypatch.setenv("DR_KERAS_TOKEN", "")
    refused_to_start(script(place, "serve.py", "--port", "0", *arguments), words)


def refused_to_start(result, words):
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_a_port_that_is_taken(place):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = script(place, "serve.py", "--index", "my-index", "--port", port)
        refused_to_start(result, f"cannot listen at 127.0.0.1, port {port}: Address already in use")
        # Another process bound the port too, and listens first.
    with protocol.bound("127.0.0.1", port) as sockets, socket.create_server(("127.0.0.1", port)):
        with pytest.raises(InputError, match=f"port {port}: Address already in use"):
            protocol.serve(create_app(load(place / "runs" / "small", index=place / "my-index")), "127.0.0.1", sockets)


def test_all_addresses_of_a_name():
    with protocol.bound("localhost", 0) as sockets:
        assert len({one.getsockname()[1] for one in sockets}) == 1
        assert "127.0.0.1" in {one.getsockname()[0] for one in sockets}
        with pytest.raises(ConnectionRefusedError):  # clients do not wait for a server that may never start
            socket.create_connection(sockets[0].getsockname()[:2])
    assert [one.fileno() for one in sockets] == [-1] * len(sockets)
