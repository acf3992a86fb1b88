#!/usr/bin/env python3
"""The HTTP API under load, on a single machine: the server and its clients share the cores.

    apt-get install wrk
    pip install -e .[serve]
    python benchmarks/bench_serve.py                          # startup, searches by id, uploads
    python benchmarks/bench_serve.py ids --workers 1 2        # searches by id with one worker and with two
    python benchmarks/bench_serve.py ids --workers 1 2 --milvus [--engine hnsw]
    python benchmarks/bench_serve.py mixed --minutes 20       # all kinds of requests, including bad ones
    python benchmarks/bench_serve.py photos --minutes 20      # uploads of 12-megapixel photographs

Above 400 lines for its three loads, which share the server that they start and how they measure it.

Creates a finished run in a temporary folder, as in bench_retrieve.py: 100,000 random 256-dimensional vectors and the
untrained default network. wrk sends the searches and uploads; each upload is a different image. `mixed` also adds and
removes images, and at the end the index must hold exactly what was acknowledged.
"""

import argparse
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
from bench_retrieve import GALLERY, LENGTH, make_run
from machine import machine, record, spread
from PIL import Image

from dr_keras.data.images import decode
from dr_keras.embedders import LiteRTEmbedder
from dr_keras.index.index import Index
from dr_keras.runs import Run

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
TOKEN = "a token for a benchmark"
CLIENTS = 32
UPLOADS = 4000  # distinct images, more than the server caches vectors of
BOUNDARY = "a-boundary-that-no-image-has"
SEARCHES = """
local threads = 0
function setup(thread) thread:set("seed", threads) threads = threads + 1 end
function init(args) math.randomseed(seed) end
function request()
  local body = string.format('{"positives": ["image_%d.jpg"]}', math.random(0, COUNT - 1))
  return wrk.format("POST", "/v1/search?k=30", {["Content-Type"] = "application/json"}, body)
end
"""
SENT = """
local bodies, number = {}, 0
function init(args)
  local file = io.open("BODIES", "rb")
  while true do
    local size = file:read(8)
    if not size then break end
    bodies[#bodies + 1] = file:read(tonumber(size))
  end
  file:close()
end
function request()
  number = number % #bodies + 1
  local headers = {["Content-Type"] = "multipart/form-data; boundary=BOUNDARY"}
  return wrk.format("POST", "/v1/search?k=30", headers, VARIED)
end
"""
PHOTOS = 24  # distinct ones of them; each upload gets other bytes after its end, so that none is known to the server
PHOTO_SIZE = (4000, 3000)
TAIL = f"\r\n--{BOUNDARY}--\r\n"
VARIED = f"bodies[number]:sub(1, -{len(TAIL) + 1}) .. math.random(1e9) .. bodies[number]:sub(-{len(TAIL)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("load", "ids", "mixed", "photos"), default="load")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="of the server; each number is measured")
    parser.add_argument("--milvus", action="store_true", help="search a copy of the index in a Milvus server")
    parser.add_argument("--engine", choices=("auto", "flat", "hnsw"), default="auto", help="of the index in Milvus")
    parser.add_argument("--seconds", type=int, default=20, help="length of a round (default: 20)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20, help="length of mixed and photos (default: 20)")
    options = parser.parse_args()
    print(f"{machine()}; {GALLERY:,} x {LENGTH}, {CLIENTS} clients", flush=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        place = Path(folder)
        run = Run(place / "runs" / "bench")
        make_run(run, place)
        where = opened.enter_context(in_milvus(run, place, options.engine)) if options.milvus else ()
        for workers in options.workers:
            print(f"{workers} workers", flush=True)
            if options.what == "mixed":
                mixed(place, run, options.minutes, workers)
            elif options.what == "photos":
                photos(place, options.minutes, workers)
            else:
                seconds = starts(place, options.rounds, workers, where)
                print(f"ready to search: {spread(seconds, 's', 2)}", flush=True)
                record(f"ready to search{titled(workers)}", seconds, "s")
                load(place, run, options, workers, where)


@contextmanager
def in_milvus(run: Run, place: Path, engine: str) -> Iterator[tuple[str, ...]]:
    """A copy of the run's index in a server of its own; yields the flags of serve.py to search it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from milvus_server import MilvusProcess

    from dr_keras.index.copying import copy_index
    from dr_keras.progress import stderr

    with MilvusProcess(place / "milvus") as server:
        copy_index(run.index, f"{server.address}/bench", console=stderr())
        with Index.open(f"{server.address}/bench", write=True) as index:
            index.engine.build(engine)
        yield "--run", "bench", "--index", f"{server.address}/bench"


def starts(place: Path, rounds: int, workers: int, where: Sequence[str]) -> list[float]:
    """The seconds that each of several starts took, after one that is not counted."""
    ready = []
    for _ in range(rounds + 1):
        with served(place, "--workers", str(workers), *where) as (_, _, seconds):
            ready.append(seconds)
    return ready[1:]


@contextmanager
def served(place: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int, float]]:
    """Runs serve.py as a process: the process, its port, and the seconds until /readyz succeeded."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "serve.py"), "--port", str(port), *arguments]
    with (place / "serve.log").open("wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=place, stdout=log, stderr=log, env=os.environ | {"DR_KERAS_TOKEN": TOKEN}
        )
    try:
        while not ready(port):
            if process.poll() is not None:
                raise SystemExit((place / "serve.log").read_text())
            time.sleep(0.01)
        yield process, port, time.perf_counter() - started
        process.send_signal(signal.SIGTERM)
        if process.wait(60) not in (0, -signal.SIGTERM):
            raise SystemExit((place / "serve.log").read_text())
    finally:
        process.kill()


def ready(port: int) -> bool:
    try:
        return asked(port, "GET", "/readyz")[0] == 200
    except OSError:
        return False


def asked(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of one request over a new connection."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def memory(process: subprocess.Popen[bytes]) -> str:
    """The private memory of the server's processes and that of the files that one of them has mapped, in MiB."""
    own, mapped = 0.0, 0.0
    for each in [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines())
        anonymous, files = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
        own, mapped = own + anonymous, max(mapped, files)
    return f"{own:,.0f} MiB of its own, {mapped:,.0f} MiB of mapped files"


# Searches and uploads


def load(place: Path, run: Run, options: argparse.Namespace, workers: int, where: Sequence[str]) -> None:
    scripts = {"searches by id": SEARCHES.replace("COUNT", str(GALLERY))}
    alone = [0.0]
    if options.what != "ids":
        images = [picture(number) for number in range(UPLOADS)]
        scripts["uploads"] = uploads(place, images, "bodies[number]")
        alone = embedding_alone(run, images)
        print(f"embedding alone, decoded pixels, {CLIENTS} at a time: {spread(alone, 'images/s', 0)}", flush=True)
    with served(place, "--workers", str(workers), *where) as (process, port, _):
        for name, text in scripts.items():
            script = place / "script.lua"
            script.write_text(text)
            rates, late = [], []
            for turn in range(options.rounds + 1):
                rate, p99 = hammered(port, script, options.seconds if turn else 3)
                if turn:
                    rates.append(rate)
                    late.append(p99)
            print(f"{name}: {spread(rates, 'requests/s', 0)}; 99 % within {spread(late, 'ms', 0)}", flush=True)
            record(f"{name}{titled(workers)}, 99 % within", late, "ms")
            if name == "uploads":
                share = statistics.median(rates) / statistics.median(alone)
                print(f"  {share:.2f} of the embedding alone")
                record(
                    f"{name}{titled(workers)}", rates, "requests/s", ratio=share, to="the network alone", goal=">= 0.6"
                )
            else:
                record(f"{name}{titled(workers)}", rates, "requests/s")
            print(f"  memory: {memory(process)}", flush=True)


def titled(workers: int) -> str:
    """What a figure of a server of several workers has in its name."""
    return "" if workers == 1 else f", {workers} workers"


def uploads(place: Path, images: list[bytes], varied: str) -> str:
    """Writes the bodies of requests that search for images, and returns the script that sends them."""
    with (place / "bodies").open("wb") as file:
        for data in images:
            body = form(data)
            file.write(b"%08d" % len(body) + body)
    sent = SENT.replace("BODIES", str(place / "bodies")).replace("VARIED", varied)
    return sent.replace("BOUNDARY", BOUNDARY)


def photos(place: Path, minutes: float, workers: int) -> None:
    images = [photograph(number) for number in range(PHOTOS)]
    sizes = [len(data) / 2**20 for data in images]
    print(f"photographs of {PHOTO_SIZE[0]} x {PHOTO_SIZE[1]}, {min(sizes):.1f} to {max(sizes):.1f} MiB", flush=True)
    script = place / "script.lua"
    script.write_text(uploads(place, images, VARIED))
    del images
    rates, late = [], []
    with served(place, "--workers", str(workers)) as (process, port, _):
        for minute in range(round(minutes)):
            rate, p99 = hammered(port, script, 60)
            rates.append(rate)
            late.append(p99)
            print(
                f"  minute {minute + 1}: {rate:.1f} a second, 99 % within {p99:.0f} ms; {memory(process)}", flush=True
            )
    print(f"{spread(rates, 'photographs/s', 1)}; 99 % within {spread(late, 'ms', 0)}")
    record("photographs", rates, "requests/s")
    record("photographs, 99 % within", late, "ms")


def embedding_alone(run: Run, images: list[bytes]) -> list[float]:
    """Images per second embedded by the network alone, on all cores."""
    embed = LiteRTEmbedder(run.litert_file)
    size = run.config().image_size
    pixels = np.stack([decode(data, size, run.config().resize) for data in images[: 4 * CLIENTS]])
    rates = []
    for _ in range(6):
        started = time.perf_counter()
        for start in range(0, len(pixels), CLIENTS):
            embed(pixels[start : start + CLIENTS])
        rates.append(len(pixels) / (time.perf_counter() - started))
    return rates[1:]


def hammered(port: int, script: Path, seconds: int) -> tuple[float, float]:
    """Requests per second and the 99th-percentile latency in milliseconds; every response must be a 200."""
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--latency", "-s", str(script), f"http://{HOST}:{port}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(said)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", said).groups()  # type: ignore[union-attr]
    return rate, float(value) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def picture(seed: int) -> bytes:
    """A 64 x 64 JPEG of soft noise."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photograph(seed: int) -> bytes:
    """A JPEG of 12 megapixels and 2.4 MiB: soft colors with fine grain, like a photograph of a telephone."""
    random = np.random.default_rng(seed)
    soft = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
    grain = random.integers(-10, 11, (PHOTO_SIZE[1], PHOTO_SIZE[0], 1), np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def form(data: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + data + TAIL.encode()


# Mixed


def mixed(place: Path, run: Run, minutes: float, processes: int) -> None:
    with Index.open(run.index) as index:
        before = index.stats()["images"]
    counts: Counter[str] = Counter()
    slow: list[float] = []
    guard = threading.Lock()
    there: set[str] = set()
    end = time.monotonic() + 60 * minutes
    arguments = ("--writable", "--uploads", "uploads", "--workers", str(processes))
    with served(place, *arguments) as (process, port, _):

        def work(number: int) -> None:
            client = Client(port, number)
            mine: list[str] = []
            while time.monotonic() < end:
                started = time.perf_counter()
                what, status, id = client.one(mine)
                with guard:
                    counts[f"{what}: {status}"] += 1
                    if what == "search":
                        slow.append(1e3 * (time.perf_counter() - started))
                    if what == "add" and status in (200, 201):
                        there.add(id)
                    elif what == "remove" and status == 200:
                        there.discard(id)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for worker in workers:
            worker.start()
        while time.monotonic() < end:
            time.sleep(min(60, max(0.0, end - time.monotonic())))
            with guard:
                print(f"  {sum(counts.values()):,} requests; memory: {memory(process)}", flush=True)
        for worker in workers:
            worker.join()
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count:,}")
    middle, late = np.quantile(slow, (0.5, 0.99))
    print(f"  searches: half within {middle:.0f} ms, 99 % within {late:.0f} ms (n = {len(slow):,})")
    failed = {name for name in counts if re.search(r": (5(?!03)\d\d|0)$", name)}
    with Index.open(run.index) as index:
        lost = [id for id in there if index.records.row(id) is None]
        after = index.stats()["images"]
        damage = index.verify()
    print(f"  {before:,} images before, {len(there):,} added and kept, {after:,} after; {len(lost)} lost, {damage=}")
    if failed or lost or damage or after != before + len(there):
        raise SystemExit(f"failed: {sorted(failed)}")


class Client:
    """A client that sends random requests."""

    def __init__(self, port: int, number: int) -> None:
        self.port = port
        self.random = random.Random(number)
        self.number = number
        self.sent = 0

    def one(self, mine: list[str]) -> tuple[str, int, str]:
        """Sends one request: its name, the status, and the id added or removed."""
        json_type = {"Content-Type": "application/json"}
        form_type = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        what = self.random.choices(
            ("search", "filter", "upload", "add", "remove", "image", "noise", "bomb", "climb", "json", "token", "map"),
            (40, 4, 12, 4, 4, 8, 6, 2, 6, 6, 2, 1),
        )[0]
        name = f"image_{self.random.randrange(GALLERY)}.jpg"
        id = ""
        sent: tuple[str, str, bytes | None, dict[str, str]]
        if what in ("search", "filter"):
            body = {"positives": [name]} | ({"where": "label != 'class_7'"} if what == "filter" else {})
            sent = ("POST", "/v1/search?k=30", json.dumps(body).encode(), json_type)
        elif what in ("upload", "add"):
            self.sent += 1
            data = form(picture(100_000 * self.number + self.sent))
            headers = form_type | (bearer if what == "add" else {})
            sent = ("POST", "/v1/images" if what == "add" else "/v1/search", data, headers)
        elif what == "remove":
            if not mine:
                return "nothing to remove", 200, ""
            id = mine.pop()
            sent = ("DELETE", f"/v1/images/{id}", None, bearer)
        elif what == "noise":
            sent = ("POST", "/v1/search", form(self.random.randbytes(2000)), form_type)
        elif what == "bomb":
            data = b"P6 60000 60000 255\n" if self.random.random() < 0.5 else picture(0)[:300]
            sent = ("POST", "/v1/search", form(data), form_type)
        elif what == "climb":
            path = self.random.choice(("../../etc/passwd", "%2e%2e%2fetc%2fpasswd", "/etc/passwd", "%00"))
            sent = ("GET", f"/v1/images/{path}", None, {})
        elif what == "json":
            text = self.random.choice(
                (b"{", b"[" * 9999, b'{"positives": 1}', b'{"where": "; DROP TABLE images"}', b"\xff")
            )
            sent = ("POST", "/v1/search", text, json_type)
        elif what == "token":
            sent = ("POST", "/v1/images", form(picture(0)), form_type | {"Authorization": "Bearer no"})
        else:
            sent = ("GET", "/v1/map" if what == "map" else f"/v1/images/{name}?thumbnail=128", None, {})
        try:
            status, said = asked(self.port, *sent)
        except (OSError, http.client.HTTPException):
            return what, 0, ""
        if what == "add" and status in (200, 201):
            id = json.loads(said)["id"]
            mine.append(id)
        elif what == "remove" and status != 200:
            mine.append(id)
        return what, status, id


if __name__ == "__main__":
    main()
