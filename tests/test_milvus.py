"""An index in Milvus: what is particular to it, and the traps of the server that it must not fall into."""

import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import indexed, needs_milvus, script, serving
from milvus_server import MilvusProcess, free_port
from PIL import Image
from searched import unit
from served import BEARER, TOKEN

from dr_keras.errors import InputError, RunError, Unavailable
from dr_keras.index.copying import copy_index
from dr_keras.index.index import Entry, Index
from dr_keras.index.migrate import Target, embed_anew, switch
from dr_keras.index.milvus.collection import Collection, row_of
from dr_keras.index.milvus.server import SECONDS, WRITE_SECONDS, Address, Server
from dr_keras.index.sync import Reader, add_files
from dr_keras.progress import stderr

pytestmark = pytest.mark.milvus
MANY, DIM = 10_000, 32
SHARES = (0.5, 0.05, 0.005, 0.0005)


@pytest.fixture
def place(milvus_address):
    return f"{milvus_address}/own_{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def many(milvus_address, tmp_path_factory):
    """A large index with an approximate engine, its vectors, and a number for each image by which to choose a share."""
    place = f"{milvus_address}/many_{secrets.token_hex(4)}"
    random = np.random.default_rng(0)
    centers = random.normal(size=(50, DIM))
    vectors = centers[random.integers(0, 50, MANY)] + 0.7 * random.normal(size=(MANY, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    part = random.permutation(MANY)
    with Index.create(place, DIM, root=tmp_path_factory.mktemp("many")) as index:
        entries = [Entry(f"{n}.png", f"class {n % 200}", attributes={"part": int(part[n])}) for n in range(MANY)]
        for start in range(0, MANY, 5000):
            index.add(entries[start : start + 5000], vectors[start : start + 5000])
        assert index.engine.build("hnsw") == "hnsw"
        yield index, vectors, part


# The address


@pytest.mark.parametrize(
    "text", ["milvus://", "milvus://host", "milvus://host/", "milvus://host/a-b", "milvus://host:x/a", "milvus://h/1a"]
)
def test_wrong_addresses(text):
    with pytest.raises(InputError, match="give milvus://HOST:PORT/COLLECTION"):
        Address.of(text)


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(InputError) as caught:
        Address.of("milvus://user:secret@host/photos")
    assert "secret" not in str(caught.value)


def test_the_token_is_in_no_message(monkeypatch):
    monkeypatch.setenv("DR_KERAS_MILVUS_TOKEN", "root:secret")
    server = object.__new__(Server)
    server.address = Address.of("milvus://host/photos")
    for text in ("token root:secret is wrong", "something root:secret else", "deadline root:secret exceeded"):
        told = server._told(RuntimeError(text))
        assert "secret" not in str(told)
        assert "\n" not in str(told)


# Servers that are not there, or not as they should be


def took(call):
    started = time.monotonic()
    call()
    return time.monotonic() - started


def refused(place, words, kind=Unavailable):
    def call():
        with pytest.raises(kind, match=words):
            Index.open(place)

    assert took(call) < 5


def test_no_server():
    needs_milvus()
    refused(f"milvus://127.0.0.1:{free_port()}/photos", "the Milvus server 127.0.0.1:[0-9]+ cannot be reached")


def test_a_server_that_never_answers():
    needs_milvus()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        refused(f"milvus://127.0.0.1:{silent.getsockname()[1]}/photos", "does not answer as Milvus does")


def test_a_server_of_another_kind():
    needs_milvus()
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        refused(f"milvus://127.0.0.1:{server.server_port}/photos", r"does not answer as Milvus does: .* want a token")
        server.shutdown()


def test_a_server_of_an_old_version(milvus_address, monkeypatch):
    from pymilvus import MilvusClient

    monkeypatch.setattr(MilvusClient, "get_server_version", lambda *_, **__: "v2.2.16")
    refused(f"{milvus_address}/photos", r"Milvus v2.2.16; 2.3 or newer is needed", RunError)


def test_a_full_server(place, tmp_path, monkeypatch):
    with Index.create(place, 8, root=tmp_path) as index:
        text = "quota exceeded[reason=disk quota exceeded, please allocate more resources]"
        monkeypatch.setattr(index._server._client, "upsert", lambda *_, **__: (_ for _ in ()).throw(RuntimeError(text)))
        with pytest.raises(RunError, match="takes no more: quota exceeded"):
            index.add([Entry("a.png")], unit(1))
        monkeypatch.undo()
        index.add([Entry("a.png")], unit(1))
        assert len(index) == 1


def test_a_collection_of_something_else(place, tmp_path):
    with Index.create(place, 8, root=tmp_path) as index:
        server, name = index._server, Address.of(place).collection
        other = f"{name}_other"
        server._client.create_collection(other, dimension=4, timeout=30)
        refused(f"{place}_other", "is of another kind|cannot be used", RunError)
        server._client.drop_collection(other)


def test_what_milvus_cannot_say_is_refused_by_name(place, tmp_path):
    with Index.create(place, 8, root=tmp_path) as index:
        index.add([Entry("a.png", attributes={"note": "x"})], unit(1))
        with pytest.raises(InputError, match=r"knows LIKE only with text and a % at its end, not '%x%'"):
            index.search(unit(1), where="note LIKE '%x%'")
        with pytest.raises(InputError, match="no vectors of parts"):
            Index.create(f"{place}_parts", 8, root=tmp_path, parts=2)
        with pytest.raises(InputError, match="more than 65,535 bytes"):
            index.add([Entry("b.png", attributes={"long": "x" * 70_000})], unit(1))
        assert len(index) == 1


# Its traps


def test_one_reads_what_one_has_written_at_once(place, tmp_path):
    """By default Milvus shows removed rows for a while, and misses new ones."""
    with Index.create(place, 8, root=tmp_path) as writer, Index.open(place) as reader:
        for round in range(5):
            vector = unit(1)
            writer.add([Entry(f"{round}.png")], vector)
            with Index.open(place) as other:  # as another process would
                for index in (writer, reader, other):
                    rows, distances = index.search(vector, 1)
                    assert rows.tolist() == [[row_of(f"{round}.png")]]
                    assert distances[0, 0] == 0
            writer.remove([f"{round}.png"])
            with Index.open(place) as other:
                for index in (writer, reader, other):
                    assert index.search(vector, 1)[0].size == 0
                    assert index.records.count() == 0


def test_what_follows_a_change_is_waited_for():
    """A server that is busy with a million new images answers late, which is no reason to stop adding."""
    asked: list[tuple[str, object]] = []

    class Busy:
        writes = 0
        address = Address.of("milvus://localhost/photos")

        def call(self, _method, *_, consistency_level, timeout=None, **_named):
            asked.append((consistency_level, timeout))
            return []

    collection = Collection.__new__(Collection)
    collection.server, collection._settled = Busy(), -1
    collection.query("row in [1]", ["row"])
    collection.query("row in [1]", ["row"])
    collection.server.writes = 1
    collection.query("row in [1]", ["row"])
    collection.query("row in [1]", ["row"])
    usual = [("Strong", SECONDS), ("Eventually", SECONDS)]
    assert asked == [*usual, ("Strong", WRITE_SECONDS), ("Eventually", SECONDS)]
    asked.clear()
    queries = unit(256)
    collection.meta = {"dim": queries.shape[1]}
    collection.search(queries[:1], 3, "", {})
    collection.search(queries, 3, "", {})
    collection.server.writes = 2
    collection.search(queries[:1], 3, "", {})
    (_, one), (_, many), (_, after) = asked
    assert SECONDS < one < 5  # a person learns within five seconds that a server does not answer
    assert (many, after) == (17 * SECONDS, WRITE_SECONDS)


def test_a_new_process_reads_what_another_has_written(place, tmp_path):
    program = "import sys; from dr_keras import Index; print(Index.open(sys.argv[1]).records.matching('*'))"
    with Index.create(place, 8, root=tmp_path) as writer:
        writer.add([Entry("a.png"), Entry("b.png")], unit(2))
        writer.remove(["a.png"])
        shown = subprocess.run([sys.executable, "-c", program, place], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "['b.png']"


@pytest.mark.slow
@pytest.mark.parametrize("compared", [10_000, 5])  # images: fewer are compared by the client, more searched by Milvus
@pytest.mark.parametrize("share", SHARES)
def test_an_approximate_search_under_a_condition_finds_what_there_is(many, share, compared, monkeypatch):
    """A graph of Milvus, searched under a condition that holds for one image in 200, finds none for many queries."""
    monkeypatch.setattr("dr_keras.index.milvus.search.FETCHED_ROWS", compared)
    index, vectors, part = many
    most = int(share * MANY)
    kept = np.flatnonzero(part < most)
    queries = unit(40, DIM)
    rows, distances = index.search(queries, 30, where=f"part < {most}")
    assert rows.shape == (40, min(30, most))
    assert (rows >= 0).all()
    true = np.argsort(np.linalg.norm(queries[:, None] - vectors[kept], axis=2), axis=1)[:, :30]
    expected = [{row_of(f"{kept[place]}.png") for place in places} for places in true]
    found = [len(set(some.tolist()) & wanted) for some, wanted in zip(rows, expected, strict=True)]
    assert np.mean(found) / min(30, most) >= 0.98
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.slow
def test_an_approximate_search_of_everything(many):
    index, vectors, _ = many
    queries = vectors[::250] + 0.05 * unit(40, DIM)
    rows, _ = index.search(queries, 30)
    true = np.argsort(np.linalg.norm(queries[:, None] - vectors, axis=2), axis=1)[:, :30]
    expected = [{row_of(f"{place}.png") for place in places} for places in true]
    found = [len(set(some.tolist()) & wanted) for some, wanted in zip(rows, expected, strict=True)]
    assert np.mean(found) / 30 >= 0.97
    about = index.stats()["engine"]
    assert (about["name"], about["exact"]) == ("hnsw", False)
    assert about["recall"] >= 0.97


@pytest.mark.slow
def test_every_row_is_listed_once(many):
    """Iterators of pymilvus lose rows."""
    index, *_ = many
    assert [id for _, id, *_ in index.records.listing()] == [f"{n}.png" for n in range(MANY)]
    index.remove([f"{n}.png" for n in range(0, 400, 2)])
    index.add([Entry(f"{n}.png") for n in range(0, 400, 2)], unit(200, DIM))
    ids = [id for _, id, *_ in index.records.listing()]
    assert (len(ids), len(set(ids))) == (MANY, MANY)


# Several writers


def test_writers_who_do_not_know_of_each_other(place, tmp_path):
    Index.create(place, 8, root=tmp_path).close()
    ids = [f"{n}.png" for n in range(60)]
    vectors = unit(60)

    def write(seed):
        with Index.open(place, write=True) as index:
            for start in np.random.default_rng(seed).permutation(6).tolist():
                some = slice(10 * start, 10 * start + 10)
                index.put([Entry(id, f"class {seed}") for id in ids[some]], vectors[some])

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with Index.open(place) as index:
        assert sorted(id for _, id, *_ in index.records.listing()) == sorted(ids)
        assert index.verify() == []
        assert np.array_equal(index.vectors[list(index.records.rows_of(ids).values())], vectors)
        assert set(index.records.class_names()) == {"class 0", "class 1", "class 2"}


def test_an_index_that_two_make_at_once(place, tmp_path):
    made, errors = [], []

    def make():
        try:
            made.append(Index.create(place, 8, root=tmp_path))
        except RunError as error:
            errors.append(error)

    makers = [threading.Thread(target=make) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert made
    made[0].add([Entry("a.png")], unit(1))
    for index in made:
        index.refresh()
        assert index.records.count() == 1
        index.close()


@pytest.mark.nightly
def test_kills_of_the_server_lose_nothing(tmp_path):
    needs_milvus()
    program = Path(__file__).parent / "kill_milvus.py"
    done = subprocess.run(
        [sys.executable, program, tmp_path / "crash", "1", "7"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "none lost and none there twice" in done.stdout


def reader_by(channel):
    """Reads a picture as the vector of a channel of its first pixel and those that are left."""

    def embed(pixels):
        values = pixels[:, 0, 0].astype(np.float32)[:, [channel, (channel + 1) % 3]] + 1
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    return Reader(embed, 4, "stretch", exif=False)


def test_a_migration_is_one_step_and_locks_others_out(place, tmp_path):
    folder = tmp_path / "pictures" / "cats"
    folder.mkdir(parents=True)
    for number in range(6):
        color = np.full((4, 4, 3), (40 * number, 200 - 30 * number, 90), np.uint8)
        Image.fromarray(color).save(folder / f"{number}.png")
    first, second = reader_by(0), reader_by(1)
    target = Target(second, 2, "second", "runs/second", "trained")
    console = stderr()
    with Index.create(place, 2, root=tmp_path / "pictures", model="first") as index:
        add_files(index, [folder], first, console=console)
        before = index.vectors[index.searched_rows()]
        with Index.open(place, write=True) as other, embed_anew(place, target, console=console) as fresh:
            index.update([replace(index.get("cats/1.png")[0], label="changed meanwhile")])
            (folder / "6.png").write_bytes((folder / "5.png").read_bytes())
            add_files(index, [folder], first, console=console)
            index.remove(["cats/0.png"])
            with pytest.raises(Unavailable, match="was changed meanwhile"):
                other.take_vectors(fresh, target.meta())
            assert switch(index, fresh, target, console=console, keep_old=True) == []
            with pytest.raises(RunError, match="was moved to another model meanwhile"):
                other.put([Entry("x.png")], unit(1, 2))
        assert (index.model, index.run) == ("second", "runs/second")
        assert len(index) == 6
        assert index.get("cats/1.png")[0].label == "changed meanwhile"
        assert index.verify() == []
        rows = index.searched_rows()
        pixels = np.stack([np.asarray(Image.open(folder / one.name)) for one in index.records.entries(rows)])
        np.testing.assert_array_equal(index.vectors[rows], second.embed(pixels))
        with Index.open(index.old_place) as old:
            assert old.model == "first"
            assert len(old) == 6
            np.testing.assert_array_equal(old.get("cats/3.png")[1], before[3])
        assert not Index.exists(index.migration_place)
        index.add([Entry("y.png")], unit(1, 2))


# The commands


def test_the_commands_do_the_same_in_both_kinds(workplace, tmp_path, place):
    here = indexed(tmp_path, workplace)
    local = str(here / "my-index")
    copied = script(here, "index.py", "copy", local, place)
    assert copied.returncode == 0, copied.stderr
    assert "16 images copied, 0 were there already; all are equal" in copied.stdout
    shown = {}
    for where in (local, place):
        said = []
        for arguments in (
            ("retrieve.py", "--query", "disc_0.png", "--top", 5, "--json"),
            ("retrieve.py", "--query", here / "mine" / "rings" / "rings_1.png", "--where", "label = rings", "--json"),
            ("index.py", "verify"),
            ("index.py", "remove", "disc/disc_1.png"),
            ("retrieve.py", "--query", "disc_0.png", "--top", 3, "--distinct", "--json"),
        ):
            done = script(here, *arguments, "--index", where)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout.replace(where, "INDEX"))
        shown[where] = said
    assert shown[local] == shown[place]


def test_a_copy_is_resumed_and_compared(place, tmp_path):
    local = tmp_path / "index"
    with Index.create(local, 8, root=tmp_path, model="m") as index:
        index.add([Entry(f"{n}.png", "a", attributes={"n": n}) for n in range(30)], unit(30), class_names={"a": "ant"})
        index.image_files.skip({"bad.png": (1, 2, "is no image")})
    copy_index(local, place, console=stderr())
    with Index.open(place, write=True) as index:
        index.remove(["3.png", "4.png"])
        index.update([Entry("5.png", "changed")])
    report = copy_index(local, place, console=stderr())
    assert (report.copied, report.present) == (3, 27)
    back = tmp_path / "back"
    copy_index(place, back, console=stderr())
    with Index.open(local) as one, Index.open(back) as other:
        assert np.array_equal(one.get("7.png")[1], other.get("7.png")[1])
        assert [one.get(f"{n}.png")[0] for n in range(6, 9)] == [other.get(f"{n}.png")[0] for n in range(6, 9)]
        assert other.records.class_names() == {"a": "ant"}
        assert other.image_files.skipped() == one.image_files.skipped()
    with Index.open(place, write=True) as index:
        index.add([Entry("more.png")], unit(1))
    with pytest.raises(InputError, match=r"has 1 images that .* has not: more.png"):
        copy_index(local, place, console=stderr())


@pytest.mark.slow
def test_a_server_follows_its_index_through_a_restart(workplace, tmp_path):
    """It answers 503 while Milvus is away, and goes on when it is back."""
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    needs_milvus()
    here = indexed(tmp_path, workplace)
    with MilvusProcess(tmp_path / "milvus") as milvus:
        place = f"{milvus.address}/photos"
        copy_index(here / "my-index", place, console=stderr())
        arguments = ("--index", place, "--writable", "--uploads", "mine/sent")
        with serving(here, *arguments, env={"DR_KERAS_TOKEN": TOKEN}) as (_, address):

            def ask(method, target, headers=None):
                with closing(HTTPConnection(urlsplit(address).netloc, timeout=60)) as at:
                    at.request(method, target, headers=headers or {})
                    answer = at.getresponse()
                    return answer.status, answer.read()

            assert ask("GET", "/v1/stats")[0] == 200
            assert ask("GET", "/readyz")[0] == 200
            milvus.kill()
            started = time.monotonic()
            assert ask("GET", "/readyz")[0] == 503
            assert ask("DELETE", "/v1/images/disc/disc_1.png", BEARER)[0] == 503
            assert time.monotonic() - started < 15
            milvus.start()
            end = time.monotonic() + 60
            while ask("GET", "/readyz")[0] != 200:
                assert time.monotonic() < end
                time.sleep(0.5)
            assert ask("GET", "/v1/stats")[0] == 200
            assert ask("DELETE", "/v1/images/disc/disc_1.png", BEARER)[0] == 200
            assert ask("GET", "/v1/images/disc/disc_1.png")[0] == 404
