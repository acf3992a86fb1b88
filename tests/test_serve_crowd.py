"""Many clients at once: each gets every byte of its own responses, and the server leaves nothing open afterward."""

import json
import random
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import draw_encoded, examples, indexed, script, serving
from PIL import Image
from served import BEARER, TOKEN

CLIENTS = 32
REQUESTS = examples(10_000)  # by all clients together
CHANGES = examples(30)  # images added and removed in the writable crowd
A_CONNECTION = 8  # most requests a client sends over one connection: closed ones free descriptors for reuse


@pytest.fixture(scope="module")
def place(workplace, tmp_path_factory):
    """A working folder with an index of 16 small pictures and two that are sent in several chunks."""
    place = indexed(tmp_path_factory.mktemp("crowd"), workplace)
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (420, 420 + seed, 3), np.uint8)  # 530,000 bytes of noise
        Image.fromarray(pixels).save(place / "mine" / "disc" / f"noise_{seed}.png")
    result = script(place, "index.py", "add", "mine", "--index", "my-index")
    assert result.returncode == 0, result.stderr
    return place


def send(at, method, target, headers=(), body=None):
    """Status, content headers, and content."""
    at.request(method, target, body, dict(headers))
    answer = at.getresponse()
    told = {name: answer.headers[name] for name in ("Content-Type", "Content-Length", "Content-Range", "ETag")}
    return answer.status, told, answer.read()


def ask_for(id):
    return "POST", "/v1/search?k=5", {"Content-Type": "application/json"}, json.dumps({"positives": [id]}).encode()


def questions(place, address):
    """The requests of the crowd, each with its only correct response: [(weight, request, response)]."""
    at = HTTPConnection(urlsplit(address).netloc, timeout=60)
    asked = []

    def add(weight, method, target, headers=(), body=None):
        answer = send(at, method, target, headers, body)
        asked.append((weight, (method, target, headers, body), answer))
        return answer

    for file in sorted((place / "mine").glob("*/*.png")):
        data = file.read_bytes()
        target = f"/v1/images/{file.relative_to(place / 'mine').as_posix()}"
        large = len(data) > 100_000
        weight = 0.4 if large else 2  # the large ones take most of the time
        status, told, got = add(weight, "GET", target)
        assert (status, got, told["Content-Length"]) == (200, data, str(len(data)))
        tag = {"If-None-Match": f"W/{told['ETag']}"}
        assert add(1, "HEAD", target)[1:] == (told, b"")
        assert add(1, "GET", target, tag)[0::2] == (304, b"")
        first, last = len(data) // 3, len(data) // 2
        assert add(weight / 2, "GET", target, {"Range": f"bytes={first}-{last}"})[0::2] == (206, data[first : last + 1])
        assert add(1, "GET", target, {"Range": f"bytes={len(data)}-"})[0] == 416
        small = add(1, "GET", f"{target}?thumbnail=64")
        assert (small[0], small[2][:2]) == (200, b"\xff\xd8")
        assert add(0.5, *ask_for(file.name))[0] == 200
    for target in ("/", "/static/app.js", "/static/map.js", "/static/style.css", "/v1/stats", "/v1/classes", "/v1/map"):
        assert add(2, "GET", target)[0] == 200
    assert add(1, "GET", "/v1/images/none")[0] == 404
    at.close()
    return asked


def crowd(address, asked, count, wrong):
    """Sends `count` requests from `CLIENTS` threads; incorrect responses are counted in `wrong`."""
    weights = [weight for weight, _, _ in asked]
    host = urlsplit(address).netloc

    def client(seed):
        drawn = random.Random(seed)
        left = count // CLIENTS + (seed < count % CLIENTS)
        while left:
            at = HTTPConnection(host, timeout=120)
            for _, question, answer in drawn.choices(asked, weights, k=min(left, drawn.randint(1, A_CONNECTION))):
                left -= 1
                try:
                    got = send(at, *question)
                except (OSError, HTTPException) as error:
                    wrong[f"{question[:2]}: {error!r}"] += 1
                    break
                if got != answer:
                    wrong[f"{question[:2]}: {got[0]}, other {'bytes' if got[2] != answer[2] else 'headers'}"] += 1
            at.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    return threads


def opened(process):
    """A server's open files, once they are stable: it closes connections slightly after its clients."""
    alike, last = 0, None
    while alike < 20:
        found = Counter()
        for one in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                target = str(one.readlink())
            except FileNotFoundError:
                target = "closed meanwhile"
            found[target if target.startswith("/") else target.partition(":")[0]] += 1
        alike = alike + 1 if found == last else 0
        last = found
        time.sleep(0.05)
    return last


def test_every_client_gets_its_own_bytes(place):
    with serving(place, "--index", "my-index", "--concurrency", CLIENTS * 2) as (process, address):
        asked = questions(place, address)
        wrong = Counter()
        for thread in crowd(address, asked, CLIENTS * 8, wrong):  # starts all server threads and opens what stays open
            thread.join()
        before = opened(process)
        for thread in crowd(address, asked, REQUESTS, wrong):
            thread.join()
        assert not wrong
        assert opened(process) == before
        assert "Traceback" not in (place / "serve.log").read_text()


def change(address, seed):
    """Adds an image and removes it again."""
    at = HTTPConnection(urlsplit(address).netloc, timeout=60)
    data = draw_encoded(seed)
    form = {"Content-Type": "multipart/form-data; boundary=b"} | BEARER
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    status, _, said = send(at, "POST", "/v1/images", form, head + data + b"\r\n--b--\r\n")
    assert status == 201, said
    target = f"/v1/images/{json.loads(said)['id']}"
    assert send(at, "GET", target)[0::2] == (200, data)
    assert send(at, "DELETE", target, BEARER)[0] == 200
    assert send(at, "GET", target)[0] == 404
    at.close()


@pytest.mark.nightly
def test_every_client_gets_its_own_bytes_while_others_write(place):
    """Only image and static routes, whose responses do not depend on other images."""
    arguments = ("--index", "my-index", "--concurrency", CLIENTS * 2, "--writable", "--uploads", "mine/sent")
    with serving(place, *arguments, env={"DR_KERAS_TOKEN": TOKEN}) as (process, address):
        asked = [one for one in questions(place, address) if one[1][1].startswith(("/v1/images/", "/static/"))]
        wrong = Counter()
        for thread in crowd(address, asked, CLIENTS * 8, wrong):
            thread.join()
        change(address, 999)  # SQLite keeps a writer's descriptor for reuse while there is a reader
        before = opened(process)
        threads = crowd(address, asked, REQUESTS // 5, wrong)
        for number in range(CHANGES):
            change(address, 1000 + number)
        for thread in threads:
            thread.join()
        assert not wrong
        assert opened(process) == before
        assert "Traceback" not in (place / "serve.log").read_text()
    assert not list((place / "mine" / "sent").iterdir())
