"""Searching by a part of a picture: `--crop`, in the library and by HTTP."""

import io
import json

import numpy as np
import pytest
from conftest import draw, script
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dr_keras import load
from dr_keras.data.crop import Crop, cropped
from dr_keras.data.images import decode
from dr_keras.errors import InputError


def test_a_part_in_pixels_and_in_shares():
    assert Crop.of("10,20,30,40").box(200, 100) == (10, 20, 40, 60)
    assert Crop.of((0.25, 0, 0.5, 1)).box(200, 100) == (50, 0, 150, 100)
    assert Crop.of("0,0,1,1").box(3, 7) == (0, 0, 3, 7)
    assert Crop.of("0.999,0.999,0.001,0.001").box(10, 10) == (9, 9, 10, 10)  # at least a pixel
    assert Crop.of("199,99,1,1").box(200, 100) == (199, 99, 200, 100)


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,0,0,5", "-1,0,5,5", "nan,0,5,5", "0,0,inf,5", "0,0,5,-5", None, 7]
)
def test_what_is_no_rectangle(text):
    with pytest.raises(InputError, match="expected LEFT,TOP,WIDTH,HEIGHT"):
        Crop.of(text)


@pytest.mark.parametrize("text", ["0,0,201,50", "150,0,51,10", "0,200,5,5", "0.5,0,0.6,1"])
def test_a_part_outside_the_picture(text):
    with pytest.raises(InputError, match=r"is not inside the picture, which has 200 x 100 pixels"):
        Crop.of(text).box(200, 100)


@given(st.integers(1, 500), st.integers(1, 500), st.tuples(*[st.floats(0, 1)] * 4))
def test_shares_within_the_picture_always_give_pixels(width, height, numbers):
    left, top, across, down = numbers
    across, down = min(across, 1 - left), min(down, 1 - top)
    if not across or not down:
        return
    first, above, last, below = Crop(left, top, across, down).box(width, height)
    assert 0 <= first < last <= width
    assert 0 <= above < below <= height


def test_the_part_is_of_the_upright_picture(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x112] = 6  # shown turned by 90 degrees: red is above
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    part = cropped(tmp_path / "turned.png", Crop.of("0,0,20,20"))
    assert (np.asarray(part) == (255, 0, 0)).all()
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for name in ("turned.png", "turned.jpg"):  # the network sees what is seen without a crop
        whole = decode(cropped(tmp_path / name, Crop.of("0,0,1,1")), 16)
        assert np.abs(whole.astype(int) - decode(tmp_path / name, 16)).max() <= 3


def collage(place, left, right):
    """A picture of two pictures side by side."""
    both = Image.new("RGB", (64, 32))
    both.paste(Image.open(place / "mine" / left), (0, 0))
    both.paste(Image.open(place / "mine" / right), (32, 0))
    both.save(place / "both.png")


def test_each_half_of_a_collage_finds_its_picture(place, monkeypatch):
    monkeypatch.chdir(place)
    collage(place, "bars/bars_0.png", "disc/disc_1.png")
    for crop, found in ((" 0, 0, 32, 32", "bars/bars_0.png"), ("0.5,0,0.5,1", "disc/disc_1.png")):
        result = script(
            place,
            "retrieve.py",
            *("--run", "small", "--index", "my-index", "--query", "./both.png", "--crop", crop, "--json"),
            *("--save", "found.png", "--why", "why.png"),
        )
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["results"][0]["id"] == found
        assert answer["results"][0]["distance"] < 1e-3
        assert answer["crop"] == [float(number) for number in crop.split(",")]
        assert answer["results"][0]["explanation"]["cosine"] == pytest.approx(1, abs=1e-3)
        assert (place / "found.png").exists()
        assert (place / "why.png").exists()


def test_a_part_of_an_image_of_the_index(place, monkeypatch):
    monkeypatch.chdir(place)
    model = load("small", index="my-index")
    whole = model.retrieve("bars_0.png", k=15)
    assert whole.crop is None
    part = model.retrieve("bars_0.png", k=15, crop=(0, 0, 16, 16))
    assert "bars/bars_0.png" not in {result.id for result in part.results}  # it is the query
    assert part.label == "bars"
    with Image.open(place / "mine/bars/bars_0.png") as picture:
        expected = model.search([picture.convert("RGB").crop((0, 0, 16, 16))], k=16)[0]
    assert [one.id for one in part.results] == [one.id for one in expected if one.id != "bars/bars_0.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--crop", "5,5,40,10"), "the crop 5,5,40,10 is not inside the picture, which has 32 x 32 pixels"),
        (("--crop", "0,0,1"), "expected LEFT,TOP,WIDTH,HEIGHT"),
        (("--crop", "0,0,1,1", "--negative", "disc_0.png"), "a crop is a part of a single query; 2 images were given"),
        (("--crop", "0,0,1,1", "--query", "disc_0.png"), "a crop is a part of a single query; 2 images were given"),
    ],
)
def test_parts_that_cannot_be_searched_for(place, arguments, message):
    result = script(place, "retrieve.py", "--run", "small", "--index", "my-index", "--query", "bars_0.png", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_parts_by_http(place, page):
    collage(place, "bars/bars_0.png", "disc/disc_1.png")
    data = (place / "both.png").read_bytes()
    sent = {"files": {"image": ("both.png", io.BytesIO(data), "image/png")}}
    for crop, found in (("0,0,32,32", "bars/bars_0.png"), ("0.5,0,0.5,1", "disc/disc_1.png")):
        sent["files"]["image"][1].seek(0)
        answer = page.post("/v1/search", params={"crop": crop, "k": 3}, **sent).json()
        assert answer["results"][0]["id"] == found
        assert answer["results"][0]["distance"] < 1e-3
    named = page.post("/v1/search", params={"crop": "0,0,0.5,0.5"}, json={"positives": ["bars/bars_0.png"]}).json()
    model = load(place / "runs/small", index=place / "my-index")
    expected = model.retrieve("bars_0.png", crop="0,0,0.5,0.5")
    assert [one["id"] for one in named["results"]] == [one.id for one in expected.results]
    assert named["crop"] == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("crop", "body", "message"),
    [
        ("0,0,99,1", ["bars/bars_0.png"], "is not inside the picture"),
        ("0,0,9", ["bars/bars_0.png"], "expected LEFT,TOP,WIDTH,HEIGHT"),
        ("x" * 500, ["bars/bars_0.png"], "crop: "),
        ("0,0,1,1", ["bars/bars_0.png", "disc/disc_0.png"], "a part of a single query"),
    ],
)
def test_parts_that_the_server_refuses(page, crop, body, message):
    answer = page.post("/v1/search", params={"crop": crop}, json={"positives": body})
    assert answer.status_code in (400, 422)
    assert message in answer.json()["detail"]


def test_a_part_of_nothing(page):
    answer = page.post("/v1/search", params={"crop": "0,0,1,1"}, json={"negatives": ["bars/bars_0.png"]})
    assert (answer.status_code, "single query" in answer.json()["detail"]) == (422, True)


def test_a_part_of_a_file_that_is_gone(place, page):
    (place / "mine/bars/bars_0.png").unlink()
    answer = page.post("/v1/search", params={"crop": "0,0,1,1"}, json={"positives": ["bars/bars_0.png"]})
    assert answer.status_code == 404


def test_a_part_of_a_large_photo(place, monkeypatch):
    monkeypatch.chdir(place)
    large = Image.new("RGB", (10_000, 10_000), "gray")
    drawn = draw("rings", np.random.default_rng(3)).resize((1000, 1000))
    large.paste(drawn, (7000, 8000))
    large.save("large.jpg", quality=95)
    model = load("small", index="my-index")
    with_crop = model.retrieve("./large.jpg", crop="7000,8000,1000,1000", k=5)
    alone = model.search([drawn], k=5)[0]
    assert with_crop.results[0].distance == pytest.approx(alone[0].distance, abs=0.1)
