"""Resolving the name a user gives an image, for the library and for the server."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_encoded
from PIL import Image

from dr_keras.data.thumbnails import jpeg_thumbnail, square_thumbnail, thumbnail
from dr_keras.errors import ImageError, InputError
from dr_keras.image_names import find_indexed, resolve
from dr_keras.index.index import Entry, Index
from dr_keras.lru import LRUCache

IDS = ("cats/tom.png", "cats/both.png", "dogs/both.png")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Three images below `photos`, only one of which exists as a file, and a file outside the index."""
    photos = tmp_path / "photos"
    (photos / "cats").mkdir(parents=True)
    (photos / "cats" / "tom.png").write_bytes(draw_encoded())
    (tmp_path / "other.png").write_bytes(draw_encoded())
    monkeypatch.chdir(tmp_path)
    with Index.create(tmp_path / "index", 2, root=photos) as made:
        made.add([Entry(id) for id in IDS], np.array([[1, 0], [0, 1], [-1, 0]], np.float32))
        yield made


def test_an_image_of_the_index_by_its_names(index):
    for name in ("cats/tom.png", "tom.png", f"{index.root}/cats/tom.png"):
        assert resolve(index, name) == find_indexed(index, name) == 0
    assert resolve(index, "dogs/both.png") == find_indexed(index, "dogs/both.png") == 2
    assert resolve(index, "./photos/cats/tom.png") == 0
    Path("link").symlink_to(index.root)
    assert resolve(index, "./link/cats/tom.png") == 0


def test_another_file_is_found_by_the_library_only(index):
    for name in ("other.png", "./other.png", f"{Path.cwd()}/other.png"):
        assert resolve(index, name) == Path(name)
        with pytest.raises(InputError, match="no image is called"):
            find_indexed(index, name)


def test_names_that_match_nothing_or_too_much(index):
    for find in (find_indexed, resolve):
        with pytest.raises(InputError, match=r"2 images: cats/both\.png, dogs/both\.png"):
            find(index, "both.png")
    with pytest.raises(InputError, match="and there is no such file"):
        resolve(index, "tim.png")
    with pytest.raises(InputError, match=r"no image is called 'tim\.png'") as error:
        find_indexed(index, "tim.png")
    assert "file" not in str(error.value)  # strangers must not learn whether one exists


def test_thumbnails_are_upright_and_keep_their_proportions():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6  # rotated by 90 degrees
    Image.new("RGB", (80, 20), "red").save(buffer, "PNG", exif=exif)
    assert thumbnail(buffer.getvalue(), 40).size == (10, 40)
    assert thumbnail(buffer.getvalue(), 400).size == (20, 80)  # never enlarged
    with Image.open(io.BytesIO(jpeg_thumbnail(buffer.getvalue(), 40, 80))) as made:
        assert (made.format, made.size) == ("JPEG", (10, 40))
    square = square_thumbnail(Image.new("RGB", (8, 2), "red"), 40, (0, 0, 255))
    assert square.size == (40, 40)
    assert [square.getpixel((20, y)) for y in (0, 20, 39)] == [(0, 0, 255), (255, 0, 0), (0, 0, 255)]
    with pytest.raises(ImageError):
        thumbnail(b"not an image", 40)


def test_a_cache_forgets_what_was_used_least_recently():
    cache = LRUCache[str, bytes](limit=4, size_of=len)
    cache.put("a", b"12")
    cache.put("b", b"34")
    assert cache.get("a") == b"12"
    cache.put("c", b"56")
    assert (cache.get("b"), cache.get("a"), cache.size, len(cache)) == (None, b"12", 4, 2)
    cache.put("a", b"123")  # replaces the previous value
    assert (cache.get("a"), cache.get("c"), cache.size) == (b"123", None, 3)
    cache.put("d", b"larger than all")
    assert (cache.get("d"), len(cache)) == (b"larger than all", 1)
