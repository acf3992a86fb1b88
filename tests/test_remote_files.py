"""Images on an object store: added, changed, unreadable; and what other commands do with them."""

import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from conftest import draw_encoded, script, write_folders
from s3_server import BUCKET, needs_s3, store
from served import client, refused, search

from dr_keras.data.image_ids import image_id, image_path, is_outside_root, url_of
from dr_keras.data.images import decode
from dr_keras.data.remote_files import _status, remote_pictures, remote_status
from dr_keras.errors import InputError
from dr_keras.index.index import Entry, Index

PICTURES = f"s3://{BUCKET}/mine"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with the class folders `mine`, which are also in a folder."""
    with store() as made:
        folder = write_folders(tmp_path_factory.mktemp("pictures") / "mine", each=3, seed=5)
        made.put_folder(folder, "mine")
        yield made, folder


@pytest.fixture
def remote(filled, monkeypatch):
    for name, value in filled[0].environment.items():
        monkeypatch.setenv(name, value)
    return filled


def entries(place: Path) -> dict[str, tuple[Entry, np.ndarray]]:
    with Index.open(place) as index:
        return {id: index.get(id) for _, id, *_ in index.records.listing()}


@pytest.mark.parametrize("path", ["s3://photos/a b/c.jpg", "s3:/photos/a b/c.jpg"])
def test_addresses_are_ids_of_their_own(path):
    url = "s3://photos/a b/c.jpg"
    assert url_of(path) == url
    assert url_of(Path(path)) == url
    assert image_path(url, "/root") == url
    assert image_id(url, "/root") == url
    assert is_outside_root(url)


@pytest.mark.parametrize(
    "path", ["photos/s3/x.jpg", "/s3:/x.jpg", "s3:x.jpg", "http://host/x.jpg", "s3://", "C:/x.jpg"]
)
def test_other_paths_are_no_addresses(path):
    assert url_of(path) is None
    assert image_path(path, "/root").endswith(path)


def test_what_stores_say_of_a_change():
    second = 10**9
    assert _status({"size": 5, "LastModified": None, "mtime": 2.5}) == (5, 5 * second // 2)
    assert _status({"size": 5, "updated": "1970-01-01T00:00:03+00:00"}) == (5, 3 * second)
    assert _status({"size": 5}) == (5, None)
    one, other = (_status({"size": 5, "ETag": tag})[1] for tag in ("one", "other"))
    assert one != other
    assert 0 <= one < 2**63


def test_listing(remote):
    made, _ = remote
    made.put("listed/.hidden/x.png", b"x")
    made.put("listed/@eaDir/x.png", b"x")
    made.put("listed/notes.txt", b"x")
    made.put("listed/cats/one [1]*.png", draw_encoded(1))
    made.put("listed2/cats/two.png", draw_encoded(2))
    assert list(remote_pictures(f"s3://{BUCKET}/listed")) == [f"s3://{BUCKET}/listed/cats/one [1]*.png"]
    status = remote_pictures(f"s3://{BUCKET}/listed/")[f"s3://{BUCKET}/listed/cats/one [1]*.png"]
    assert status == remote_status(f"s3://{BUCKET}/listed/cats/one [1]*.png")
    assert status[0] == len(draw_encoded(1))
    assert remote_status(f"s3://{BUCKET}/listed/gone.png") == (None, None)
    assert remote_pictures(f"s3://{BUCKET}/nothing") == {}
    with pytest.raises(InputError, match=r"s3://nowhere cannot be listed"):
        remote_pictures("s3://nowhere")


def test_a_picture_is_decoded_as_from_a_file(remote):
    _, folder = remote
    file = next(folder.rglob("*.png"))
    url = f"{PICTURES}/{file.relative_to(folder).as_posix()}"
    assert np.array_equal(decode(url, 16), decode(file, 16))
    assert np.array_equal(decode(Path(url), 16), decode(file, 16))
    with pytest.raises(InputError, match="cannot be read"):
        decode(f"{PICTURES}/gone.png", 16)


def test_add(remote, workplace, tmp_path):
    made, folder = remote
    run = workplace / "runs" / "small"
    made.put("mine/disc/broken.png", b"not a picture")

    def add(what: object, place: str) -> str:
        result = script(tmp_path, "index.py", "add", what, "--run", run, "--index", place, "--head", "trained")
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    assert "12 added, 0 updated, 0 unchanged, 1 could not be read" in add(PICTURES, "far")
    add(folder, "near")
    far, near = entries(tmp_path / "far"), entries(tmp_path / "near")
    assert {f"{PICTURES}/{id}" for id in near} == set(far)
    for id, (entry, vector) in near.items():
        other, its = far[f"{PICTURES}/{id}"]
        assert (other.label, other.hash, other.size) == (entry.label, entry.hash, entry.size)
        assert other.attributes == entry.attributes
        assert np.abs(its - vector).max() < 1e-6

    assert "0 added, 0 updated, 12 unchanged, 1 could not be read" in add(PICTURES, "far")
    made.put("mine/disc/disc_0.png", draw_encoded(9))
    made.put("mine/disc/broken.png", draw_encoded(10))
    said = add(PICTURES, "far")
    assert "1 added, 1 updated, 11 unchanged" in said
    made.put("mine/disc/disc_0.png", (folder / "disc" / "disc_0.png").read_bytes())
    made.delete("mine/disc/broken.png")
    assert "0 added, 1 updated, 11 unchanged; 13 images" in add(PICTURES, "far")


@pytest.mark.usefixtures("remote")
def test_other_commands(workplace, tmp_path):
    run = ("--run", workplace / "runs" / "small")
    index = ("--index", "far")

    def index_py(*arguments: object) -> tuple[int, str]:
        result = script(tmp_path, "index.py", *arguments)
        assert "bug" not in result.stderr
        return result.returncode, result.stdout + result.stderr

    assert index_py("add", PICTURES, *run, *index)[0] == 0
    assert index_py("verify", *index)[0] == 0
    status, said = index_py("sync", PICTURES, *index)
    assert status == 2
    assert "sync takes a folder of this machine" in said
    status, said = index_py("move", tmp_path, *index)
    assert status == 2
    assert "no image" in said
    status, said = index_py("duplicates", PICTURES)
    assert status == 2
    assert "there is no folder" in said
    status, said = index_py("add", PICTURES, "--fit-head", *run, "--index", "fitted")
    assert status == 2
    assert "--fit-head reads files of this machine" in said
    status, said = index_py("calibrate", "--copies", *run, *index)  # which reads the pictures
    assert "can be read" not in said
    url = f"{PICTURES}/disc/disc_1.png"
    found = script(tmp_path, "retrieve.py", *index, "--query", url, "--top", 2, "--json", "--save", "grid.png")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["results"][0]["path"].startswith(f"{PICTURES}/")
    why = script(tmp_path, "retrieve.py", *index, "--query", url, "--top", 2, "--why", "why.png")
    assert why.returncode == 0, why.stderr
    assert (tmp_path / "why.png").is_file()
    assert index_py("cluster", "--groups", 2, *index)[0] == 0
    status, said = index_py("cluster", "--groups", 2, "--export", "groups", *index)
    assert status == 2
    assert "is on an object store" in said
    assert not (tmp_path / "groups").exists()
    status, said = index_py("migrate", "--run", "tiny-imagenet-64", *index)  # which reads the pictures
    assert status == 0, said
    assert len(entries(tmp_path / "far")) == 12
    assert index_py("remove", f"{PICTURES}/disc/*", *index)[0] == 0


@pytest.mark.usefixtures("remote")
def test_the_server_searches_without_showing(workplace, tmp_path):
    run = workplace / "runs" / "small"
    script(tmp_path, "index.py", "add", PICTURES, "--run", run, "--index", "my-index")
    id = f"{PICTURES}/disc/disc_1.png"
    with client(tmp_path, run) as page:
        found = search(page, 3, positives=[id])
        assert all(result["id"].startswith(f"{PICTURES}/") for result in found["results"])
        refused(page.get(f"/v1/images/{quote(id, safe='')}"), 404, "on an object store")


@pytest.mark.usefixtures("remote")
def test_repair_reads_the_store(workplace, tmp_path):
    script(tmp_path, "index.py", "add", PICTURES, "--run", workplace / "runs" / "small", "--index", "far")
    file = next((tmp_path / "far").glob("vectors-*"))
    before = entries(tmp_path / "far")
    content = bytearray(file.read_bytes())
    content[5] ^= 0x40
    file.write_bytes(content)
    result = script(tmp_path, "index.py", "verify", "--repair", "--index", "far")
    assert result.returncode == 0, result.stderr
    assert "1 updated" in result.stdout
    assert set(entries(tmp_path / "far")) == set(before)
    assert script(tmp_path, "index.py", "verify", "--index", "far").returncode == 0


@pytest.mark.usefixtures("remote")
def test_repair_removes_nothing_while_the_store_does_not_answer(workplace, tmp_path, monkeypatch):
    script(tmp_path, "index.py", "add", PICTURES, "--run", workplace / "runs" / "small", "--index", "far")
    file = next((tmp_path / "far").glob("vectors-*"))
    content = bytearray(file.read_bytes())
    content[5] ^= 0x40
    file.write_bytes(content)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    result = script(tmp_path, "index.py", "verify", "--repair", "--index", "far", env={"AWS_MAX_ATTEMPTS": "1"})
    assert result.returncode == 2
    assert "cannot be looked at" in result.stderr


def test_without_the_package(tmp_path, workplace, refuse):
    needs_s3()
    env = refuse("s3fs")
    result = script(
        tmp_path, "index.py", "add", PICTURES, "--run", workplace / "runs" / "small", "--index", "i", env=env
    )
    assert result.returncode == 2
    assert "needs the package s3fs: pip install" in result.stderr
