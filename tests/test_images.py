import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dr_keras.data import images
from dr_keras.data.images import decode
from dr_keras.errors import ImageError

RED = (250, 10, 20)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats(kind):
    pixels = decode(encode(Image.new("RGB", (40, 30), RED), kind), 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - RED).max() <= 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_modes_become_rgb(mode):
    gray = Image.new("RGB", (8, 8), (128, 128, 128))
    wide = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    image = {"P": gray.quantize(4), "LA": gray.convert("L").convert("LA"), "I;16": wide, "I": wide.convert("I")}.get(
        mode
    )
    pixels = decode(image or gray.convert(mode), 8)
    assert pixels.shape == (8, 8, 3)
    if mode != "1":  # dithered
        assert np.abs(pixels.astype(int) - 128).max() <= 2


def test_sixteen_bit_file_is_scaled_not_clipped():
    gray = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    assert decode(encode(Image.fromarray(gray), "PNG"), 2)[:, :, 0].tolist() == [[0, 100], [200, 255]]


def test_transparency_is_laid_over_white():
    assert decode(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"), 4).min() == 255


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))  # upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated 90 degrees: the top is shown on the right
    pixels = decode(encode(image, "JPEG", exif=exif, quality=95), 16)
    assert pixels[:, 12:].min() > 200
    assert pixels[:, :4].max() < 50


def test_same_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    assert np.array_equal(decode(encode(Image.fromarray(pixels), "PNG"), 12), pixels)


def test_path_bytes_and_picture_decode_alike(tmp_path):
    data = encode(Image.effect_mandelbrot((90, 70), (-3, -2.5, 2, 2.5), 50).convert("RGB"), "JPEG")
    (tmp_path / "x.jpg").write_bytes(data)
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        expected = decode(data, 32)
        assert np.array_equal(decode(tmp_path / "x.jpg", 32), expected)
        assert np.array_equal(decode(picture, 32), expected)


def test_a_large_jpeg_as_a_picture_is_nearly_the_same(tmp_path):
    Image.effect_mandelbrot((1200, 900), (-3, -2.5, 2, 2.5), 50).convert("RGB").save(tmp_path / "x.jpg", quality=92)
    with Image.open(tmp_path / "x.jpg") as picture:
        whole = decode(picture, 64).astype(int)
    assert np.abs(decode(tmp_path / "x.jpg", 64) - whole).max() <= 3


def test_a_truncated_picture_is_an_image_error():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, "JPEG")
    with Image.open(io.BytesIO(data[: len(data) // 2])) as picture:  # not decoded yet
        with pytest.raises(ImageError, match="cannot be decoded"):
            decode(picture, 16)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"not an image at all", "not an image"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image|decoded")],
)
def test_rubbish_is_refused_with_a_reason(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data, 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode(data[: len(data) // 2], 16)


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        decode(tmp_path / "absent.jpg", 16)
    with pytest.raises(ImageError, match="directory"):
        decode(tmp_path, 16)


def test_pixel_limit_comes_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match=r"10 x 10 pixels.*99"):
        decode(encode(Image.new("RGB", (10, 10)), "PNG"), 4)


def test_a_picture_of_a_hundred_million_pixels():
    data = encode(Image.new("1", (10_000, 10_000), 1), "PNG")
    assert decode(data, 8).min() == 255


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM", b"II*\0"]),
)
def test_any_bytes_decode_or_raise_image_error(data, head):
    try:
        shape = decode(head + data, 8).shape
    except ImageError:
        return  # other errors fail the test
    assert shape == (8, 8, 3)


def test_resize_keeps_or_changes_proportions():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20, 0] = wide[:, 20:40, 1] = wide[:, 40:, 2] = 255  # a red, a green and a blue square
    data = encode(Image.fromarray(wide), "PNG")
    crop = decode(data, 20, "crop")
    assert np.array_equal(crop, wide[:, 20:40])
    pad = decode(data, 60, "pad")
    assert np.array_equal(pad[20:40], wide)
    assert (pad[:20] == 128).all()
    assert (pad[40:] == 128).all()
    stretch = decode(data, 30, "stretch")
    assert stretch[15, 3].tolist() == [255, 0, 0]
    assert stretch[15, 26].tolist() == [0, 0, 255]


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (16, 16), (17, 15)])
def test_any_shape_becomes_a_square(size, resize):
    assert decode(encode(Image.new("RGB", size, RED), "PNG"), 16, resize).shape == (16, 16, 3)
