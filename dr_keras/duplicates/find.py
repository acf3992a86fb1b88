"""Finds images that a folder contains more than once: exact copies, near-duplicates, and the problems they cause.

- exact: files with equal content, by the SHA-256 of their bytes.
- near: files that show the same image: re-encoded, resized, brightened a little, cropped by a pixel. Candidates are
  found by a 64-bit hash of the lowest frequencies (Zauner 2010, "Implementation and benchmarking of perceptual image
  hash functions") and confirmed by comparing the edges of thumbnails; a network's embeddings can find more.
- cross_class: exact or near groups whose images have different classes, so at least one label is wrong.
- leaks: exact or near groups whose images are in different splits, so metrics on held-out images are too optimistic.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dr_keras.data.image_ids import image_path
from dr_keras.duplicates.collection import Collection, list_collection
from dr_keras.duplicates.fingerprints import Fingerprints
from dr_keras.duplicates.grouping import (
    Embed,
    EmbeddingSearch,
    EmbedFiles,
    compute_fingerprints,
    compute_vectors,
    group_by_content,
    join_by_embedding,
    join_by_fingerprints,
)
from dr_keras.progress import stderr

# Euclidean distance of unit vectors, 0 to 2. Among 15,000 training images, the released Tiny ImageNet network puts the
# two nearest different images 0.197 apart (less among more images); copies brightened by a tenth are 0.12 apart.
MAX_DISTANCE = 0.15

Groups = list[list[str]]
FingerprintFiles = Callable[[Sequence[str]], tuple[Fingerprints, dict[int, str]]]
"""Takes N paths, and returns their fingerprints and why others could not be read, by row."""


@dataclass(frozen=True)
class Elsewhere:
    """What reads images in the place of this process.

    Attributes:
        fingerprints: Computes fingerprints.
        vectors: Embeds files, to compare their embeddings too; or None.
    """

    fingerprints: FingerprintFiles
    vectors: EmbedFiles | None = None


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that are copies of each other. A group is a sorted list of ids; groups are sorted.

    Attributes:
        exact: Files with equal content.
        near: Images that look the same, with at least two different contents. Exact copies of a member are members,
            too, so a group has all copies of an image.
        cross_class: The groups of `exact` and `near` with members of different classes. If exact copies also have a
            near-duplicate, both groups are listed; likewise in `leaks`.
        leaks: The groups of `exact` and `near` with members in different splits.
        root: The folder that ids are relative to.
        images: How many images were compared.
        labels: The class of each id that has one.
        class_names: The display name of each class that has one.
        splits: The split of each id that has one: train, validation or test.
        skipped: The reason for each id that could not be read, and for each folder that could not be accessed.
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
        """Returns, for JSON, exact, near, cross_class and leaks, each a list of lists of ids, and what was skipped."""
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
    elsewhere: Elsewhere | None = None,
    console: Console | None = None,
) -> Duplicates:
    """Finds the exact copies and near-duplicates among all images of a folder.

    Classes and splits are those of `load_catalog`, with the monitor images as training images. Images that the data set
    does not list, such as those in its test/ folder, are compared as well: their split is that of the top-level folder
    and their class that of the folder below it, if known. A folder without class folders is a plain collection of
    images. A uniform image can only have exact copies: nothing else distinguishes it from other uniform images.

    Args:
        folder: A folder with images at any depth, or anything else that `load_catalog` accepts; for a manifest, only
            the images that it lists are compared.
        embed: (n, size, size, 3) uint8 -> (n, D) float32 of unit length. Its pairs are added to those of the hash in
            `near`.
        size, resize: How images are decoded for `embed`, see `dr_keras.data.images.decode`.
        max_distance: The largest Euclidean distance between the vectors of a pair. The right value depends on the
            network: one that was trained on these images pulls different images of a class together.
        elsewhere: Reads the images in the place of this process; then `embed` is not needed.
        console: Shows progress; standard error by default.

    Returns:
        The groups found.

    Raises:
        InputError: There is no such folder, or it contains no images.
    """
    console = console or stderr()
    fingerprints = elsewhere.fingerprints if elsewhere else partial(compute_fingerprints, console=console)
    vectors = elsewhere.vectors if elsewhere else None
    if embed and not vectors:
        if not size:
            raise ValueError("embed is given without size; give the side in pixels of the images that it takes")
        vectors = partial(compute_vectors, embed=embed, size=size, resize=resize, console=console)
    search = EmbeddingSearch(vectors, max_distance) if vectors else None
    collection = list_collection(folder, console)
    files = [image_path(id, collection.root) for id in collection.ids]
    content, reasons = group_by_content(files, console)
    alike, unreadable = _similar_rows(files, content, fingerprints, search, console)
    return _duplicates(collection, content, alike, reasons | unreadable)


def _duplicates(
    collection: Collection, content: np.ndarray, alike: list[list[int]], reasons: dict[int, str]
) -> Duplicates:
    """Converts groups of rows to groups of ids.

    Args:
        collection: N images.
        content: (N,) int64, for each row the first row with the same content.
        alike: Groups of rows that look the same, with one row per content.
        reasons: Why a row could not be read.
    """
    copies: dict[int, list[str]] = defaultdict(list)
    skipped = {}
    for row, first in enumerate(content.tolist()):
        if row in reasons or first in reasons:
            skipped[collection.ids[row]] = reasons.get(row) or reasons[first]
        else:
            copies[first].append(collection.ids[row])
    exact = _sorted(copies.values())
    near = _sorted([id for row in members for id in copies[row]] for members in alike if len(members) > 1)
    return Duplicates(
        exact=exact,
        near=near,
        cross_class=_mixed(exact + near, collection.labels),
        leaks=_mixed(exact + near, collection.splits),
        root=collection.root,
        images=len(collection.ids) - len(skipped),
        labels=collection.labels,
        class_names=collection.class_names,
        splits=collection.splits,
        skipped=skipped | {name: f"could not be looked at: {reason}" for name, reason in collection.unlisted},
    )


def _similar_rows(
    files: Sequence[str],
    content: np.ndarray,
    fingerprints_of: FingerprintFiles,
    search: EmbeddingSearch | None,
    console: Console,
) -> tuple[list[list[int]], dict[int, str]]:
    """Groups of rows that look the same, one row per content, and the reason for each unreadable row."""
    rows = np.flatnonzero(content == np.arange(len(files)))
    fingerprints, failures = fingerprints_of([files[row] for row in rows.tolist()])
    usable = np.setdiff1d(np.arange(len(rows)), np.fromiter(failures, np.int64))
    group = np.arange(len(rows))  # the first row of each row's group
    clear = usable[~fingerprints.flat[usable]]
    join_by_fingerprints(group, fingerprints, clear, console)
    if search:
        join_by_embedding(group, [files[row] for row in rows.tolist()], clear, search, console)
    alike: dict[int, list[int]] = defaultdict(list)
    for place in usable.tolist():
        alike[int(group[place])].append(int(rows[place]))
    return list(alike.values()), {int(rows[place]): reason for place, reason in failures.items()}


def _sorted(groups: Iterable[list[str]]) -> Groups:
    return sorted(sorted(members) for members in groups if len(members) > 1)


def _mixed(groups: Groups, kinds: dict[str, str]) -> Groups:
    """The groups whose members are known to be of different kinds."""
    return sorted(members for members in groups if len({kinds[name] for name in members if name in kinds}) > 1)
