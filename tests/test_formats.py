"""Pictures are recognized by content: formats that are read, formats that need an extra, and other files."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from raw_photo import dng

from dr_keras.data.formats import FORMATS, HEAD_BYTES, needs_decoder, says_picture, sniff
from dr_keras.data.images import decode
from dr_keras.errors import ImageError

# Formats Pillow writes: its name for the format, a mode, and the largest error of the encoding.
WRITTEN = [
    ("JPEG", "RGB", 25),
    ("PNG", "RGB", 0),
    ("WEBP", "RGB", 40),
    ("GIF", "P", 60),
    ("BMP", "RGB", 0),
    ("TIFF", "RGB", 0),
    ("AVIF", "RGB", 40),
    ("JPEG2000", "RGB", 0),
    ("PPM", "RGB", 0),
    ("TGA", "RGB", 0),
    ("TGA", "L", 0),
    ("ICO", "RGB", 0),
    ("ICNS", "RGB", 0),
    ("QOI", "RGB", 0),
    ("DDS", "RGB", 0),
    ("PCX", "RGB", 0),
    ("SGI", "RGB", 0),
]


def ramp(side=64):
    """A picture of gradients, which no encoding distorts much."""
    across = np.linspace(0, 255, side)
    gray = (across[:, None] + across[None]) / 2
    return Image.fromarray(np.stack([gray, gray[::-1], gray[:, ::-1]], axis=2).astype(np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sniffed(data, path=None):
    found = sniff(data[:HEAD_BYTES], len(data), path)
    return found and found.name


@pytest.mark.parametrize(("kind", "mode", "tolerance"), WRITTEN)
@pytest.mark.parametrize("ending", ["", ".txt", ".jpg"])
def test_what_pillow_writes_is_known_and_read_whatever_its_name(tmp_path, kind, mode, tolerance, ending):
    image = ramp().convert(mode)
    data = encoded(image, kind)
    assert sniffed(data) == kind
    file = tmp_path / f"picture{ending}"
    file.write_bytes(data)
    wanted = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decode(file, 64).astype(int) - wanted).max() <= tolerance
    assert np.array_equal(decode(data, 64), decode(file, 64))


@pytest.mark.parametrize("kind", ["P1", "P2", "P3", "P4", "P5", "P6"])
def test_pnm_of_each_kind_with_comments(kind):
    head = f"{kind}\n# made by hand\n4 4\n".encode() + (b"" if kind in ("P1", "P4") else b"255\n")
    body = {
        "P1": b"1 0 1 0\n" * 4,
        "P2": b"0 80 160 240\n" * 4,
        "P3": b"0 0 0 80 80 80 160 160 160 240 240 240\n" * 4,
        "P4": b"\xa0" * 4,
        "P5": bytes([0, 80, 160, 240]) * 4,
        "P6": bytes([0, 0, 0, 80, 80, 80, 160, 160, 160, 240, 240, 240]) * 4,
    }[kind]
    assert sniffed(head + body) == "PPM"
    line = [0, 255, 0, 255] if kind in ("P1", "P4") else [0, 80, 160, 240]
    assert decode(head + body, 4)[2, :, 1].tolist() == line


def box(*brands):
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(40)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (box(b"heic", b"mif1"), "HEIF"),
        (box(b"mif1", b"heic"), "HEIF"),
        (box(b"mif1", b"avif", b"miaf"), "AVIF"),
        (box(b"msf1", b"hevc"), "HEIF"),
        (box(b"crx ", b"isom"), "RAW"),
        (b"\xff\x0a" + bytes(30), "JXL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), "JXL"),
        (b"FUJIFILMCCD-RAW 0201", "RAW"),
        (b"IIRO\x08\0\0\0", "RAW"),
        (b"IIU\0\x18\0\0\0", "RAW"),
        (b"II*\0\x10\0\0\0CR\x02\0", "RAW"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="3">', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a licence -->\n<svg width="3">', "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"gimp xcf v011", "XCF"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe", "HDR"),
        (bytes(128) + b"DICM" + bytes(20), "DICOM"),
    ],
)
def test_pictures_that_need_help_are_known_and_say_what_to_do(data, name, monkeypatch):
    assert sniffed(data) == name
    for package in ("pillow_heif", "rawpy", "pillow_jxl"):
        for module in [package, *(one for one in sys.modules if one.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, module, None)
    if name != "AVIF":
        with pytest.raises(ImageError, match=f"is {name}, which is not supported here; ") as error:
            decode(data, 8)
        assert needs_decoder(str(error.value)) == (name in ("HEIF", "RAW", "JXL"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BMW, Audi and others\n" + b"notes about cars\n" * 20,
        b"P5 is a fine standard\n",
        b"Plain text.\n" * 100,
        b"<!DOCTYPE html><html><body><svg width='3'></svg></body></html>",
        b"<?xml version='1.0'?><note>svg</note>",
        b"<html><head><link href='x.svg'></head></html>",
        b'{"path": "a.jpg"}',
        b"path,label\na.jpg,cats\n",
        b"%PDF-1.7\n%\xe2\xe3",
        b"PK\x03\x04" + bytes(30),
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),  # Thumbs.db and old Office files
        b"Rar!\x1a\x07\0" + bytes(40),
        b"\x1f\x8b\x08" + bytes(40),
        b"ID3\x04" + bytes(40),
        box(b"isom", b"iso2", b"avc1", b"mp41"),
        box(b"qt  "),
        box(b"M4A "),
        b"\x7fELF" + bytes(60),
        b"MZ\x90\0" + bytes(60),
        b"\0\x01\0\0\0\x0c\0\x80" + bytes(60),  # a font
        b"SQLite format 3\0" + bytes(90),
        b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(60),  # ._photo.jpg
        bytes(2000),
        b"\0\0\0\x01" * 200,
        b"\x80\x02}q\x00." * 50,
        "Größe;Länge\n".encode("utf-16"),
    ],
)
def test_other_files_are_not_pictures(data):
    assert sniffed(data) is None


def test_random_bytes_are_rarely_mistaken_for_a_picture():
    """Targa has no magic number, and that of JPEG XL is only two bytes."""
    random = np.random.default_rng(0)
    taken = sum(sniffed(random.bytes(2000)) is not None for _ in range(20_000))
    assert taken <= 4


@pytest.mark.parametrize("name", ["a.NEF", "b.dng", "c.arw", "d.Pef"])
def test_raw_files_that_are_tiff_inside_are_told_by_their_ending(tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    assert says_picture(name)
    (tmp_path / name).write_bytes(encoded(ramp(), "TIFF"))
    with pytest.raises(
        ImageError, match=r"is RAW, which is not supported here; to read it, pip install 'dr_keras\[photos\]'"
    ):
        decode(tmp_path / name, 8)


def test_raw_photos_without_an_ending_are_told_by_their_tags(monkeypatch):
    """Otherwise the small preview in front would be taken for the photo."""
    monkeypatch.setitem(sys.modules, "rawpy", None)
    behind_small_picture = TiffImagePlugin.ImageFileDirectory_v2()
    behind_small_picture[254], behind_small_picture[330] = 1, 8
    behind_small_picture.tagtype[330] = 4
    for data in (dng(1, 2, 3), encoded(ramp(), "TIFF", tiffinfo=behind_small_picture)):
        with pytest.raises(ImageError, match="is RAW, which is not supported here"):
            decode(data, 8)


def test_raw_photos_are_read_where_the_extra_is_installed(tmp_path):
    pytest.importorskip("rawpy")
    data = dng(40000, 20000, 5000)
    (tmp_path / "photo").write_bytes(data)
    for source in (data, tmp_path / "photo"):
        pixels = decode(source, 16).reshape(-1, 3).astype(int)
        assert (np.ptp(pixels, axis=0) <= 2).all()
        assert pixels.mean(axis=0).argmax() == 0
    assert decode(dng(5000, 20000, 40000), 16).reshape(-1, 3).mean(axis=0).argmax() == 2
    for damaged, reason in ((b"MMOR", "damaged or ends early"), (b"IIRO" + bytes(300), "Unsupported file format")):
        with pytest.raises(ImageError, match=f"cannot be decoded: .*{reason}"):
            decode(damaged, 16)


def test_heif_and_jxl_are_read_where_the_extra_is_installed():
    heif, jxl = pytest.importorskip("pillow_heif"), pytest.importorskip("pillow_jxl")
    assert jxl
    before = dict(Image.OPEN)
    image = ramp()
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=95)
    assert sniffed(buffer.getvalue()) == "HEIF"
    wanted = np.asarray(image).astype(int)
    assert np.abs(decode(buffer.getvalue(), 64).astype(int) - wanted).max() <= 25
    assert set(Image.OPEN) == set(before)  # Pillow itself reads the same formats as before
    buffer = io.BytesIO()
    image.save(buffer, "JXL", lossless=True)
    assert sniffed(buffer.getvalue()) == "JXL"
    assert np.array_equal(decode(buffer.getvalue(), 64), np.asarray(image))


def test_every_format_has_an_ending_of_its_own_and_a_type():
    assert len({one.ending for one in FORMATS.values()}) == len(FORMATS)
    assert all(
        one.media_type.count("/") == 1 and os.path.splitext(f"x{one.ending}")[1] == one.ending
        for one in FORMATS.values()
    )
