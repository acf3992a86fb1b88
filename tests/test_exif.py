"""Dates, cameras and places of photos: read from EXIF when images are added, and used in conditions."""

import json
import struct
import zlib

import numpy as np
import pytest
from conftest import script
from PIL import Image

from dr_keras import Entry, Index, load
from dr_keras.data.exif import distance_km, facts_of
from dr_keras.data.images import decode, decode_with_facts, facts
from dr_keras.errors import ImageError, InputError
from dr_keras.index.filters import parse_where

MUNICH, BERLIN, QUITO = (48.1372, 11.5755), (52.52, 13.405), (-0.2202, -78.5123)


def degrees(value):
    value = abs(value)
    return float(int(value)), float(int(value * 60 % 60)), value * 3600 % 60


def photo(file, *, taken=None, camera=None, place=None, lens=None, orientation=None, size=(40, 30), color="navy"):
    """Saves a photo with EXIF data."""
    exif = Image.Exif()
    if camera:
        exif[0x10F], exif[0x110] = camera
    if orientation:
        exif[0x112] = orientation
    details = exif.get_ifd(0x8769)
    if taken:
        details[0x9003] = taken
    if lens:
        details[0xA434] = lens
    if place:
        latitude, longitude = place
        exif.get_ifd(0x8825).update(
            {
                1: "N" if latitude >= 0 else "S",
                2: degrees(latitude),
                3: "E" if longitude >= 0 else "W",
                4: degrees(longitude),
            }
        )
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, color).save(file, exif=exif)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_what_a_photo_says(tmp_path, kind):
    file = tmp_path / f"photo.{kind}"
    photo(
        file,
        taken="2024:06:30 18:05:09",
        camera=("Google", "Pixel 8\0"),
        lens=" Pixel  8 back ",
        place=QUITO,
        orientation=6,
    )
    with Image.open(file) as image:
        known = facts_of(image, image.size)
    assert known == {
        "width": 30,
        "height": 40,
        "taken": "2024-06-30T18:05:09",
        "camera": {"make": "Google", "model": "Pixel 8"},
        "lens": "Pixel 8 back",
        "latitude": pytest.approx(QUITO[0], abs=1e-4),
        "longitude": pytest.approx(QUITO[1], abs=1e-4),
    }


def test_what_a_tiff_says(tmp_path):
    photo(tmp_path / "photo.tif", camera=("Google", "Pixel 8"), orientation=6)
    with Image.open(tmp_path / "photo.tif") as image:
        assert facts_of(image, image.size) == {
            "width": 30,
            "height": 40,
            "camera": {"make": "Google", "model": "Pixel 8"},
        }


@pytest.mark.parametrize("taken", ["0000:00:00 00:00:00", "2024:13:01 00:00:00", "yesterday", "    :  :     :  :  "])
@pytest.mark.parametrize("place", [(0.0, 0.0), (95.0, 10.0), (10.0, 190.0)])
def test_what_cannot_be_true_is_left_out(tmp_path, taken, place):
    photo(tmp_path / "photo.jpg", taken=taken, place=place, camera=("", "x" * 200))
    with Image.open(tmp_path / "photo.jpg") as image:
        assert facts_of(image, image.size) == {"width": 40, "height": 30}


def test_damaged_metadata_is_no_reason_to_refuse_a_picture(tmp_path):
    photo(tmp_path / "photo.jpg", taken="2024:06:30 18:05:09", place=MUNICH)
    data = bytearray((tmp_path / "photo.jpg").read_bytes())
    start = data.index(b"Exif\0\0")
    for place in range(start + 14, start + 120, 7):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        (tmp_path / "broken.jpg").write_bytes(broken)
        known = facts((tmp_path / "broken.jpg").read_bytes())
        assert set(known) <= {"width", "height", "taken", "camera", "lens", "latitude", "longitude"}
        json.dumps(known, allow_nan=False)


@pytest.mark.parametrize("deep", [False, True])
def test_what_a_file_says_makes_no_damaged_picture_good(tmp_path, deep):
    file = tmp_path / "picture.png"
    if deep:  # 12 of 16 bits, which would come out black
        pixels = np.random.default_rng(0).integers(0, 4096, (40, 40), np.uint16)
        write_png16(file, np.repeat(pixels[..., None], 3, axis=2))
        variants = [file.read_bytes()]
    else:
        Image.effect_noise((64, 64), 80).convert("RGB").save(file)
        whole = file.read_bytes()
        variants = [
            whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in range(200, 4000, 400)
        ]
    for data in variants:
        with pytest.raises(ImageError):
            decode(data, 16)
        with pytest.raises(ImageError):
            decode_with_facts(data, 16)


def write_png16(file, pixels):
    """Saves (H, W, 3) uint16 as a PNG of 16 bits per channel, which Pillow does not."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_a_place_without_its_side_is_none(tmp_path):
    photo(tmp_path / "photo.jpg", place=QUITO)
    with Image.open(tmp_path / "photo.jpg") as image:
        exif = image.getexif()
        place = exif.get_ifd(0x8825)
        del place[1]
        image.save(tmp_path / "other.jpg", exif=exif)
    with Image.open(tmp_path / "other.jpg") as image:
        assert "latitude" not in facts_of(image, image.size)


def test_distances_on_the_earth():
    assert distance_km(*MUNICH, *BERLIN) == pytest.approx(504.2, abs=1)  # as maps say
    assert distance_km(*MUNICH, *MUNICH) == 0
    assert distance_km(0, 179.9, 0, -179.9) == pytest.approx(22.24, abs=0.01)  # over the date line
    assert distance_km(90, 0, -90, 0) == pytest.approx(20015.1, abs=0.1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An index of what photos say, without their vectors' meaning."""
    place = tmp_path_factory.mktemp("photos")
    index = Index.create(place / "index", 2, root=place)
    said = {
        "munich": {
            "taken": "2024-06-30T18:05:09",
            "camera": {"model": "Pixel 8"},
            "latitude": 48.1372,
            "longitude": 11.5755,
        },
        "berlin": {
            "taken": "2024-07-01T00:00:00",
            "camera": {"model": "Pixel 6"},
            "latitude": 52.52,
            "longitude": 13.405,
        },
        "quito": {
            "taken": "2023-12-31T23:59:59",
            "camera": {"model": "EOS R5"},
            "latitude": -0.22,
            "longitude": -78.51,
        },
        "fiji": {"latitude": -17.0, "longitude": 179.95, "year": 2020},
        "scan": {"width": 100},
    }
    index.add([Entry(name, attributes=known) for name, known in said.items()], [[1.0, 0.0]] * len(said))
    yield index
    index.close()


def found(index, where):
    rows, _ = index.search([[1.0, 0.0]], where=where)
    return {entry.id for entry in index.records.entries(rows[0])}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("taken >= 2024-06", {"munich", "berlin"}),
        ("taken <= 2024-06", {"munich", "quito"}),
        ("taken = 2024-06-30", {"munich"}),
        ("taken = 2024", {"munich", "berlin"}),
        ("taken > 2023", {"munich", "berlin"}),
        ("taken < '2024-06-30 18:06'", {"munich", "quito"}),
        ("taken != 2024", {"quito"}),
        ("attributes.taken < 2024-06-30T18:05:09", {"quito"}),
        ("taken IS NULL", {"fiji", "scan"}),
        ("taken LIKE '2024%'", {"munich", "berlin"}),
        ("taken >= 2024-06 AND camera.model LIKE 'Pixel%' AND near(48.1, 11.6, 20km)", {"munich"}),
        ("near(48.1, 11.6, 600 km)", {"munich", "berlin"}),
        ("NEAR(48.1, 11.6, 400 mi)", {"munich", "berlin"}),
        ("near(48.1372, 11.5755, 1m)", {"munich"}),
        ("near(-17, -179.95, 15km)", {"fiji"}),
        ("NOT near(48.1, 11.6, 20000km)", {"scan"}),
        ("taken IN (2023, 2024-07-01)", {"quito", "berlin"}),
        ("taken NOT IN (2024)", {"quito"}),
        ("attributes.taken IN ('2024-06')", {"munich"}),
        ("year = 2020", {"fiji"}),
        ("year IN (2020, 2021)", {"fiji"}),
        ("year != 2019", {"fiji"}),
        ("lens = 'any'", set()),  # photos may have it, these do not
    ],
)
def test_conditions(photos, where, expected):
    assert found(photos, where) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("taken >= June", "a date such as 2024, 2024-06 or 2024-06-30 was expected at character 10"),
        ("taken = 2024-6", "a date such as"),
        ("near(98, 11, 5km)", "a latitude from -90 to 90 was expected at character 6"),
        ("near(48, 211, 5km)", "a longitude from -180 to 180 was expected at character 10"),
        ("near(48, 11, 5)", "a distance such as 20km or 500m was expected at character 14"),
        ("near(48, 11, km)", "a distance such as"),
        ("near(48, 11)", "',' was expected"),
        ("near(48, 11, 5km", "')' was expected"),
        ("near()", "a latitude"),
        ("'tak\\u0065n' > 48", "the name of an attribute has no backslashes"),
        ("a\0b = 1", "no NUL characters"),
    ],
)
def test_conditions_that_are_none(where, message):
    with pytest.raises(InputError) as raised:
        parse_where(where)
    assert message in str(raised.value)


def test_a_misspelled_attribute_is_told_apart_from_one_that_no_image_has(photos):
    for where, near in (
        ("camera.modle = x", "camera.model"),
        ("label = '-' OR yaer = 3", "year"),
        ("latitute > 3", "latitude"),
        ("NOT takn = 2024", "taken"),
    ):
        with pytest.raises(InputError, match=f"did you mean '{near}'"):
            found(photos, where)
    assert found(photos, "mood = happy") == set()
    assert found(photos, "lens IS NULL") == {"munich", "berlin", "quito", "fiji", "scan"}


def test_near_is_also_a_name():
    assert parse_where("near = 3").attributes == ("near",)


def test_photos_are_searched_by_what_they_say(place):
    photo(place / "trip" / "a.jpg", taken="2024:06:30 18:05:09", camera=("Google", "Pixel 8"), place=MUNICH)
    photo(place / "trip" / "b.jpg", taken="2022:01:01 00:00:00", place=BERLIN, color="red")
    photo(place / "trip" / "c.jpg", color="green")
    base = ("--run", "small", "--index", "my-index")
    assert script(place, "index.py", "add", "trip", *base, "--set", "camera.owner=me").returncode == 0
    search = ("retrieve.py", *base, "--query", "c.jpg", "--json", "--where")
    result = script(place, *search, "taken >= 2024-06 AND camera.model LIKE 'Pixel%' AND near(48.1, 11.6, 20km)")
    answer = json.loads(result.stdout)
    assert [one["name"] for one in answer["results"]] == ["a.jpg"]
    known = answer["results"][0]["attributes"]
    assert (known["width"], known["height"], known["taken"]) == (40, 30, "2024-06-30T18:05:09")
    assert known["camera"] == {"make": "Google", "model": "Pixel 8", "owner": "me"}
    wrong = script(place, *search, "camera.modle = x")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "did you mean 'camera.model'?" in wrong.stderr
    assert script(place, *search, "mood = happy").returncode == 3


def test_what_a_changed_photo_says_is_read_again(place):
    base = ("--run", "small", "--index", "my-index")
    photo(place / "trip" / "a.jpg", taken="2024:06:30 18:05:09", place=MUNICH)
    script(place, "index.py", "add", "trip", *base, "--set", "owner=me")
    photo(place / "trip" / "a.jpg", taken="2020:01:01 00:00:00", color="red")
    assert script(place, "index.py", "sync", "trip", *base).returncode == 0
    with Index.open(place / "my-index") as index:
        known = index.records.entries([index.records.find("a.jpg")])[0].attributes
    assert known == {"width": 40, "height": 30, "taken": "2020-01-01T00:00:00", "owner": "me"}


def test_photos_can_be_added_without_what_they_say(place):
    base = ("--run", "small", "--index", "private")
    for day in (1, 2):
        photo(place / "trip" / "a.jpg", taken=f"2024:06:0{day} 18:05:09", place=MUNICH)
        flags = ("--no-exif", "--set", "width=A4") if day == 1 else ()  # the index remembers it
        assert script(place, "index.py", "add", "trip", *base, *flags).returncode == 0
        with Index.open(place / "private") as index:
            assert index.records.entries([index.records.find("a.jpg")])[0].attributes == {"width": "A4"}


def test_attributes_that_nest_are_joined(place):
    base = ("--run", "small", "--index", "my-index")
    photo(place / "trip" / "a.jpg", camera=("Google", "Pixel 8"))
    for _ in range(2):  # new, and unchanged
        script(place, "index.py", "add", "trip", *base, "--set", "camera.owner=me")
        with Index.open(place / "my-index") as index:
            known = index.records.entries([index.records.find("a.jpg")])[0].attributes
        assert known["camera"] == {"make": "Google", "model": "Pixel 8", "owner": "me"}


def test_a_server_without_metadata_keeps_it_to_itself(place):
    from served import TOKEN, client

    file = place / "trip" / "a.jpg"
    photo(file, taken="2024:06:30 18:05:09", camera=("G", "Pixel 8"), place=MUNICH, size=(80, 60))
    with Image.open(file) as image:
        image.save(file, exif=image.getexif(), comment=b"a comment")
    script(place, "index.py", "add", "trip", "--run", "small", "--index", "my-index", "--set", "owner=me")
    sent = (place / "trip" / "a.jpg").read_bytes()
    upload = {"image": ("b.jpg", sent + b"\0", "image/jpeg")}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for metadata in (True, False):
        with client(place, metadata=metadata, writable=True, token=TOKEN, uploads=place / "up") as page:
            found = page.get("/v1/find", params={"name": "a.jpg"}).json()
            searched = page.post("/v1/search", json={"positives": [found["id"]], "include_self": True}).json()
            for known in (found["attributes"], searched["results"][0]["attributes"]):
                assert known["owner"] == "me"
                assert ("taken" in known, "latitude" in known) == (metadata, metadata)
            file = page.get("/v1/images/" + found["id"])
            assert (b"Pixel 8" in file.content) is metadata
            asked = {"positives": [found["id"]], "where": "near(48.1, 11.6, 20km)"}
            for where in (
                "near(48.1, 11.6, 20km)",
                "taken > 2020",
                "taken > 2020 OR size > 0",
                "time > 2020-01-01",
                "'tak\"en' > '2020'",
            ):
                status = page.post("/v1/search", json=asked | {"where": where}).status_code
                assert status == (200 if metadata else 400), where
            thumbnail = page.get("/v1/images/" + found["id"], params={"thumbnail": 64}).content
            assert b"a comment" not in thumbnail
            added = page.post("/v1/images", files=upload, headers=bearer)
            assert added.status_code in (200, 201)
            assert ("taken" in added.json()["attributes"]) is metadata


def test_what_is_known_by_the_library(place):
    photo(place / "trip" / "a.jpg", taken="2024:06:30 18:05:09")
    model = load(place / "runs/small").use_gallery(place / "trip")
    assert model.result(0).attributes["taken"] == "2024-06-30T18:05:09"


def test_when_where_and_with_what_an_index_was_photographed(tmp_path):
    attributes = [
        {"taken": "2024-06-30T10:00:00", "camera": {"model": "Pixel 8"}, "latitude": 48, "longitude": 11.5},
        {"taken": "2023-01-01T00:00:00", "camera": {"model": "Pixel 8"}},
        {"taken": "soon", "camera": {"model": ""}, "latitude": "north", "longitude": 3},
        {"taken": 2025, "camera": "EOS", "latitude": True, "longitude": [1]},
        {"camera": {"model": "EOS'\"<b>"}, "latitude": 1.5},
        {},
    ]
    with Index.create(tmp_path / "index", 2, root=tmp_path) as index:
        index.add(
            [Entry(f"{n}.jpg", attributes=one) for n, one in enumerate(attributes)], np.tile([[1.0, 0.0]], (6, 1))
        )
        found = index.records.photos()
        assert (found.first, found.last, found.placed) == ("2023-01-01T00:00:00", "2024-06-30T10:00:00", 1)
        assert found.cameras == {"Pixel 8": 2, "EOS'\"<b>": 1}
        index.withhold(["taken", "camera", "latitude"])
        found = index.records.photos()
        assert (found.first, found.last, found.cameras, found.placed) == (None, None, {}, 0)
