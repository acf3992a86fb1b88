"""Pictures that a folder holds more than once: exact copies, near copies, and what they spoil.

- exact: files of equal content, by the SHA-256 of their bytes.
- near: files that show one picture: saved again, resized, brightened a little, cropped by a pixel. Candidates are found
  by a hash of 64 bits of the lowest frequencies (Zauner 2010, "Implementation and benchmarking of perceptual image hash
  functions") and confirmed by comparing the edges of small versions; a network's embeddings can find more.
- cross_class: groups of either kind whose pictures have different classes, so that one label is wrong.
- leaks: groups of either kind whose pictures lie in different splits, so that figures on held-out images are too good.
"""

import hashlib
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dr_keras.atomic_files import sha256_of
from dr_keras.data.catalog import Catalog, data_folder, load_catalog
from dr_keras.data.decoding import decode_files
from dr_keras.data.folders import Trouble, Walker
from dr_keras.data.splits import MONITOR, TRAIN, VALIDATION, Splits, meaning
from dr_keras.duplicates.fingerprints import (
    FLAT,
    FREQUENCIES,
    HASH_RADIUS,
    HASHED,
    HASHED_SIDE,
    LEAST_CORRELATION,
    LUMA,
    SEARCHED,
    THUMBNAIL_SIDE,
    Looks,
    close_hashes,
    close_vectors,
    dct_hashes,
    edge_correlation,
    thumbnails,
)
from dr_keras.errors import InputError
from dr_keras.progress import bar, stderr

# Euclidean distance of unit vectors, 0 to 2. In 15,000 training images the released network of Tiny ImageNet puts the
# nearest two different pictures 0.197 apart, and more images come nearer; copies brightened by a tenth are 0.12 apart.
MAX_DISTANCE = 0.15

DECODED_BYTES = 256 * 2**20  # pixels held at a time; fewer would start child processes too often
EMBEDDED = 512  # pictures given to the network between two steps of the progress bar
CONFIRMED = 4096  # candidate pairs compared at a time: 2 x 1440 differences each, 47 MB

Embed = Callable[[np.ndarray], np.ndarray]
Groups = list[list[str]]


@dataclass(frozen=True)
class Duplicates:
    """Groups of pictures that are copies of each other. A group is a sorted list of ids; groups are sorted.

    Attributes:
        exact: files of equal content.
        near: pictures that look the same, of at least two contents. Exact copies of a member are members as well, so
            that a group is all there is of one picture.
        cross_class: the groups of `exact` and `near` with members of different classes. Where exact copies have a near
            one as well, both groups are here; so too in `leaks`.
        leaks: the groups of `exact` and `near` with members in different splits.
        root: the folder that ids are relative to.
        images: how many pictures were compared.
        labels: the class of each id that has one.
        class_names: the name for people of each class that has another.
        splits: the split of each id that has one: train, validation or test.
        skipped: the reason for each id that could not be read, and each folder that could not be looked at.
    """

    exact: Groups
    near: Groups
    cross_class: Groups
    leaks: Groups
    root: Path
    images: int
    labels: dict[str, str]
    class_names: dict[str, str]
    splits: dict[str, str]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: exact, near, cross_class and leaks, each a list of lists of ids, and what was skipped."""
        return {
            "exact": self.exact,
            "near": self.near,
            "cross_class": self.cross_class,
            "leaks": self.leaks,
            "skipped": [{"id": name, "reason": reason} for name, reason in self.skipped.items()],
        }


def find_duplicates(
    folder: str | os.PathLike[str],
    *,
    embed: Embed | None = None,
    size: int | None = None,
    resize: str = "stretch",
    max_distance: float = MAX_DISTANCE,
    console: Console | None = None,
) -> Duplicates:
    """Finds the exact and near copies among all pictures of a folder.

    Classes and splits are those of `load_catalog`, with the monitor images as training images. Images that the data set
    does not list (those in its test/ folder, for one) are compared as well; their split is that of the top-level
    folder, their class that of the folder below it, as far as either is known. A folder without class folders is a heap
    of pictures. A flat picture has exact copies only: nothing else tells it from another one.

    Args:
        folder: a folder with images at any depth, or whatever else `load_catalog` takes; of a manifest, only the images
            that it lists are compared.
        embed: (n, size, size, 3) uint8 -> (n, D) float32 of unit length. Its pairs join those of the hash in `near`.
        size, resize: how images are decoded for `embed`, see `dr_keras.data.images.decode`.
        max_distance: the largest Euclidean distance of two vectors of `embed` that makes a pair. What it should be
            depends on the network: one that was trained with these images draws different ones of a class together.
        console: shows the progress; standard error by default.

    Raises:
        InputError: there is no such folder, or it holds no images.
    """
    if embed and not size:
        raise ValueError("embed is given without size; give the pixels a side of the images that it takes")
    console = console or stderr()
    pictures = _list_pictures(folder, console)
    files = [os.path.join(pictures.root, name) for name in pictures.ids]

    content, reasons = _contents(files, console)  # one file stands for all of its content from here on
    rows = np.flatnonzero(content == np.arange(len(files)))
    looks, failures = _look([files[row] for row in rows], console)
    reasons |= {int(rows[place]): reason for place, reason in failures.items()}
    usable = np.setdiff1d(np.arange(len(rows)), np.fromiter(failures, np.int64))
    group = np.arange(len(rows))  # the first row of each row's group
    clear = usable[~looks.flat[usable]]
    _join_by_hash(group, looks, clear, console)
    if embed and size:
        _join_by_embedding(group, [files[row] for row in rows], clear, embed, size, resize, max_distance, console)

    copies: dict[int, list[str]] = defaultdict(list)
    skipped = {}
    unlisted = {name: f"could not be looked at: {reason}" for name, reason in pictures.unlisted}
    for row, first in enumerate(content.tolist()):
        if row in reasons or first in reasons:
            skipped[pictures.ids[row]] = reasons.get(row) or reasons[first]
        else:
            copies[first].append(pictures.ids[row])
    alike: dict[int, list[int]] = defaultdict(list)
    for place in usable.tolist():
        alike[int(group[place])].append(int(rows[place]))
    exact = _sorted(copies.values())
    near = _sorted([name for row in members for name in copies[row]] for members in alike.values() if len(members) > 1)
    return Duplicates(
        exact=exact,
        near=near,
        cross_class=_mixed(exact + near, pictures.labels),
        leaks=_mixed(exact + near, pictures.splits),
        root=pictures.root,
        images=len(files) - len(skipped),
        labels=pictures.labels,
        class_names=pictures.class_names,
        splits=pictures.splits,
        skipped=skipped | unlisted,
    )


def leaks_between(pixels: np.ndarray, splits: np.ndarray) -> list[list[int]]:
    """The groups of images with identical pixels that lie in more than one split: cheap enough for every training.

    Args:
        pixels: (N, H, W, 3) uint8; may be memory-mapped.
        splits: (N,) numbers. Different ones are different splits, `TRAIN` and `MONITOR` too.

    Returns:
        Sorted row numbers of each group; groups by their first row.
    """
    middle = np.ascontiguousarray(pixels[:, pixels.shape[1] // 2])  # the line that a frame or a sky fills least
    sums = np.fromiter((zlib.crc32(line) for line in middle), np.uint32, len(middle))
    order = np.argsort(sums, kind="stable")
    groups = []
    for rows in np.split(order, np.flatnonzero(np.diff(sums[order])) + 1):
        if len(rows) < 2 or (splits[rows] == splits[rows[0]]).all():
            continue
        same: dict[bytes, list[int]] = defaultdict(list)
        for row in rows.tolist():
            same[hashlib.sha256(pixels[row].tobytes()).digest()].append(row)
        groups += [found for found in same.values() if len({int(split) for split in splits[found]}) > 1]
    return sorted(groups)


@dataclass(frozen=True)
class _Pictures:
    """All pictures of a folder, each file once; the attributes as in `Duplicates`."""

    root: Path
    ids: list[str]
    labels: dict[str, str]
    class_names: dict[str, str]
    splits: dict[str, str]
    unlisted: Sequence[Trouble] = ()


def _list_pictures(folder: str | os.PathLike[str], console: Console) -> _Pictures:
    catalog = None
    try:
        catalog = load_catalog(folder, monitor=0, validation=0, seed=0, console=console)
        root = catalog.root
    except InputError:
        root = Path(os.path.expanduser(folder))
        if not root.is_dir():
            raise
        root = root.resolve()
    if catalog and catalog.source != root:  # a manifest
        splits = {TRAIN: "train", MONITOR: "train", VALIDATION: "validation"}
        return _Pictures(
            root,
            _each_once(root, catalog.ids),
            _labels(catalog),
            dict(zip(catalog.classes, catalog.class_names, strict=True)),
            {name: splits[split] for name, split in zip(catalog.ids, catalog.splits.tolist(), strict=True)},
        )
    labels = _labels(catalog) if catalog else {}
    walker = Walker()
    own = str(root).rstrip(os.sep) + os.sep
    below = [file.removeprefix(own).replace(os.sep, "/") for file in walker.pictures(root)]
    ids = _each_once(root, [*(catalog.ids if catalog else ()), *below])
    if not ids:
        raise InputError(f"{root} holds no images; give a folder that does")
    place, splits_of_folder = _split_folders(root)
    parts = {name: name.removeprefix(place).split("/") for name in ids}
    if catalog and splits_of_folder:
        labels = _labels_by_folder(parts, set(catalog.classes)) | labels
    kinds = {name: _kind(part[0], splits_of_folder, alone=not catalog) for name, part in parts.items() if len(part) > 1}
    return _Pictures(
        root,
        ids,
        labels,
        dict(zip(catalog.classes, catalog.class_names, strict=True)) if catalog else {},
        {name: kind for name, kind in kinds.items() if kind},
        walker.troubles,
    )


def _labels(catalog: Catalog) -> dict[str, str]:
    return {name: catalog.classes[label] for name, label in zip(catalog.ids, catalog.labels.tolist(), strict=True)}


def _each_once(root: Path, ids: Iterable[str]) -> list[str]:
    """The ids, without those by which a file comes again, through links or another path."""
    seen: set[tuple[int, int]] = set()
    kept = {}
    for name in ids:
        if name in kept:
            continue
        try:
            status = os.stat(os.path.join(root, name))
        except OSError:
            kept[name] = True  # reading it will say so
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            kept[name] = True
    return list(kept)


def _split_folders(root: Path) -> tuple[str, Splits | None]:
    """What stands in ids before the folders of splits or classes, and which of them are splits."""
    try:
        place, splits = data_folder(root)
    except InputError:  # they can be read in two ways; for training that has to be told
        return "", None
    return "" if place == root else f"{place.relative_to(root).as_posix()}/", splits


def _kind(folder: str, splits: Splits | None, *, alone: bool) -> str | None:
    """The split of a top-level folder: train, validation or test.

    Args:
        folder: its name.
        splits: those of the data set.
        alone: whether the folder is no data set that can be trained on, so that names are all there is.
    """
    if splits:
        kind = splits.kind(folder)
    else:
        known = meaning(folder) if alone else None
        kind = known[0] if known and not known[1] else None
    return None if kind == "unlabeled" else kind


def _labels_by_folder(parts: dict[str, list[str]], classes: set[str]) -> dict[str, str]:
    """Classes by SPLIT/CLASS/..., of the splits in which one of `classes` is such a folder; test/images is no class."""
    folders = {name: (part[0], part[1]) for name, part in parts.items() if len(part) > 2}
    with_classes = {split for split, label in folders.values() if label in classes}
    return {name: label for name, (split, label) in folders.items() if split in with_classes}


def _contents(files: Sequence[str], console: Console) -> tuple[np.ndarray, dict[int, str]]:
    """The first row with each row's content, (N,) int64, -1 where there is none; the reason for each row without."""
    sizes: list[int] = []
    reasons: dict[int, str] = {}
    for row, file in enumerate(files):
        try:
            sizes.append(os.stat(file).st_size)
        except OSError as error:
            sizes.append(-1)
            reasons[row] = f"cannot be read: {error.strerror or error}"
    counts = Counter(sizes)
    content = np.arange(len(files))
    content[list(reasons)] = -1
    shared = [row for row, size in enumerate(sizes) if size >= 0 and counts[size] > 1]
    first: dict[bytes, int] = {}
    with bar("comparing files", len(shared), console) as advance:
        for row in shared:
            try:
                content[row] = first.setdefault(sha256_of(files[row]), row)
            except OSError as error:
                content[row] = -1
                reasons[row] = f"cannot be read: {error.strerror or error}"
            advance(1)
    return content, reasons


def _look(files: Sequence[str], console: Console) -> tuple[Looks, dict[int, str]]:
    """What `files` are compared by, unspecified where one failed, and the reason for each row that failed."""
    looks = Looks(
        np.empty((len(files), FREQUENCIES**2 // 8), np.uint8),
        np.empty((len(files), THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint16),
        np.empty(len(files), bool),
    )
    failures: dict[int, str] = {}
    with bar("reading images", len(files), console) as advance:
        for start, pixels, failed in _decoded(files, HASHED_SIDE, "stretch", advance):
            failures |= failed
            for part in range(0, len(pixels), HASHED):
                images = pixels[part : part + HASHED]
                rows = slice(start + part, start + part + len(images))
                looks.hashes[rows] = dct_hashes(images)
                looks.thumbnails[rows] = thumbnails(images)
                looks.flat[rows] = (images.astype(np.float32) @ LUMA).std(axis=(1, 2)) < FLAT
    return looks, failures


def _decoded(
    files: Sequence[str], size: int, resize: str, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """Decodes files a part at a time: its first row, its (n, size, size, 3) uint8 pixels, the reasons by row."""
    part = max(1, DECODED_BYTES // (3 * size * size))
    for start in range(0, len(files), part):
        pixels, failures = decode_files(files[start : start + part], size, resize, advance=advance)
        yield start, pixels, {start + row: reason for row, reason in failures.items()}


def _join(group: np.ndarray, rows: np.ndarray, others: np.ndarray) -> None:
    """Makes one group of each pair's two groups, in place.

    Args:
        group: (N,) int64, the first row of each row's group.
        rows, others: (n,) int64.
    """
    while True:
        left, right = group[rows], group[others]
        apart = left != right
        if not apart.any():
            return
        rows, others = rows[apart], others[apart]
        low, high = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
        np.minimum.at(group, high, low)
        while (further := group[group]).tobytes() != group.tobytes():
            group[:] = further


def _join_by_hash(group: np.ndarray, looks: Looks, rows: np.ndarray, console: Console) -> None:
    with bar("looking for near copies", len(rows), console) as advance:
        for one, other in close_hashes(looks.hashes[rows], HASH_RADIUS):
            left, right = rows[one], rows[other]
            apart = group[left] != group[right]  # of a thousand copies, few of their million pairs are compared
            left, right = left[apart], right[apart]
            for start in range(0, len(left), CONFIRMED):
                part = slice(start, start + CONFIRMED)
                same = edge_correlation(looks.thumbnails, left[part], right[part]) >= LEAST_CORRELATION
                _join(group, left[part][same], right[part][same])
            advance(SEARCHED)


def _join_by_embedding(
    group: np.ndarray,
    files: Sequence[str],
    rows: np.ndarray,
    embed: Embed,
    size: int,
    resize: str,
    max_distance: float,
    console: Console,
) -> None:
    parts, kept = [], []
    with bar("embedding images", len(rows), console) as advance:
        for start, pixels, failures in _decoded([files[row] for row in rows], size, resize):
            for place in range(0, len(pixels), EMBEDDED):
                images = pixels[place : place + EMBEDDED]
                vectors = np.asarray(embed(images), np.float32)
                if vectors.ndim != 2 or len(vectors) != len(images):
                    raise ValueError(f"embed made {vectors.shape} of {len(images)} images; expected one vector each")
                parts.append(vectors)
                advance(len(images))
            kept += [row for row in range(start, start + len(pixels)) if row not in failures]  # files can go meanwhile
    if not kept:
        return
    rows, vectors = rows[kept], np.concatenate(parts)[kept]
    with bar("comparing embeddings", len(rows), console) as advance:
        for one, other in close_vectors(vectors, max_distance):
            _join(group, rows[one], rows[other])
            advance(SEARCHED)


def _sorted(groups: Iterable[list[str]]) -> Groups:
    return sorted(sorted(members) for members in groups if len(members) > 1)


def _mixed(groups: Groups, kinds: dict[str, str]) -> Groups:
    """The groups with members of two kinds, as far as they are known."""
    return sorted(members for members in groups if len({kinds[name] for name in members if name in kinds}) > 1)
