"""Pictures as cameras, scanners and damaged disks produce them: broken metadata, any depth, any shape, any size."""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dr_keras.data.images import MAX_PIXELS, decode, read
from dr_keras.errors import ImageError

ROOT = Path(__file__).parent.parent


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height=48, width=64, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


# Metadata


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks):
    png = encoded(noise(), "PNG")
    place = png.index(b"IDAT") - 4
    return png[:place] + b"".join(chunks) + png[place:]


BAD_TIFF = b"\0\x08\0\x02\x01\x12\0\x03" + bytes(8)
PNGS = {
    "eXIf": png_with(chunk(b"eXIf", BAD_TIFF)),
    "eXIf cut off": png_with(chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff")),
    "raw profile": png_with(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzzzz\n")),
    "iCCP": png_with(chunk(b"iCCP", b"profile\0\0no zlib stream")),
    "zTXt": png_with(chunk(b"zTXt", b"Comment\0\0no zlib stream")),
    "zTXt bomb": png_with(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(4 * 2**20)))),
    "iTXt": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\7\0\0broken")),
    "pHYs": png_with(chunk(b"pHYs", b"\0")),
    "gAMA": png_with(chunk(b"gAMA", b"")),
    "cHRM": png_with(chunk(b"cHRM", b"\0\0\0")),
    "sRGB": png_with(chunk(b"sRGB", b"")),
    "acTL": png_with(chunk(b"acTL", b"\0")),
}


@pytest.mark.parametrize("name", PNGS)
def test_damaged_png_metadata_does_not_cost_the_picture(name):
    assert np.array_equal(np.asarray(read(PNGS[name])), np.asarray(noise()))


def exif_with_orientation(*more):
    """EXIF that rotates the picture, with additional raw 12-byte entries."""
    entries = [struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), *more]
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + struct.pack("<Iii", 0, -1, 0)


JPEGS = {
    "XResolution": exif_with_orientation(struct.pack("<HHII", 0x11A, 10, 1, 8 + 2 + 24 + 4)),
    "an entry far outside": exif_with_orientation(struct.pack("<HHII", 0x10F, 2, 99, 2**31)),
    "an unknown type": exif_with_orientation(struct.pack("<HHII", 0x10F, 99, 1, 0)),
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged metadata
def test_a_jpeg_is_rotated_even_if_other_metadata_is_damaged(name):
    exif = JPEGS[name]
    plain = encoded(noise(), "JPEG")
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    turned = np.asarray(Image.open(io.BytesIO(plain)).transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(np.asarray(read(data)), turned)


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE1, b"Exif\0\0" + BAD_TIFF),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='x'"),
        (0xE2, b"ICC_PROFILE\0\1\1nothing"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0" + BAD_TIFF),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\2\0\0\0\0\0\0\0"),
        (0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x10"),
        (0xED, b"Photoshop 3.0\08BIM"),
        (0xEE, b"Adobe"),
        (0xE0, b"JFIF\0"),
        (0xFE, b"\xff\xfe broken comment"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_jpeg_segments_do_not_cost_the_picture(marker, content):
    plain = encoded(noise(), "JPEG")
    data = plain[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content + plain[2:]
    assert np.array_equal(np.asarray(read(data)), np.asarray(read(plain)))


@pytest.mark.parametrize("exif", [b"Exif\0\0" + BAD_TIFF, b"", b"II*\0\xff\xff\xff\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_webp_exif_does_not_cost_the_picture(exif):
    plain = encoded(noise(), "WEBP", quality=90)
    assert np.array_equal(np.asarray(read(encoded(noise(), "WEBP", quality=90, exif=exif))), np.asarray(read(plain)))


def test_damaged_tiff_exif_does_not_cost_the_picture():
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[0x112], directory[0x8769] = 6, 2**31
    directory.tagtype[0x8769] = 4
    data = encoded(noise(), "TIFF", tiffinfo=directory)
    turned = np.asarray(noise().transpose(Image.Transpose.ROTATE_270))
    assert np.asarray(read(data)).shape in (turned.shape, np.asarray(noise()).shape)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[0x112] = 6
    for compression in (None, "tiff_lzw"):
        turned_file = encoded(noise(), "TIFF", tiffinfo=directory, compression=compression)
        assert np.array_equal(np.asarray(read(turned_file)), turned)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(noise(), kind, exif=exif, **options)
    from PIL import ImageOps

    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(read(data)), np.asarray(wanted))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_removing_metadata_does_not_rescue_truncated_pixels(kind):
    data = encoded(noise(), kind, exif=b"Exif\0\0" + BAD_TIFF)
    with pytest.raises(ImageError):
        read(data[: len(data) * 2 // 3])


# Depth

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def is_ramp(pixels):
    """Whether the pixels rise from dark to light in many steps."""
    gray = pixels[:, :, 0].astype(int)
    return bool((np.diff(gray.reshape(-1)) >= 0).all() and np.ptp(gray) > 200 and len(np.unique(gray)) > 32)


@pytest.mark.parametrize("scale", [1.0, 255.0, 4095.0, 65535.0])
def test_a_ramp_in_floating_point_stays_a_ramp(scale):
    for image in (Image.fromarray((RAMP * scale).astype(np.float32)),):
        assert is_ramp(decode(encoded(image, "TIFF"), 64))
        assert is_ramp(decode(image, 64))


@pytest.mark.parametrize("top", [15, 255, 4095, 65535, 2**24 - 1, 2**31 - 1])
def test_a_ramp_in_32_bits_stays_a_ramp(top):
    pixels = decode(encoded(Image.fromarray((RAMP * top).astype(np.int32)), "TIFF"), 64)
    assert pixels.max() == 255
    assert len(np.unique(pixels)) == min(256, top + 1)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_fewer_bits_in_16_stay_a_ramp(kind, top):
    gray = decode(encoded(Image.fromarray((RAMP * top).astype(np.uint16)), kind), 64)[:, :, 0]
    assert (np.diff(gray.reshape(-1).astype(int)) >= 0).all()
    assert gray.max() >= 63  # 10 bits are read as 12, and 14 as 16
    assert len(np.unique(gray)) >= 64


def test_a_mask_of_zeros_and_ones_is_black_and_white():
    mask = (RAMP > 0.5).astype(np.uint16)
    assert np.unique(decode(encoded(Image.fromarray(mask), "PNG"), 64)).tolist() == [0, 255]


def test_the_depth_that_a_format_declares_counts():
    dark = (RAMP * 3000).astype(">u2")
    pgm = b"P5\n64 64\n65535\n" + dark.tobytes()
    assert decode(pgm, 64).max() == 3000 // 257
    assert decode(b"P5\n64 64\n4095\n" + dark.tobytes(), 64).max() == pytest.approx(3000 / 4095 * 255, abs=1.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((RAMP * 3).astype(np.float32), "which fit no known depth"),
        ((RAMP * 1e6).astype(np.float32), "which fit no known depth"),
        ((RAMP * 1e-3).astype(np.float32), "which fit no known depth"),
        ((RAMP * 2 - 1).astype(np.float32), "black and white are unknown"),
        ((RAMP * 2000 - 1000).astype(np.int32), "black and white are unknown"),
        (np.where(RAMP > 0.9, np.nan, RAMP).astype(np.float32), "not finite numbers"),
    ],
)
def test_an_ambiguous_depth_is_refused(values, message):
    with pytest.raises(ImageError, match=message):
        decode(encoded(Image.fromarray(values), "TIFF"), 64)


def test_black_stays_black():
    for kind in (np.uint16, np.int32, np.float32):
        assert decode(encoded(Image.fromarray(np.zeros((8, 8), kind)), "TIFF"), 8).max() == 0


def deep_png(top):
    """A PNG with 16 bits per channel, which Pillow does not write: a ramp up to `top`."""
    values = (np.stack([RAMP] * 3, axis=2) * top).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colors_of_16_bits_are_scaled_or_refused_and_never_nearly_black():
    assert is_ramp(decode(deep_png(65535), 64))
    with pytest.raises(ImageError, match="16 bits per channel, but uses only the lower 12"):
        decode(deep_png(4095), 64)


# Shape and size


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (2, 9000), (9000, 3), (1, 129), (65, 64)])
def test_pictures_of_any_proportion_keep_a_line_of_themselves(resize, shape):
    black = Image.new("RGB", shape)
    for source in (black, encoded(black, "PNG"), encoded(black, "JPEG")):
        pixels = decode(source, 64, resize)
        assert pixels.shape == (64, 64, 3)
        assert (pixels < 64).any(axis=(1, 2)).any()


def test_process_wide_settings_do_not_change():
    """Neither Pillow's limit, its formats, nor the warning filters."""
    code = (
        "import sys, warnings\n"
        "import numpy\n"  # adds warning filters of its own
        "from PIL import Image\n"
        "before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters), set(sys.modules))\n"
        "import dr_keras, dr_keras.data.images, dr_keras.search_model, dr_keras.index.index\n"
        "assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before[:2]\n"
        "assert not {'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
        "Image.MAX_IMAGE_PIXELS = 100\n"
        "print(dr_keras.data.images.decode(sys.argv[1], 8).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(ROOT / "docs" / "images" / "demo.png")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == "(8, 8, 3)\n", done.stderr


def test_a_file_of_gigabytes_is_opened_and_hashed_in_little_memory(tmp_path):
    """A sparse file: a small TIFF followed by 6 GB."""
    file = tmp_path / "large.tif"
    file.write_bytes(encoded(noise(), "TIFF"))
    os.truncate(file, 6 * 2**30)
    code = (
        "import resource, sys\n"
        "from dr_keras.data.images import decode\n"
        "from dr_keras.atomic_files import sha256_of\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "decode(sys.argv[1], 32)\n"
        "import os; os.truncate(sys.argv[1], 512 * 2**20)\n"
        "sha256_of(sys.argv[1])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64  # MiB


def test_more_pixels_than_are_decoded_are_refused_before_they_are():
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError, match=f"at most {MAX_PIXELS:,} are decoded"):
        decode(bomb, 8)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket"])
def test_special_files_never_block(tmp_path, kind):
    path = tmp_path / "x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    said = []

    def ask():
        with pytest.raises(ImageError) as error:
            decode(path, 8)
        said.append(str(error.value))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(20)
    assert said
    assert said[0].startswith("cannot be read: ")
