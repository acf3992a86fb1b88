"""Parts of pictures: their vectors in an index, the search by them, and how it is shown."""

import errno
import json
import os

import numpy as np
import pytest
from conftest import draw_encoded, script
from PIL import Image
from searched import unit
from served import BEARER, TOKEN, client, refused, search
from test_folder import Counting

from dr_keras import Entry, Index, load
from dr_keras.data.crop import Crop, cropped
from dr_keras.data.decoding import decode_with_parts
from dr_keras.data.images import decode
from dr_keras.data.parts import decode_parts, windows
from dr_keras.errors import InputError, RunError
from dr_keras.index import part_search, vector_file
from dr_keras.index.migrate import Target, embed_anew, switch
from dr_keras.index.part_search import nearest_parts
from dr_keras.index.repair import repair_index
from dr_keras.index.sync import Reader, sync_folder
from dr_keras.progress import stderr


def test_the_windows_of_each_level_cover_the_picture_and_overlap_by_half():
    assert [len(windows(parts)) for parts in (0, 2, 3, 4)] == [0, 9, 34, 83]
    assert windows(4)[:9] == windows(2)
    for level, chosen in ((2, windows(2)), (3, windows(3)[9:]), (4, windows(4)[34:])):
        lefts = sorted({window.left for window in chosen})
        assert np.allclose(np.diff(lefts), 1 / (2 * level))
        assert np.isclose(lefts[-1] + chosen[0].width, 1)
        for window in chosen:
            window.box(640, 480)
    for parts in (1, 5, -1):
        with pytest.raises(InputError, match="choose 2 to 4"):
            windows(parts)


def brute(query, vectors, parts, k, rows, exclude):
    """The k nearest images by whole or part, one by one."""
    found = []
    for row in rows:
        if row not in exclude:
            away = [np.linalg.norm(query.astype(np.float64) - piece) for piece in (vectors[row], *parts[row])]
            found.append((min(away), row, int(np.argmin(away)) - 1))
    return sorted(found)[:k]


@pytest.mark.parametrize("chosen", [None, np.arange(0, 200, 3), np.arange(0, 200, 9), np.array([7]), np.array([], int)])
@pytest.mark.parametrize("values", [1 << 25, 300])  # computed at once, and in many blocks
def test_the_nearest_parts_are_those_of_a_slow_search(monkeypatch, chosen, values):
    monkeypatch.setattr(part_search, "PRODUCT_VALUES", values)
    monkeypatch.setattr(part_search, "GATHERED_VALUES", values)
    vectors, parts, queries = unit(200), unit(200 * 9).reshape(200, 9, 8), unit(3)
    vectors[50], parts[51, 4] = queries[0], queries[0]  # the same distance: ties by row
    exclude = np.array([[50, -1], [-1, -1], [6, 9]])
    found, distances, best = nearest_parts(queries, vectors, parts, 20, rows=chosen, exclude=exclude)
    assert nearest_parts(queries[:0], vectors, parts, 5, rows=chosen, exclude=exclude[:0])[0].shape[0] == 0
    rows = range(200) if chosen is None else chosen.tolist()
    for number, query in enumerate(queries):
        expected = brute(query, vectors, parts, 20, rows, exclude[number].tolist())
        good = found[number] >= 0
        assert list(zip(found[number][good].tolist(), best[number][good].tolist(), strict=True)) == [
            (row, part) for _, row, part in expected
        ]
        assert np.allclose(distances[number][good], [away for away, *_ in expected], atol=1e-6)
        assert np.isinf(distances[number][~good]).all()


def test_parts_are_decoded_as_crops_are(tmp_path):
    for number, side in enumerate((90, 640)):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side + 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    for resize in ("stretch", "crop", "pad"):
        made, facts = decode_parts(tmp_path / "0.png", 32, resize, 3)
        assert (made.shape, facts["width"]) == ((35, 32, 32, 3), 120)
        assert np.array_equal(made[0], decode(tmp_path / "0.png", 32, resize))
        for piece, window in zip(made[1:], windows(3), strict=True):
            assert np.array_equal(piece, decode(cropped(tmp_path / "0.png", window), 32, resize))
    (tmp_path / "bad.png").write_bytes(b"bad")
    files = [tmp_path / name for name in ("0.png", "bad.png", "1.png")] * 200  # enough for child processes
    block = decode_with_parts(files, 8, parts=2)
    assert block.pixels.shape == (600, 10, 8, 8, 3)
    assert set(block.failures) == set(range(1, 600, 3))
    assert np.array_equal(block.pixels[599], decode_parts(tmp_path / "1.png", 8, "stretch", 2)[0])
    assert block.facts[599]["height"] == 640


@pytest.fixture
def index(tmp_path):
    with Index.create(tmp_path / "index", 8, root=tmp_path, parts=2) as index:
        yield index


def wide(count):
    return unit(10 * count).reshape(count, 10, 8)


def test_an_index_keeps_parts_through_every_change(index, tmp_path):
    vectors = wide(20)
    index.add([Entry(f"{n}.png", "ab"[n % 2]) for n in range(20)], vectors)
    assert (index.parts, index.stats()["parts"], index.verify()) == (2, 9, [])
    rows, distances, parts = index.search_parts(vectors[3, 5][None], 1)
    assert (rows.tolist(), parts.tolist(), distances[0, 0] < 1e-6) == ([[3]], [[4]], True)
    rows, _, parts = index.search_parts(vectors[3, 0][None], 1)
    assert (rows.tolist(), parts.tolist()) == ([[3]], [[-1]])
    assert index.search_parts(vectors[3, 5][None], 1, where="label = a")[0].tolist() != [[3]]
    assert index.search(vectors[3, 0][None], 1)[0].tolist() == [[3]]  # by whole images

    index.update([Entry("3.png", "b")], vectors[19:] * -1)
    index.remove([f"{n}.png" for n in range(10, 15)])
    index.compact()
    row = index.records.row("3.png")
    rows, _, parts = index.search_parts(-vectors[19, 7][None], 1)
    assert (rows.tolist(), parts.tolist(), index.verify()) == ([[row]], [[6]], [])
    assert len(index) == 15
    index.save(tmp_path / "copy")
    with Index.open(tmp_path / "copy") as copy:
        assert copy.verify() == []
        assert np.array_equal(copy.part_vectors, index.part_vectors)
    names = {file.name for file in index.folder.iterdir()}
    assert names >= {"vectors-1.f32", "parts-1.f32"}
    assert not names & {"vectors-0.f32", "parts-0.f32"}


def test_vectors_of_another_shape(index):
    for vectors in (unit(1), wide(2), unit(9)[None], unit(10 * 2).reshape(2, 10, 8)[:, :, :4]):
        with pytest.raises(InputError, match=r"expected \(1, 10, 8\)"):
            index.add([Entry("a.png", "a")], vectors)
    broken = wide(1)
    broken[0, 4] *= 2
    with pytest.raises(InputError, match="vector 0 is not finite or not of unit length"):
        index.add([Entry("a.png", "a")], broken)
    assert len(index) == 0


def test_an_index_without_parts_says_so(tmp_path):
    with Index.create(tmp_path / "plain", 8, root=tmp_path) as plain:
        plain.add([Entry("a.png", "a")], unit(1))
        assert (plain.parts, plain.part_vectors) == (0, None)
        with pytest.raises(InputError, match="keeps no parts"):
            plain.search_parts(unit(1))


def test_a_full_disk_between_the_two_files_changes_nothing(index, monkeypatch):
    index.add([Entry("a.png", "a")], wide(1))
    write_at, written = vector_file.write_at, []

    def full(file, vectors, offset):
        written.append(file.name)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_at(file, vectors, offset)

    with monkeypatch.context() as patch:
        patch.setattr(vector_file, "write_at", full)
        with pytest.raises(RunError, match="No space left"):
            index.add([Entry("b.png", "b")], wide(1))
    assert (len(index), index.verify()) == (1, [])
    index.add([Entry("b.png", "b")], wide(1))
    assert (len(index), index.verify()) == (2, [])


def test_a_damaged_part_is_found_and_repaired(tmp_path):
    embed = Counting()
    reader = Reader(embed, 8, "stretch", parts=2)
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    with Index.create(tmp_path / "index", 16, root=tmp_path, parts=2) as index:
        sync_folder(index, tmp_path, reader, console=stderr())
        assert embed.asked == [30]
    with open(tmp_path / "index" / "parts-0.f32", "r+b") as file:
        file.seek(16 * 4 * 12)  # a part of the second image
        file.write(b"\0\0\0\x40")
    with pytest.raises(RunError, match="a checksum differs"):
        Index.open(tmp_path / "index")
    with Index.open(tmp_path / "index", write=True, repair=True) as index:
        assert [one.id for one in index.verify()] == ["1.png"]
        repair_index(index, lambda: reader, console=stderr())
        assert index.verify() == []
    os.truncate(tmp_path / "index" / "parts-1.f32", 100)
    with pytest.raises(RunError, match=r"parts-1\.f32 is damaged: it has 100 bytes"):
        Index.open(tmp_path / "index")
    (tmp_path / "index" / "parts-1.f32").unlink()
    with pytest.raises(RunError, match=r"parts-1\.f32 does not exist"):
        Index.open(tmp_path / "index")
    with Index.open(tmp_path / "index", write=True, repair=True) as index:
        assert len(index.verify()) == 3
        repair_index(index, lambda: reader, console=stderr())
        assert index.verify() == []
        assert embed.asked == [30, 10, 30]


def test_a_migration_embeds_the_parts_anew(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    with Index.create(tmp_path / "index", 16, root=tmp_path, parts=2, model="old") as index:
        sync_folder(index, tmp_path, Reader(Counting(), 8, "stretch", parts=2), console=stderr())

    def embed(pixels):
        return unit(len(pixels), 4)

    target = Target(Reader(embed, 8, "stretch"), 4, "new", "run", "trained")
    fresh = embed_anew(tmp_path / "index", target, console=stderr())
    expected = np.array(fresh.part_vectors)
    with Index.open(tmp_path / "index", write=True) as index:
        switch(index, fresh, target, console=stderr())
        assert (index.model, index.dim, index.parts, index.verify()) == ("new", 4, 2, [])
        assert np.array_equal(index.part_vectors, expected)


@pytest.fixture
def album(place):
    """An index with parts, of twelve gray pictures, in one of which a small disc is, up on the right."""
    (place / "album").mkdir()
    disc = Image.open(place / "mine" / "disc" / "disc_0.png").convert("RGB").resize((64, 64))
    for n in range(12):
        Image.new("RGB", (256, 256), (100 + 5 * n,) * 3).save(place / "album" / f"{n}.png")
    picture = Image.new("RGB", (256, 256), (128, 128, 128))
    picture.paste(disc, (160, 32))
    picture.save(place / "album" / "with-disc.png")
    result = script(place, "index.py", "add", "album", "--run", "tiny-imagenet-64", "--index", "parts", "--parts", "4")
    assert result.returncode == 0, result.stderr
    return place


DISC = ("--query", "./mine/disc/disc_0.png", "--index", "parts", "--top", "3")


def test_a_small_thing_is_found_with_its_part(album):
    found = json.loads(script(album, "retrieve.py", *DISC, "--json").stdout)["results"]
    assert found[0]["name"] == "with-disc.png"
    assert found[0]["part"] == list(windows(4)[34 + 7 * 1 + 5].numbers)  # a quarter of the sides, from 160 and 32
    assert found[0]["distance"] < found[1]["distance"] - 0.1
    whole = json.loads(script(album, "retrieve.py", *DISC, "--json", "--whole").stdout)["results"]
    assert {one["part"] for one in whole} == {None}
    assert whole[0]["distance"] > found[0]["distance"] + 0.1

    shown = script(album, "retrieve.py", *DISC, "--save", "found.png")
    assert "0.625,0.125,0.25,0.25" in shown.stdout
    tile = np.asarray(Image.open(album / "found.png"))[:, 144:256][14:126]  # the first result: 112 pixels of 256
    bright = np.all(tile > 215, axis=2)
    rows, columns = (
        np.flatnonzero(bright[:, 70:98].mean(axis=1) > 0.8),
        np.flatnonzero(bright[14:42].mean(axis=0) > 0.8),
    )
    assert abs(rows[0] - 14) <= 2
    assert abs(rows[-1] - 41) <= 2
    assert abs(columns[0] - 70) <= 2
    assert abs(columns[-1] - 97) <= 2

    model = load("tiny-imagenet-64", index=album / "parts")
    varied = model.retrieve(str(album / "mine" / "disc" / "disc_0.png"), 3, distinct=True).results
    assert varied[0].part == Crop.of("0.625,0.125,0.25,0.25")
    assert model.retrieve("with-disc.png", 1, crop="160,32,64,64", include_self=True).results[0].part == varied[0].part


def test_what_an_index_with_parts_refuses(album):
    result = script(album, "index.py", "add", "album", "--index", "parts", "--parts", "2")
    assert (result.returncode, "keeps parts down to 1/4 of the sides" in result.stderr) == (2, True)
    result = script(album, "index.py", "add", "mine", "--index", "my-index", "--parts")
    assert (result.returncode, "keeps no parts of its images" in result.stderr) == (2, True)
    result = script(album, "retrieve.py", *DISC, "--max-distance", "auto")
    assert (result.returncode, "is one of whole images" in result.stderr) == (2, True)
    assert len(result.stderr.splitlines()) == 1
    result = script(album, "index.py", "add", "mine", "--index", "parts")  # it goes on with its parts
    assert result.returncode == 0, result.stderr
    assert "parts       83 of each image" in script(album, "index.py", "stats", "--index", "parts").stdout


def test_a_migration_by_command_keeps_the_parts(album):
    result = script(album, "index.py", "migrate", "--index", "parts", "--run", "small")
    assert result.returncode == 0, result.stderr
    with Index.open(album / "parts") as index:
        assert (index.parts, index.part_vectors.shape, index.verify()) == (4, (13, 83, index.dim), [])
        model = load(album / "runs" / "small", index=album / "parts")
        pixels = decode_parts(album / "album" / "with-disc.png", model.config.image_size, "stretch", 4)[0]
        expected = model.reader_for(index).vectors(pixels[None])[0]
        assert np.allclose(index.part_vectors[index.records.row("with-disc.png")], expected[1:], atol=1e-5)


def test_a_large_jpeg_is_seen_as_without_parts(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).resize((1600, 1200)).save(tmp_path / "large.jpg")
    made, _ = decode_parts(tmp_path / "large.jpg", 32, "stretch", 3)
    assert np.array_equal(made[0], decode(tmp_path / "large.jpg", 32, "stretch"))
    assert np.abs(made[5].astype(int) - decode(cropped(tmp_path / "large.jpg", windows(3)[4]), 32)).mean() < 12


def test_parts_by_http(album):
    disc = (album / "mine" / "disc" / "disc_0.png").read_bytes()
    (album / "my-index").rename(album / "other")
    (album / "parts").rename(album / "my-index")
    with Index.open(album / "my-index") as index:
        assert index.run == "tiny-imagenet-64"
    with client(album, run="tiny-imagenet-64", token=TOKEN, writable=True, uploads=album / "uploads") as page:
        assert page.get("/v1/stats").json()["parts"] == 83
        answer = page.post("/v1/search", params={"k": 1}, files={"image": disc}).json()["results"][0]
        assert (answer["name"], answer["part"]) == ("with-disc.png", [0.625, 0.125, 0.25, 0.25])
        form = {"whole": "true"}
        answer = page.post("/v1/search", params={"k": 1}, files={"image": disc}, data=form).json()["results"][0]
        assert answer["part"] is None
        form = {"diverse": "0.9", "distinct": "true"}
        answer = page.post("/v1/search", params={"k": 1}, files={"image": disc}, data=form).json()["results"][0]
        assert (answer["name"], answer["part"]) == ("with-disc.png", [0.625, 0.125, 0.25, 0.25])
        refused(page.post("/v1/search", json={"positives": ["1.png"], "max_distance": "auto"}), 400, "of whole images")
        added = page.post("/v1/images", files={"image": draw_encoded(kind="PNG")}, headers=BEARER)
        assert added.status_code == 201, added.text
        again = search(page, 1, positives=[added.json()["id"]], include_self=True)["results"][0]
        assert (again["id"], again["distance"] < 1e-6) == (added.json()["id"], True)
    with Index.open(album / "my-index") as index:
        assert index.verify() == []
