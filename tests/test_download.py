"""The download of Tiny ImageNet, from a local server that misbehaves like the internet."""

import hashlib
import http.server
import threading
import zipfile

import pytest
from conftest import script, write_folders
from rich.console import Console

from dr_keras.data.catalog import load_catalog
from dr_keras.data.sources import download
from dr_keras.data.sources.download import Download, fetch, tiny_imagenet
from dr_keras.errors import InputError


class Server(http.server.ThreadingHTTPServer):
    """Sends `content`; `behavior` lists what to do for each request, the last one repeatedly."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.behavior = ["send"]
        self.requests = 0
        self.stopped = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/tiny-imagenet-200.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        behavior = server.behavior[min(server.requests, len(server.behavior) - 1)]
        server.requests += 1
        if behavior == "absent":
            self.send_error(404)
            return
        content = server.content
        if behavior == "corrupt":
            content = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.wfile.flush()
        if behavior == "break off":
            self.connection.close()
            return
        if behavior == "stall":
            server.stopped.wait()
            return
        self.wfile.write(content[half:])

    def log_message(self, *_):
        pass


@pytest.fixture
def archive(tmp_path):
    """A zip file of drawn pictures, laid out like the official one."""
    root = write_folders(tmp_path / "made" / "tiny-imagenet-200" / "train", each=4, classes=("bars", "disc")).parent
    (root / "words.txt").write_text("bars\tstripes, bars\n")
    file = tmp_path / "made.zip"
    with zipfile.ZipFile(file, "w") as out:
        for path in sorted(root.rglob("*")):
            out.write(path, path.relative_to(root.parent))
    return file.read_bytes()


@pytest.fixture
def server(archive, monkeypatch, tmp_path):
    server = Server(archive)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    what = Download(server.url, len(archive), hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(download, "TINY_IMAGENET", what)
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join()


def nothing_left(tmp_path):
    return not any((tmp_path / "cache").iterdir())


def test_tiny_imagenet_is_downloaded_unpacked_and_found_again(server, tmp_path):
    catalog = load_catalog(None, monitor=0, validation=0, seed=0)
    assert catalog.root == tmp_path / "cache" / "tiny-imagenet-200"
    assert len(catalog) == 8
    assert catalog.class_names == ("stripes", "disc")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny-imagenet-200"]
    assert load_catalog("tiny-imagenet", monitor=0, validation=0, seed=0).ids == catalog.ids
    assert server.requests == 1


@pytest.mark.parametrize("trouble", ["break off", "corrupt"])
def test_a_try_that_fails_is_followed_by_another(server, trouble, capsys):
    server.behavior = [trouble, "send"]
    assert (tiny_imagenet() / "train" / "disc").is_dir()
    assert server.requests == 2
    assert "trying again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trouble", "message", "requests"),
    [("absent", "HTTP code: 404", 1), ("break off", "broke off", 3), ("corrupt", "checksum differs", 3)],
)
def test_a_server_that_stays_bad_is_a_clear_error_that_leaves_nothing(server, trouble, message, requests, tmp_path):
    server.behavior = [trouble]
    with pytest.raises(InputError, match=rf"(?s)cannot be fetched: .*({message}).*--data digits"):
        tiny_imagenet()
    assert server.requests == requests
    assert nothing_left(tmp_path)
    server.behavior = ["send"]  # and the next attempt starts clean
    assert tiny_imagenet().is_dir()


def test_a_server_that_falls_silent_is_given_up(server, tmp_path):
    server.behavior = ["stall"]
    (tmp_path / "to").mkdir()
    with pytest.raises(InputError, match=r"sent nothing for 0\.5 s"):
        fetch(download.TINY_IMAGENET, tmp_path / "to", Console(quiet=True), stall_seconds=0.5, tries=1)
    assert not server.stopped.is_set()  # the server stays silent until then


def test_an_archive_that_cannot_be_unpacked_leaves_nothing(server, monkeypatch, tmp_path):
    server.content = b"not a zip file" * 100
    what = Download(server.url, len(server.content), hashlib.sha256(server.content).hexdigest())
    monkeypatch.setattr(download, "TINY_IMAGENET", what)
    with pytest.raises(InputError, match="cannot be unpacked"):
        tiny_imagenet()
    assert nothing_left(tmp_path)


def test_offline_says_so_and_names_the_other_choices(tmp_path, monkeypatch):
    nowhere = "http://127.0.0.1:9"  # nothing listens there, as when offline
    env = {"DR_KERAS_CACHE": str(tmp_path / "cache"), "HTTPS_PROXY": nowhere, "https_proxy": nowhere}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    result = script(tmp_path, "train.py")
    assert result.returncode == 2
    message = result.stderr.splitlines()[-1]
    assert "cs231n.stanford.edu/tiny-imagenet-200.zip cannot be reached" in message
    for choice in ("--data FOLDER", "zip or tar", "FILE.csv", "--data digits"):
        assert choice in message
    assert "Traceback" not in result.stderr
    assert nothing_left(tmp_path)
    assert not (tmp_path / "runs").exists()
