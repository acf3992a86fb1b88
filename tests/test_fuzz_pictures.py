"""Random garbage for the folder walker and the decoder: about a minute of it in make test-all."""

import contextlib
import io
import os
import stat
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from dr_keras.data.folders import Walker, passed_over
from dr_keras.data.formats import says_picture
from dr_keras.data.images import decode
from dr_keras.errors import ImageError

NOBODY = 65534
PICTURE = io.BytesIO()
Image.new("RGB", (3, 2), "red").save(PICTURE, "PNG")


def seeds():
    """A small picture in each format Pillow writes, with and without metadata, and at unusual bit depths."""
    random = np.random.default_rng(0)
    color = Image.fromarray(random.integers(0, 256, (19, 23, 3), np.uint8))
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "maker"
    made = [
        *((color, kind, {}) for kind in ("BMP", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS")),
        *((color, kind, {"exif": exif}) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")),
        (color, "JPEG", {"progressive": True, "comment": b"words"}),
        (color.convert("CMYK"), "JPEG", {}),
        (color.convert("P"), "GIF", {}),
        (color.convert("P"), "PNG", {"transparency": 3}),
        (color.convert("RGBA"), "WEBP", {"lossless": True}),
        (color.convert("1"), "TIFF", {"compression": "group4"}),
        (color, "TIFF", {"compression": "tiff_lzw"}),
        (color, "TIFF", {"compression": "jpeg"}),
        (Image.fromarray(random.random((19, 23), np.float32)), "TIFF", {}),
        (Image.fromarray(random.integers(0, 4096, (19, 23)).astype(np.uint16)), "PNG", {}),
        (Image.fromarray(random.integers(0, 65536, (19, 23)).astype(np.uint16)), "JPEG2000", {}),
    ]
    for image, kind, options in made:
        buffer = io.BytesIO()
        with contextlib.suppress(KeyError, UnidentifiedImageError, ValueError):  # older Pillow versions lack some
            image.save(buffer, kind, **options)
        if buffer.getvalue():
            yield buffer.getvalue()


SEEDS = list(seeds())
PLACE = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("set"), PLACE, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("cut"), PLACE, st.integers(1, 60)),
        st.tuples(st.just("end"), PLACE, st.just(0)),
        st.tuples(st.just("near the head"), PLACE, st.binary(min_size=1, max_size=4)),
    ),
    max_size=8,
)


def changed(data, changes):
    for what, share, value in changes:
        place = int(share * len(data))
        if what == "set":
            data = data[:place] + value + data[place + len(value) :]
        elif what == "near the head":
            place = int(share * min(len(data), 64))
            data = data[:place] + value + data[place + len(value) :]
        elif what == "insert":
            data = data[:place] + value + data[place:]
        elif what == "cut":
            data = data[:place] + data[place + value :]
        else:
            data = data[: place + 1]
    return data


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about bad metadata
@given(st.sampled_from(range(len(SEEDS))), CHANGES, st.sampled_from(["stretch", "crop", "pad"]))
@settings(max_examples=examples(4000), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_picture_is_decoded_or_refused(seed, changes, resize):
    data = changed(SEEDS[seed], changes)
    try:
        pixels = decode(data, 16, resize)
    except ImageError:
        return
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)


def test_the_seeds_are_whole():
    assert len(SEEDS) >= 20
    for data in SEEDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode(data, 16).shape == (16, 16, 3)


ODD = (
    b"a.png",
    b"b",
    b"c.txt",
    b".hidden.png",
    b"@eaDir",
    b"\xff\xfe.jpg",
    b"line\nbreak.png",
    b"-x.png",
    b"e\xcc\x81.png",
)
NAMES = st.one_of(
    st.sampled_from(ODD),
    st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b"..")),
)
LEAVES = st.one_of(
    st.sampled_from(["picture", "text", "empty", "pipe", "closed"]),
    st.tuples(
        st.sampled_from(["link", "hard"]),
        st.sampled_from(["", ".", "..", "../..", "a.png", "b", "../a.png", "/dev/zero", "x/b"]),
    ),
)
TREES = st.recursive(
    LEAVES,
    lambda inside: st.tuples(
        st.dictionaries(NAMES, inside, max_size=6), st.sampled_from([0o755, 0o755, 0o755, 0o111, 0o444, 0])
    ),
    max_leaves=25,
)


def build(place, tree, later):
    """Creates a tree; permissions are removed later."""
    if isinstance(tree, tuple) and isinstance(tree[0], dict):
        place.mkdir()
        for name, inside in tree[0].items():
            build(place / os.fsdecode(name), inside, later)
        later.append((place, tree[1]))
    elif isinstance(tree, tuple):
        kind, target = tree
        with contextlib.suppress(OSError):  # a dangling link, or a hard link to a folder
            if kind == "link":
                place.symlink_to(target or "nowhere")
            else:
                os.link(place.parent / (target or "a.png"), place)
    elif tree == "pipe":
        os.mkfifo(place)
    else:
        place.write_bytes(
            {"picture": PICTURE.getvalue(), "closed": PICTURE.getvalue(), "text": b"words", "empty": b""}[tree]
        )
        if tree == "closed":
            later.append((place, 0))


def plain_walk(folder, seen, found):
    """The pictures the walker should find, by a plain recursion."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for inside in Path(folder).iterdir():
        path, name = str(inside), inside.name
        if passed_over(name):
            continue
        with contextlib.suppress(OSError):
            if os.path.isdir(path):
                plain_walk(path, seen, found)
                continue
            status = os.lstat(path) if not os.path.exists(path) else os.stat(path)
            regular = stat.S_ISREG(status.st_mode)
            if says_picture(name) or (regular and Path(path).read_bytes() == PICTURE.getvalue()):
                found.add((status.st_dev, status.st_ino))


def place_of(file):
    """A file's identity; None in a folder that may be listed but not entered, where reading will fail."""
    try:
        status = os.stat(file) if os.path.exists(file) else os.lstat(file)
    except PermissionError:
        return None
    return status.st_dev, status.st_ino


@pytest.mark.nightly
@given(st.dictionaries(NAMES, TREES, max_size=8))
@settings(max_examples=examples(400), deadline=None, suppress_health_check=list(HealthCheck))
def test_every_tree_is_walked_through_and_each_picture_found_once(tree):
    with tempfile.TemporaryDirectory() as folder:
        root, later = Path(folder) / "over" / "root", []  # links may lead two levels up; keep them inside this test
        os.chmod(folder, 0o777)
        root.parent.mkdir()
        os.chmod(root.parent, 0o777)
        build(root, (tree, 0o755), later)
        for place, mode in later:
            os.chmod(place, mode)
        user = os.geteuid()
        os.seteuid(user or NOBODY)  # root can access every folder
        try:
            walker = Walker()
            files = walker.pictures(root)
            again = walker.again()
            wanted = set()
            plain_walk(str(root), set(), wanted)
            kept = [place for file in files if file not in again and (place := place_of(file))]
        finally:
            os.seteuid(user)
            for place, _ in reversed(later):
                os.chmod(place, 0o755)
        assert len(kept) == len(set(kept))
        assert set(kept) == wanted
        assert set(again.values()) <= set(files) - set(again)
        assert all(reason for _, reason in walker.troubles)
