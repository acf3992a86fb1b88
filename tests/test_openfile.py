"""A file descriptor has one owner: it is closed once, never while being read, and never by a former owner."""

import asyncio
import gc
import io
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import draw_encoded
from served import client

from dr_keras.server import open_file as openfile
from dr_keras.server.open_file import OpenFile


def descriptors():
    """The open descriptors of this process."""
    gc.collect()
    return sorted(one.name for one in Path("/proc/self/fd").iterdir())


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 100)
    return OpenFile(io.FileIO(tmp_path / "file"))


def test_it_reads_what_is_asked_for(file):
    content = bytes(range(256)) * 100
    assert (file.read(0, 100), file.read(25_000, 10_000), file.read(30_000, 5)) == (
        content[:100],
        content[25_000:],
        b"",
    )
    file.close()


def test_a_second_close_does_not_close_a_reused_descriptor(file, tmp_path):
    number = file._file.fileno()
    file.close()
    other = os.open(tmp_path / "file", os.O_RDONLY)
    assert other == number  # as if reused by another thread's socket
    file.close()
    assert os.pread(other, 3, 0) == b"\0\1\2"
    os.close(other)
    with pytest.raises(ValueError, match="closed"):
        file.read(0, 1)


def test_close_does_not_wait_for_readers_or_close_their_file(monkeypatch, file):
    inside, on = threading.Event(), threading.Event()
    real = os.pread

    def slow(descriptor, count, place):
        inside.set()
        assert on.wait(20)
        return real(descriptor, count, place)

    monkeypatch.setattr(openfile.os, "pread", slow)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(file.read, 0, 3)
        assert inside.wait(20)
        for _ in range(3):
            file.close()  # returns even though a thread is reading
        assert not file.closed
        on.set()
        assert reading.result() == b"\0\1\2"
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        file.read(0, 3)


def test_closes_and_reads_at_the_same_time(tmp_path):
    (tmp_path / "file").write_bytes(b"mine" * 1000)
    before = descriptors()
    for _ in range(300):
        file = OpenFile(io.FileIO(tmp_path / "file"))
        start = threading.Barrier(4)

        def read(file=file, start=start):
            start.wait()
            with suppress(ValueError):  # already closed
                while True:
                    assert file.read(4, 8) == b"minemine"

        def close(file=file, start=start):
            start.wait()
            file.close()

        threads = [threading.Thread(target=what) for what in (read, read, close, close)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert file.closed
    assert descriptors() == before


def request_of(path, method="GET", headers=()):
    return {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"x"), *headers], "http_version": "1.1", "scheme": "http", "client": ("x", 1),
        "server": ("x", 1), "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip


async def no_body():
    return {"type": "http.request", "body": b"", "more_body": False}


def test_a_request_that_is_canceled_while_its_image_is_opened(monkeypatch, place):
    with client(place) as page:
        server = page.app.state.service
        real, inside, on, opened = server.live_index.open_image, threading.Event(), threading.Event(), Future()

        def slow(id):
            inside.set()
            assert on.wait(20)
            opened.set_result(real(id))
            return opened.result()

        monkeypatch.setattr(server.live_index, "open_image", slow)

        async def scene():
            task = asyncio.create_task(page.app(request_of("/v1/images/disc/disc_0.png"), no_body, nothing))
            await asyncio.to_thread(inside.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            on.set()
            await asyncio.to_thread(server._decoders.shutdown)  # waits for its threads

        async def nothing(_):
            raise AssertionError("the request was canceled")

        asyncio.run(scene())
        assert opened.result().file.closed


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("fails", ["http.response.start", "http.response.body"])
def test_a_client_that_disconnects_during_a_response(monkeypatch, place, method, fails):
    (place / "mine" / "disc" / "disc_0.png").write_bytes(draw_encoded(size=300))
    with client(place) as page:
        server, opened = page.app.state.service, []
        real = server.live_index.open_image
        monkeypatch.setattr(server.live_index, "open_image", lambda id: opened.append(real(id)) or opened[0])

        async def send(message):
            if message["type"] == fails:
                raise ConnectionResetError

        async def scene():
            with suppress(OSError):
                await page.app(request_of("/v1/images/disc/disc_0.png", method), no_body, send)

        asyncio.run(scene())
        assert [one.file.closed for one in opened] == [True]
