"""Helpers with which the tests send requests to the server."""

import asyncio
import json
import threading
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from fastapi.testclient import TestClient

from dr_keras import load
from dr_keras.server import limits as guard
from dr_keras.server.routes import create_app
from dr_keras.server.settings import Settings

TOKEN = "correct horse battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def client(place, run=None, **settings):
    """A client of an application that serves the index `my-index`, by the run `small` or another one."""
    model = load(run or place / "runs" / "small", runtime="litert", index=place / "my-index")
    with TestClient(create_app(model, Settings(**settings))) as made:
        yield made


def search(client, k=30, **body):
    answer = client.post("/v1/search", params={"k": k}, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer, status, words):
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), (answer.status_code, answer.text)
    assert answer.headers["content-security-policy"] == guard.POLICY
    return answer


class Raw:
    """The response to a request whose path was not normalized, unlike those of HTTP clients."""

    def __init__(self, client, path, method):
        self.headers, self.content = {}, b""
        raw_path, _, query = path.encode().partition(b"?")
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(raw_path.decode(errors="replace")),
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


def raw(client, path, method="GET"):
    return Raw(client, path, method)


@contextmanager
def proxy(address, below, strips):
    """A reverse proxy that serves a server below a path and optionally strips that path; yields its own address."""
    target = urlsplit(address).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = self.path.removeprefix(below) if strips else self.path
            if not self.path.startswith(below) or not asked.startswith("/"):
                self.send_error(404)
                return
            with closing(HTTPConnection(target, timeout=60)) as behind:
                behind.request(self.command, asked, body, dict(self.headers) | {"Host": target})
                answer = behind.getresponse()
                said = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("server", "date", "connection"):
                    self.send_header(name, value)
            with suppress(ConnectionError):  # a browser may leave before its answer comes
                self.end_headers()
                self.wfile.write(said)

        do_GET = do_HEAD = do_POST = do_DELETE = do

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
