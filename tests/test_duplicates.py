"""Exact and near duplicates against brute force, the report, and leaks between splits."""

import dataclasses
import io
import json
import math
import os
import re
import subprocess
from collections import defaultdict
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw
from PIL import Image, ImageEnhance
from rich.console import Console

from dr_keras.data.catalog import Catalog
from dr_keras.data.splits import MONITOR, TRAIN, VALIDATION
from dr_keras.duplicates import fingerprints, report
from dr_keras.duplicates.find import Duplicates, find_duplicates
from dr_keras.duplicates.fingerprints import FREQUENCIES, HASHED_SIDE, LUMA, close_hashes, close_vectors, dct_hashes
from dr_keras.duplicates.grouping import join_groups
from dr_keras.duplicates.leaks import leaks_between
from dr_keras.duplicates.report import report_html, save_report
from dr_keras.runs import Run

UNPACK = Path(__file__).parent.parent.parent / "shared" / "bin" / "tiny-imagenet"


def find(folder, **options) -> Duplicates:
    return find_duplicates(folder, console=Console(file=io.StringIO()), **options)


def photo(seed: int, size: int = 64) -> Image.Image:
    """An image with the detail of a photo: noise at three scales."""
    random = np.random.default_rng(seed)
    image = np.full((size, size, 3), 128.0)
    for side, strength in ((4, 50), (12, 30), (32, 12)):
        noise = random.normal(0, strength, (side, side, 3))
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel].astype(np.float32))
            image[..., channel] += np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC))
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def save(image: Image.Image, file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)


def equal_files(root: Path) -> list[list[str]]:
    """The groups of files with the same bytes, by comparing every file with every other."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    contents = {file: file.read_bytes() for file in files}
    groups, done = [], set()
    for file in files:
        same = [other for other in files if other not in done and contents[other] == contents[file]]
        done.update(same)
        if len(same) > 1:
            groups.append(sorted(other.relative_to(root).as_posix() for other in same))
    return sorted(groups)


@pytest.mark.parametrize("seed", range(3))
def test_exact_groups_are_those_of_equal_bytes(tmp_path, seed):
    random = np.random.default_rng(seed)
    pool = [random.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(25)]  # all of equal length as BMP
    for number in range(60):
        place = tmp_path / random.choice(["train", "val"]) / random.choice(["a", "b", "c"])
        suffix = random.choice(["bmp", "png"])
        save(Image.fromarray(pool[random.integers(len(pool))]), place / f"{number}.{suffix}")
    found = find(tmp_path)
    assert found.exact == equal_files(tmp_path)
    assert 10 < len(found.exact) < 25
    assert found.images == 60

    def parts(group: list[str], which: int) -> int:
        return len({name.split("/")[which] for name in group})

    every = found.exact + found.near
    assert found.leaks == sorted(group for group in every if parts(group, 0) > 1)
    assert found.cross_class == sorted(group for group in every if parts(group, 1) > 1)


def test_copies_that_were_saved_again_resized_or_brightened_are_near(tmp_path):
    expected = []
    for seed in range(6):
        image, name = photo(seed, 96), f"a/{seed}"
        save(image, tmp_path / f"{name}.png")
        save(image, tmp_path / f"{name}-60.jpg", quality=60)
        save(image.resize((150, 130), Image.Resampling.BICUBIC), tmp_path / f"{name}-large.png")
        save(image.resize((48, 48), Image.Resampling.BICUBIC), tmp_path / f"{name}-small.png")
        save(ImageEnhance.Brightness(image).enhance(1.1), tmp_path / f"{name}-bright.png")
        save(image.convert("L"), tmp_path / f"{name}-gray.png")
        save(image.crop((1, 1, 95, 95)), tmp_path / f"{name}-crop.png")
        expected.append(sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(f"{name}[-.]*")))
    save(photo(100), tmp_path / "b" / "other.png")
    found = find(tmp_path)
    assert found.near == expected
    assert all(len(group) == 7 for group in expected)
    assert found.exact == found.cross_class == found.leaks == []


def test_different_pictures_of_a_class_are_not_near(tmp_path, folders):
    assert not find(folders).near
    random = np.random.default_rng(3)
    for number in range(30):
        for size in (32, 64):
            save(draw("rings", random, size), tmp_path / "rings" / f"{number}-{size}.png")
    assert not find(tmp_path).near


def test_flat_pictures_are_not_near(tmp_path):
    colors = ("white", "black", "red", "blue", (254, 254, 255), (120, 120, 120))
    for number, color in enumerate(colors):
        save(Image.new("RGB", (40, 40), color), tmp_path / f"{number}.png")
        save(Image.new("RGB", (40, 40), color), tmp_path / f"{number}.jpg", quality=70)
    save(Image.new("RGB", (40, 40), "red"), tmp_path / "again.png")
    found = find(tmp_path, embed=lambda images: np.ones((len(images), 2), np.float32) / math.sqrt(2), size=8)
    assert not found.near
    assert found.exact == [["2.png", "again.png"]]


def test_a_near_group_holds_the_exact_copies_too(tmp_path):
    save(photo(0), tmp_path / "train" / "a" / "1.png")
    save(photo(0), tmp_path / "val" / "b" / "1.png")
    save(photo(0), tmp_path / "train" / "a" / "2.jpg", quality=80)
    save(photo(1), tmp_path / "train" / "b" / "3.png")
    save(photo(1), tmp_path / "train" / "b" / "4.png")
    found = find(tmp_path)
    assert found.exact == [["train/a/1.png", "val/b/1.png"], ["train/b/3.png", "train/b/4.png"]]
    assert found.near == [["train/a/1.png", "train/a/2.jpg", "val/b/1.png"]]
    assert found.leaks == found.cross_class == sorted([found.exact[0], found.near[0]])


def test_hashes_are_those_of_the_definition():
    pixels = np.random.default_rng(0).integers(0, 256, (3, HASHED_SIDE, HASHED_SIDE, 3), np.uint8)
    pixels[2] = np.asarray(photo(2, HASHED_SIDE))
    for image, found in zip(pixels, dct_hashes(pixels), strict=True):
        gray = image.astype(np.float64) @ LUMA.astype(np.float64)
        values = []
        for u in range(FREQUENCIES):
            for v in range(FREQUENCIES):
                total = 0.0
                for y in range(HASHED_SIDE):
                    for x in range(HASHED_SIDE):
                        down = math.cos(math.pi * (2 * y + 1) * u / (2 * HASHED_SIDE))
                        total += gray[y, x] * down * math.cos(math.pi * (2 * x + 1) * v / (2 * HASHED_SIDE))
                scale = math.prod(math.sqrt((2 if frequency else 1) / HASHED_SIDE) for frequency in (u, v))
                values.append(scale * total)
        values = values[1:]
        bits = [value > sorted(values)[len(values) // 2] for value in values]
        assert np.unpackbits(found).tolist() == [*bits, False]


@pytest.mark.parametrize("radius", [0, 3, 6])
def test_close_hashes_are_those_of_the_double_loop(monkeypatch, radius):
    monkeypatch.setattr(fingerprints, "SEARCHED_QUERIES", 7)
    monkeypatch.setattr(fingerprints, "INDEXED_QUERIES", 30)
    random = np.random.default_rng(radius)
    bits = random.integers(0, 2, (100, 64), np.uint8)
    for row in range(40, 100):  # most are copies with up to eight bits flipped
        bits[row] = bits[random.integers(40)]
        bits[row, random.choice(64, random.integers(9), replace=False)] ^= 1
    expected = [(a, b) for a, b in combinations(range(100), 2) if (bits[a] != bits[b]).sum() <= radius]
    assert pairs(close_hashes(np.packbits(bits, axis=1), radius)) == expected
    assert len(expected) > 3


def test_close_vectors_are_those_of_the_double_loop(monkeypatch):
    monkeypatch.setattr(fingerprints, "SEARCHED_QUERIES", 8)
    monkeypatch.setattr(fingerprints, "INDEXED_QUERIES", 24)
    vectors = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = [(a, b) for a, b in combinations(range(90), 2) if np.linalg.norm(vectors[a] - vectors[b]) < 0.3]
    assert pairs(close_vectors(vectors, 0.3)) == expected
    assert len(expected) > 20


def pairs(parts) -> list[tuple[int, int]]:
    return sorted((int(a), int(b)) for rows, others in parts for a, b in zip(rows, others, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_connected_ones(seed):
    random = np.random.default_rng(seed)
    edges = random.integers(0, 60, (40, 2))
    group = np.arange(60)
    for part in np.split(edges, 4):
        join_groups(group, part[:, 0], part[:, 1])
    expected = list(range(60))
    for _ in range(60):
        for a, b in edges.tolist():
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert group.tolist() == expected


def test_an_embedding_finds_what_the_hash_does_not(tmp_path):
    """The embedding is the mean color, so a mirrored picture is at distance zero."""
    for seed in range(4):
        save(photo(seed), tmp_path / "train" / "a" / f"{seed}.png")
    save(photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT), tmp_path / "val" / "a" / "mirrored.png")
    save(photo(1), tmp_path / "train" / "a" / "again.jpg", quality=70)
    sizes = set()

    def embed(images: np.ndarray) -> np.ndarray:
        sizes.add(images.shape[1:])
        vectors = images.mean((1, 2)) - 128
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    again = ["train/a/1.png", "train/a/again.jpg"]
    mirrored = ["train/a/0.png", "val/a/mirrored.png"]
    assert find(tmp_path).near == [again]
    assert find(tmp_path, embed=embed, size=24, max_distance=0.05).near == [mirrored, again]
    assert find(tmp_path, embed=embed, size=24, max_distance=0.05).leaks == [mirrored]
    assert sizes == {(24, 24, 3)}
    with pytest.raises(ValueError, match="without size"):
        find(tmp_path, embed=embed)
    with pytest.raises(ValueError, match="expected one vector for each"):
        find(tmp_path, embed=lambda images: images[:1].mean((1, 2)), size=24)


def test_json_comes_back_as_it_was(tmp_path):
    save(photo(0), tmp_path / "a" / "日本 1.png")
    save(photo(0), Path(os.fsdecode(os.fsencode(tmp_path / "b") + b"/\xff.png")))
    save(photo(0), tmp_path / "b" / "3.webp", quality=80)
    found = find(tmp_path)
    assert found.exact == [["a/日本 1.png", "b/\udcff.png"]]
    result = found.to_dict()
    assert json.loads(json.dumps(result)) == result
    assert list(result)[:4] == ["exact", "near", "cross_class", "leaks"]
    assert result["cross_class"] == sorted(found.exact + found.near)
    assert len(found.near[0]) == 3
    save_report(found, tmp_path / "page.html")
    assert r"\udcff.png" in (tmp_path / "page.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Collects the tags of a page with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_its_pictures_and_loads_nothing(tmp_path):
    name = "val/b/<script>alert(1)</script>.png"
    save(photo(0, 300), tmp_path / "train" / "a & b" / "1.png")
    save(photo(0, 300), tmp_path / name)
    save(photo(0, 300), tmp_path / "train" / "b" / "'quoted\".jpg", quality=70)
    save_report(find(tmp_path), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    assert "http:" not in text
    assert "https:" not in text
    assert "//" not in re.sub(r"data:[^\"]*", "", text)
    sources = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 3 * (
        2 + 3
    )  # the exact pair and the near three: in their own lists, as leaks, and across classes
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in sources)
    assert all(len(attributes["src"]) < 20_000 for attributes in sources)
    assert f"b, validation: {name}" in {attributes["alt"] for attributes in sources}
    assert all(attributes["href"].startswith("#") for tag, attributes in page.tags if tag == "a")
    assert name in page.text
    assert "a & b" in page.text
    assert "'quoted\".jpg" in page.text
    (policy,) = (attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "prefers-color-scheme: dark" in text


def test_the_page_draws_the_first_groups_and_counts_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_GROUPS", 3)
    monkeypatch.setattr(report, "MAX_IMAGES", 4)
    for seed in range(5):
        for number in range(6 if seed == 0 else 2):
            save(photo(seed, 16), tmp_path / ("z" if (seed, number) == (0, 5) else "a") / f"{seed}-{number}.png")
    found = find(tmp_path)
    assert len(found.exact) == 5
    save_report(found, tmp_path / "page.html")
    page = Tags((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "5 groups" in page.text
    assert "and 2 more groups, not shown here" in page.text
    assert "and 2 more images, not shown here" in page.text
    drawn = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(drawn) == 4 + (4 + 2 + 2)
    assert "z: z/0-5.png" in drawn  # the one from the other class is among those drawn
    gone = dataclasses.replace(found, root=tmp_path / "moved")
    assert report_html(gone).count("cannot be read") == len(drawn)


@pytest.mark.parametrize("seed", range(3))
def test_leaks_between_are_those_of_comparing_all(tmp_path, seed):
    random = np.random.default_rng(seed)
    pool = random.integers(0, 256, (20, 6, 4, 3), np.uint8)
    pool[10:, 3] = pool[:10, 3]  # same middle, but different images
    pool[0] = 255
    chosen = random.integers(0, 20, 50)
    splits = random.choice([TRAIN, MONITOR, VALIDATION], 50).astype(np.uint8)
    pool[chosen].tofile(tmp_path / "pixels")
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=(50, 6, 4, 3))
    expected = []
    for row in range(50):
        same = [other for other in range(50) if (pixels[other] == pixels[row]).all()]
        if same[0] == row and len(set(splits[same].tolist())) > 1:
            expected.append(same)
    assert leaks_between(pixels, splits) == expected
    assert leaks_between(pixels, np.zeros(50, np.uint8)) == []
    assert leaks_between(pixels[:0], splits[:0]) == []


@pytest.mark.skipif(not os.access(UNPACK, os.X_OK), reason="needs the shared copy of Tiny ImageNet")
@pytest.mark.slow
def test_tiny_imagenet_holds_the_equal_files_that_a_count_finds():
    root = Path(subprocess.run([UNPACK], check=True, capture_output=True, text=True).stdout.strip())
    by_content = defaultdict(list)
    count = 0
    for here, _, names in os.walk(root):
        for name in names:
            if name.endswith(".JPEG"):
                path = Path(here, name)
                by_content[path.read_bytes()].append(path.relative_to(root).as_posix())
                count += 1
    expected = sorted(sorted(group) for group in by_content.values() if len(group) > 1)
    annotations = (line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines())
    classes = {f"val/images/{line[0]}": line[1] for line in annotations}

    def label(name: str) -> str:
        return classes[name] if name in classes else name.split("/")[1]

    found = find(root)
    assert found.images == count
    assert found.exact == expected
    assert expected
    across = [group for group in expected if len(set(map(label, group))) > 1]
    leaks = [group for group in expected if len({name.split("/")[0] for name in group}) > 1]
    assert across
    assert leaks
    assert [group for group in found.cross_class if group in expected] == across
    assert [group for group in found.leaks if group in expected] == leaks
    assert all(set(group) - set().union(*expected) for group in found.near)  # more than exact copies


def test_training_reports_leaks():
    pytest.importorskip("keras")
    from dr_keras.training.messages import print_data
    from dr_keras.training.run import _leaks

    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    pixels[5] = pixels[1]
    pixels[2] = pixels[0]  # both are training images
    ids = ("a/0.png", "a/1.png", "a/2.png", "b/3.png", "b/4.png", "val/5.png")
    splits = np.array([TRAIN, MONITOR, TRAIN, TRAIN, TRAIN, VALIDATION], np.uint8)
    labels = np.array([0, 0, 0, 1, 1, 1], np.int32)
    catalog = Catalog(Path("/data"), Path("/data"), ids, labels, ("a", "b"), ("a", "b"), splits)
    leaks = _leaks(catalog, pixels)
    assert leaks == [["a/1.png", "val/5.png"]]
    console = Console(record=True, width=500, file=io.StringIO())
    report = {"splits": {"train": 5}, "skipped_count": 0, "notes": [], "leaks": leaks}
    print_data(console, catalog, report, Run(Path("runs/x")))
    assert "1 pictures are both training and validation images, a/1.png and val/5.png first" in console.export_text()
