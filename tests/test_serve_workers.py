"""Several workers behind one port: one server to its clients, whichever worker answers."""

import csv
import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from conftest import draw_encoded, indexed, script, serving
from served import BEARER, TOKEN

from dr_keras import runtimes
from dr_keras.index.index import Entry, Index
from dr_keras.index.umap_layout import Layout
from dr_keras.server.errors import Problem
from dr_keras.server.live_index import LiveIndex
from dr_keras.server.map import FIT_ROWS, Mapper, decode_map, oldest
from dr_keras.server.peers import Peers

SEARCH = json.dumps({"positives": ["disc_0.png"]}).encode()
JSON = {"Content-Type": "application/json"}
CLIENTS = 8
IDS = ("disc/disc_0.png", "disc/disc_1.png", "bars/bars_0.png")
IN_FLIGHT = "dr_keras_requests_in_flight"
SEARCHES = 'dr_keras_requests_total{method="POST",route="/v1/search"'


@pytest.fixture(scope="module")
def place(workplace, tmp_path_factory):
    """A working folder with an index of 16 pictures."""
    return indexed(tmp_path_factory.mktemp("workers"), workplace)


@pytest.fixture(scope="module")
def changing(workplace, tmp_path_factory):
    """A working folder with an index of 16 pictures, which changes from test to test."""
    return indexed(tmp_path_factory.mktemp("changing"), workplace)


@contextmanager
def two_workers(place, *arguments, env=None):
    """Runs serve.py with two workers; yields the process and its address. In the end, no process is left."""
    with serving(place, "--workers", 2, *arguments, env=env) as (process, address):
        workers = workers_of(process)
        try:
            yield process, address
        finally:
            process.terminate()
            process.wait(60)
            assert not psutil.wait_procs(workers, timeout=60)[1]


def workers_of(process):
    """The processes that answer."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("spawn_main" in word for word in child.cmdline())
    ]


def connection(address):
    """A new connection, as a context."""
    return closing(HTTPConnection(urlsplit(address).netloc, timeout=60))


def is_refused(address):
    """Whether nobody listens."""
    with connection(address) as at:
        try:
            at.connect()
        except ConnectionRefusedError:
            return True
    return False


def one_of_each(process, address, opened):
    """A connection to each worker, by its process id."""
    found: dict[int, HTTPConnection] = {}
    for _ in range(300):
        made = opened.enter_context(connection(address))
        assert send(made, "GET", "/healthz")[0] == 200
        port = made.sock.getsockname()[1]
        for worker in workers_of(process):
            if any(one.raddr and one.raddr.port == port for one in worker.net_connections("tcp")):
                found[worker.pid] = made
        if len(found) == 2:
            return list(found.values())
    raise AssertionError(f"all connections are answered by {found}")


def send(at, method, target, headers=None, body=None):
    """Status and content."""
    at.request(method, target, body, headers or {})
    answer = at.getresponse()
    return answer.status, answer.read()


def asked(at, method, target, headers=None, body=None, status=200):
    """The content, as JSON, of an answer with this status."""
    got, content = send(at, method, target, headers, body)
    assert got == status, content
    return json.loads(content)


def upload(at, seed, status=201):
    """Adds an image and returns its id."""
    form = {"Content-Type": "multipart/form-data; boundary=b"} | BEARER
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return asked(at, "POST", "/v1/images", form, head + draw_encoded(seed) + b"\r\n--b--\r\n", status)["id"]


def at_once(*calls):
    """The results of calls that run at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [one.result() for one in [pool.submit(call) for call in calls]]


def until(reached, seconds=60):
    """Waits until `reached()` is true."""
    ends = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < ends
        time.sleep(0.02)


def counted(at, name):
    """The sum of a metric over its labels."""
    lines = send(at, "GET", "/metrics")[1].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def server(changing):
    """The process and the address of a server of `changing` with two workers."""
    options = ("--writable", "--uploads", "mine/sent", "--judge", "judged.csv", "--concurrency", 4)
    with two_workers(changing, "--index", "my-index", *options, env={"DR_KERAS_TOKEN": TOKEN}) as made:
        yield made
    assert "Traceback" not in (changing / "serve.log").read_text()


@pytest.fixture
def pair(server):
    """A connection to each worker of `server`."""
    with ExitStack() as opened:
        yield one_of_each(*server, opened)


def test_each_finds_what_another_has_added(pair):
    for here, there, seed in ((*pair, 100), (*pair[::-1], 101)):
        id = upload(here, seed)
        assert send(there, "GET", f"/v1/images/{id}") == (200, draw_encoded(seed))
        body = json.dumps({"positives": [id], "include_self": True}).encode()
        assert asked(there, "POST", "/v1/search?k=1", JSON, body)["results"][0]["id"] == id
        assert send(there, "DELETE", f"/v1/images/{id}", BEARER)[0] == 200
        assert send(here, "GET", f"/v1/images/{id}")[0] == 404


def test_changes_at_the_same_time_wait_for_each_other(pair):
    one, other = pair
    halves = at_once(
        lambda: [upload(one, seed) for seed in range(200, 210)],
        lambda: [upload(other, seed) for seed in range(210, 220)],
    )
    for at in pair:
        assert asked(at, "GET", "/v1/stats")["images"] == 36
        for id in (*halves[0], *halves[1]):
            assert send(at, "GET", f"/v1/images/{id}")[0] == 200
    removed = at_once(
        lambda: [send(one, "DELETE", f"/v1/images/{id}", BEARER)[0] for id in halves[0]],
        lambda: [send(other, "DELETE", f"/v1/images/{id}", BEARER)[0] for id in halves[1]],
    )
    assert removed == [[200] * 10] * 2
    same = upload(one, 250)
    assert upload(other, 250, status=200) == same
    assert send(other, "DELETE", f"/v1/images/{same}", BEARER)[0] == 200


def test_while_another_process_writes_each_says_so_at_once(changing, pair):
    with Index.open(changing / "my-index", write=True):
        for at in pair:
            assert send(at, "DELETE", "/v1/images/disc/disc_2.png", BEARER)[0] == 503


def test_each_follows_a_command(changing, pair):
    for at in pair:
        assert send(at, "GET", "/v1/images/bars/bars_3.png")[0] == 200
    assert script(changing, "index.py", "remove", "bars/bars_3.png", "--index", "my-index").returncode == 0
    for at in pair:
        assert send(at, "GET", "/v1/images/bars/bars_3.png")[0] == 404


def test_judgments_are_whole_lines_and_counted(changing, pair):
    vote = json.dumps(dict(zip(("query", "positive", "negative"), IDS, strict=True))).encode()

    def votes(at):
        return [asked(at, "POST", "/v1/judgments", JSON, vote, status=201)["judgments"] for _ in range(15)]

    counts = at_once(*(partial(votes, at) for at in pair))
    assert sorted([*counts[0], *counts[1]]) == list(range(1, 31))
    with open(changing / "judged.csv", newline="") as stream:
        assert list(csv.reader(stream))[1:] == [[*IDS, "1", "0"]] * 30


def test_the_map_is_that_of_the_index_whoever_shows_it(pair):
    one, other = pair
    added = key = ""
    for change in (None, "add", "remove an old one"):
        if change == "add":
            added = upload(one, 300)
        elif change:
            assert send(other, "DELETE", "/v1/images/disc/disc_3.png", BEARER)[0] == 200
        if change:
            for at in pair:
                assert send(at, "GET", f"/v1/map/{key}/0")[0] == 409
        (points, kinds, about), (points2, kinds2, about2) = (decode_map(send(at, "GET", "/v1/map")[1]) for at in pair)
        key = about["key"]
        assert about == about2
        np.testing.assert_allclose(points, points2, atol=1e-5)
        assert np.array_equal(kinds, kinds2)
        for target in (f"/v1/map/{key}/0", f"/v1/map/{key}/{len(points) - 1}"):
            assert asked(one, "GET", target) == asked(other, "GET", target)
        place, place2 = (asked(at, "POST", "/v1/map/query?k=3", JSON, SEARCH) for at in pair)
        assert {**place, "x": 0, "y": 0} == {**place2, "x": 0, "y": 0}
        assert [place["x"], place["y"]] == pytest.approx([place2["x"], place2["y"]], abs=1e-5)
        assert place["key"] == key
    assert send(one, "DELETE", f"/v1/images/{added}", BEARER)[0] == 200


def test_metrics_are_those_of_all(pair):
    for at, times in zip(pair, (3, 4), strict=True):
        before = counted(at, SEARCHES)
        for _ in range(times):
            assert send(at, "POST", "/v1/search", JSON, SEARCH)[0] == 200
        until(lambda: counted(at, 'dr_keras_request_seconds_count{route="/v1/search"}') == before + times)  # noqa: B023
        assert [counted(each, SEARCHES) for each in pair] == [before + times] * 2
        assert counted(at, "dr_keras_images") == asked(at, "GET", "/v1/stats")["searched"]


def test_the_limit_of_requests_is_one_for_all(server, pair):
    head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(SEARCH)}\r\n"
    with ExitStack() as opened:
        held = [opened.enter_context(connection(server[1])) for _ in range(4)]
        for client in held:
            client.connect()
            client.sock.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        until(lambda: counted(pair[0], IN_FLIGHT) == 4)
        for at in pair:
            status, content = send(at, "GET", "/v1/stats")
            assert (status, b"4 requests are in progress" in content) == (503, True)
            assert send(at, "GET", "/readyz")[0] == 200
        for client in held:
            client.sock.sendall(SEARCH)
            assert b" 200 " in client.sock.recv(65536)
    until(lambda: counted(pair[1], IN_FLIGHT) == 0)
    for at in pair:
        assert send(at, "GET", "/v1/stats")[0] == 200


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_only_its_own_requests_with_it(place):
    with two_workers(place, "--index", "my-index") as (process, address), ExitStack() as opened:
        first = workers_of(process)
        assert len(first) == 2
        wrong: Counter[str] = Counter()
        answered = [0] * CLIENTS
        stop = threading.Event()

        def ask(number):
            while not stop.is_set():
                with connection(address) as at:
                    try:
                        for _ in range(4):
                            status, content = send(at, "POST", "/v1/search?k=3", JSON, SEARCH)
                            answered[number] += 1
                            if status != 200:
                                wrong[f"{status} {content!r}"] += 1
                    except (OSError, HTTPException) as error:
                        wrong[type(error).__name__] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: sum(answered) > 100)
            first[0].kill()
            at = opened.enter_context(connection(address))
            until(lambda: send(at, "GET", "/readyz")[0] == 503)
            for repeated in range(2):
                until(lambda: send(at, "GET", "/readyz")[0] == 200)
                now = workers_of(process)
                assert len(now) == 2
                assert first[1] in now
                assert first[0] not in now
                if not repeated:  # dies again, soon after its start
                    (fresh,) = set(now) - {first[1]}
                    fresh.kill()
                    until(lambda: send(at, "GET", "/readyz")[0] == 503)
            done = sum(answered)
            until(lambda: sum(answered) > done + 100)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert sum(wrong.values()) <= 2 * CLIENTS, wrong
        assert not any(what[0].isdigit() for what in wrong), wrong
        # What the dead workers have done still counts, up to the last they did, and nothing is in progress.
        assert counted(at, SEARCHES) >= sum(answered) - 2 * CLIENTS
        assert counted(at, IN_FLIGHT) == 0
        one_of_each(process, address, opened)
        log = (place / "serve.log").read_text()
        assert log.count("ended with status -9; another takes its place") == 2
        assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_finish_their_requests_and_stop(place, number, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with two_workers(place, "--index", "my-index") as (process, address), ExitStack() as opened:
        clients = one_of_each(process, address, opened)
        workers = workers_of(process)
        assert list(tmp_path.glob("dr_keras-*"))
        for client in clients:
            client.putrequest("POST", "/v1/search")
            client.putheader("Content-Type", "application/json")
            client.putheader("Content-Length", str(len(SEARCH)))
            client.endheaders()
        until(lambda: counted(opened.enter_context(connection(address)), IN_FLIGHT) == 2)
        process.send_signal(number)
        until(lambda: (place / "serve.log").read_text().count("Shutting down") == 2)
        until(lambda: is_refused(address))
        for client in clients:
            client.send(SEARCH)
            answer = client.getresponse()
            assert answer.status == 200
            assert b"disc/disc_1.png" in answer.read()
        assert process.wait(30) == 0
        assert not any(worker.is_running() for worker in workers)
        assert not list(tmp_path.iterdir())
        assert "Traceback" not in (place / "serve.log").read_text()


def test_workers_end_with_a_parent_that_is_killed(place, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with two_workers(place, "--index", "my-index") as (process, _):
        workers = workers_of(process)
        process.kill()
        assert not psutil.wait_procs(workers, timeout=30)[1]
        assert not list(tmp_path.iterdir())


def test_a_worker_that_cannot_start_ends_the_server_with_one_line(place):
    arguments = ("--index", "my-index", "--port", 0, "--workers", 2, "--judge", "nowhere/judged.csv")
    done = script(place, "serve.py", *arguments, process=True)
    assert (done.returncode, "there is no folder" in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr
    done = script(place, "serve.py", "--workers", 0)
    assert (done.returncode, "--workers is 0" in done.stderr) == (2, True)


@pytest.mark.slow
def test_a_folder_is_brought_up_to_date_once(place, tmp_path):
    (place / "mine" / "disc" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    env = {"DR_KERAS_CACHE": str(tmp_path)}
    with (
        two_workers(place, "--run", "small", "--gallery", "mine", env=env) as (process, address),
        ExitStack() as opened,
    ):
        for at in one_of_each(process, address, opened):
            assert asked(at, "POST", "/v1/search?k=1", JSON, SEARCH)["results"]
        assert (place / "serve.log").read_text().count("broken.png") == 1
    (place / "mine" / "disc" / "broken.png").unlink()


def test_a_map_depends_on_the_index_alone(tmp_path):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with Index.create(tmp_path / "index", 8, root=tmp_path) as index:
        old = Mapper(index, Peers())
        made = []
        for start in range(0, 300, 20):
            index.add([Entry(f"{row}.png", "a") for row in range(start, start + 20)], vectors[start : start + 20])
            if start == 200:
                index.remove(["7.png", "199.png"])
            made.append(old.make(state_of(index)))
            fresh = Mapper(index, Peers()).make(state_of(index))
            assert fresh.key == made[-1].key
            np.testing.assert_allclose(decode_map(fresh.data)[0], decode_map(made[-1].data)[0], atol=1e-5)
        assert len({one.key for one in made}) == len(made)
        # Images stay where they are while a few are added.
        index.add([Entry("new.png", "a")], vectors[:1])
        moved = old.make(state_of(index))
        assert moved.projector is made[-1].projector
        assert np.array_equal(decode_map(moved.data)[0][:-1], decode_map(made[-1].data)[0])


def state_of(index):
    """What a server shows of an index on its map."""

    class Live(LiveIndex):
        def __init__(self, index):
            self.index = index
            self._cached = {}
            self._guard = index.held()

        def refresh(self):
            pass

    return Live(index)._snapshot()


def test_a_projection_is_fitted_to_the_oldest_images():
    marks = np.arange(10 * FIT_ROWS) + (3 << 40)
    chosen = oldest(marks)
    assert 0.85 * FIT_ROWS < chosen.sum() < 1.05 * FIT_ROWS
    assert np.array_equal(np.flatnonzero(oldest(marks[:-1000])), np.flatnonzero(chosen))
    spread = np.diff(np.flatnonzero(chosen))
    assert spread.max() < 20 * spread.mean()
    assert oldest(marks[:1]).tolist() == [True]
    for count in (2, 3, 16, 17, 1000):
        assert oldest(marks[:count]).sum() >= count / 1.2
    shuffled = np.random.default_rng(0).permutation(marks)
    assert np.array_equal(np.sort(shuffled[oldest(shuffled)]), marks[chosen])


def test_workers_that_start_later_keep_the_layout(place, tmp_path):
    peers = Peers(folder=tmp_path)
    with Index.open(place / "my-index") as index:
        assert Mapper(index, peers)._layout is None
        vectors = np.array(index.vectors)
        Layout(vectors, np.zeros((len(vectors), 2), np.float32), index.model).save(index)
        try:
            assert Mapper(index, peers)._layout is None  # the server has started without it
            assert Mapper(index, Peers())._layout is not None
        finally:
            (place / "my-index" / "map.npz").unlink()


def test_turns(tmp_path, monkeypatch):
    """Two workers as two threads, with locks of their own: each comes to its turn, and none takes that of the other."""
    inside, order = [], []

    def work(number):
        inside.append(number)
        time.sleep(0.005)
        assert inside == [number]
        inside.clear()
        order.append(number)

    def worker(number):
        peers = Peers(number, [0, 0], [0, 0], [0.0, 0.0], tmp_path)
        for _ in range(10):
            peers.in_turn(work, number)

    at_once(lambda: worker(0), lambda: worker(1))
    assert Counter(order) == {0: 10, 1: 10}
    assert max(len(run) for run in "".join(map(str, order[4:-4])).replace("01", "0 1").replace("10", "1 0").split()) < 5
    monkeypatch.setattr("dr_keras.server.peers.TURN_SECONDS", 0.05)
    with Peers(folder=tmp_path)._turn("write"), pytest.raises(Problem) as late:
        Peers(folder=tmp_path).in_turn(work, 0)
    assert late.value.status == 503


def test_a_worker_knows_whether_the_others_can_search(monkeypatch):
    running, connections, checked = [0, 0], [0, 0], [0.0, 0.0]
    one, other = (Peers(number, running, connections, checked) for number in (0, 1))
    one.check(True)
    assert (one.others_able(), other.others_able()) == (False, True)
    other.check(True)
    assert one.others_able()
    now = time.monotonic()
    monkeypatch.setattr("dr_keras.server.peers.time.monotonic", lambda: now + 100)
    assert not one.others_able()
    other.check(False)
    assert checked[1] == 0
    assert Peers().others_able()


def test_the_worker_with_the_fewest_connections_accepts_the_next():
    running, connections, checked = [0, 0, 0], [0, 0, 0], [1.0, 1.0, 0.0]
    workers = [Peers(number, running, connections, checked) for number in range(3)]
    assert not workers[0].has_more_connections()
    workers[0].connected(1)
    assert [worker.has_more_connections() for worker in workers[:2]] == [True, False]
    workers[1].connected(1)
    assert not workers[0].has_more_connections()  # the third cannot search yet
    workers[0].connected(2)
    workers[1].forget()
    assert not workers[0].has_more_connections()
    assert connections == [2, 0, 0]


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(runtimes, "_processes", 1)
    assert runtimes.threads() == 8
    for processes, share in ((2, 4), (3, 2), (16, 1)):
        runtimes.share_cores(processes)
        assert runtimes.threads() == share
