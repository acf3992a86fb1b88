"""Groups of images that are alike, found without labels; which group an image is in becomes an attribute of it."""

import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dr_keras.atomic_files import new_folder
from dr_keras.data.image_ids import image_path, url_of
from dr_keras.errors import InputError, MissingPackage
from dr_keras.extras import how_to_install
from dr_keras.index.exact_search import load_faiss
from dr_keras.index.index import Entry, Index

GROUP, CENTER = "group", "group_center"  # attributes
METHODS = ("kmeans", "agglomerative", "hdbscan")
NONE = -1
# Agglomerative clustering and HDBSCAN compare all pairs: 20,000 images take 1.6 GB and a minute or two.
MAX_PAIRED = 20_000
KMEANS_ROUNDS = 25
UPDATED_IMAGES = 8192  # in one change
MIN_IMAGES = 5


@dataclass(frozen=True)
class Group:
    """A group of images.

    Attributes:
        name: Its name, at first a number; 1 is the largest.
        center: The id of its medoid, the image that is nearest to all others of the group.
        count: How many images it has.
    """

    name: str
    center: str
    count: int


def cluster(
    vectors: np.ndarray,
    *,
    method: str = "kmeans",
    groups: int | None = None,
    min_images: int = MIN_IMAGES,
    seed: int = 0,
) -> np.ndarray:
    """Groups vectors.

    Args:
        vectors: (N, D) float32 of unit length.
        method: 'kmeans', by FAISS, is for any number; 'agglomerative' joins the two groups of the smallest mean
            distance until there are `groups`; 'hdbscan' finds dense regions and leaves the rest out. The last two take
            up to `MAX_PAIRED` vectors.
        groups: How many; by default the square root of N / 2. Not for 'hdbscan'.
        min_images: The least for a group of 'hdbscan'.
        seed: Seeds k-means.

    Returns:
        (N,) int64, the group of each, the largest first, counted from 0; `NONE` for those in no group.

    Raises:
        InputError: The method is unknown or cannot take so many vectors, or the number of groups is impossible.
        MissingPackage: scikit-learn is not installed, and the method needs it.
    """
    count = len(vectors)
    if method not in METHODS:
        raise InputError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    if method != "kmeans" and count > MAX_PAIRED:
        raise InputError(f"{method} takes up to {MAX_PAIRED:,} images, and there are {count:,}; use kmeans")
    groups = groups or max(2, round(math.sqrt(count / 2)))
    if not 2 <= groups <= count:
        raise InputError(f"{groups:,} groups of {count:,} images are impossible; choose from 2 to the number of images")
    if method == "kmeans":
        found = _kmeans(vectors, groups, seed)
    else:
        try:
            from sklearn import cluster as sklearn_cluster
        except ImportError:
            raise MissingPackage(f"{method} needs scikit-learn; {how_to_install('sklearn')}") from None
        if method == "hdbscan":
            if not 2 <= min_images <= count:
                raise InputError(f"min_images is {min_images:,}; choose from 2 to the number of images, {count:,}")
            model = sklearn_cluster.HDBSCAN(min_cluster_size=min_images, algorithm="brute", copy=True)
        else:
            model = sklearn_cluster.AgglomerativeClustering(groups, linkage="average")
        found = model.fit_predict(np.asarray(vectors, np.float32))
    sizes = Counter(found[found >= 0].tolist())
    order = {old: new for new, (old, _) in enumerate(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))}
    return np.array([order.get(label, NONE) for label in found.tolist()], np.int64)


def medoid(vectors: np.ndarray) -> int:
    """Returns the number of the vector (N, D) of unit length with the greatest mean cosine to all of them."""
    return int(np.argmax(vectors @ vectors.mean(axis=0)))


def group_images(
    index: Index, *, method: str = "kmeans", groups: int | None = None, min_images: int = MIN_IMAGES
) -> list[Group]:
    """Groups all images that a search may return, and keeps the group of each as its attribute `group`.

    Earlier groups, and their names, are replaced.

    Args:
        index: Open for writing.
        method, groups, min_images: As for `cluster`.

    Returns:
        The groups, the largest first.

    Raises:
        InputError: As for `cluster`.
        RunError: The index cannot be written.
    """
    rows = index.searched_rows()
    ids = {row: id for row, id, *_ in index.records.listing()}
    rows = rows[np.fromiter((row in ids for row in rows.tolist()), bool, len(rows))]
    vectors = index.vectors[rows]
    found = cluster(vectors, method=method, groups=groups, min_images=min_images)
    made: list[Group] = []
    of: dict[str, Group] = {}
    for number in range(found.max(initial=NONE) + 1):
        members = np.flatnonzero(found == number)
        center = ids[int(rows[members[medoid(vectors[members])]])]
        made.append(Group(str(number + 1), center, len(members)))
        of |= {ids[row]: made[-1] for row in rows[members].tolist()}
    every = list(ids)
    for start in range(0, len(every), UPDATED_IMAGES):
        entries = index.records.entries(every[start : start + UPDATED_IMAGES])
        changed = [new for entry in entries if (new := _in_group(entry, of.get(entry.id))) != entry]
        if changed:
            index.update(changed)
    return made


def groups_of(index: Index) -> list[tuple[Group, list[str]]]:
    """Returns the groups of an index, the largest first, each with the ids of its images."""
    members: dict[str, list[str]] = {}
    centers: dict[str, str] = {}
    for entry in _grouped(index):
        name = str(entry.attributes[GROUP])
        members.setdefault(name, []).append(entry.id)
        if entry.attributes.get(CENTER) or name not in centers:
            centers[name] = entry.id
    groups = [(Group(name, centers[name], len(ids)), ids) for name, ids in members.items()]
    return sorted(groups, key=lambda found: (-found[0].count, len(found[0].name), found[0].name))


def rename_group(index: Index, old: str, new: str) -> int:
    """Renames a group; if there is another of the new name, it joins that.

    Returns:
        How many images were in it.

    Raises:
        InputError: There is no group of the old name, or the new one is not usable as a folder's name.
    """
    check_group_name(new)
    members = {group.name: ids for group, ids in groups_of(index)}
    if old not in members:
        raise InputError(f"there is no group {old!r}")
    _put_in(index, members[old], new, centers=new == old or new not in members)
    return len(members[old])


def move_to_group(index: Index, ids: Sequence[str], group: str | None) -> int:
    """Moves images to a group, which may be new; or out of any.

    Returns:
        How many.

    Raises:
        InputError: The name is not usable as a folder's name, or an id is not in the index or is given twice.
    """
    if group is not None:
        check_group_name(group)
    _put_in(index, ids, group, centers=False)
    return len(ids)


def check_group_name(name: str) -> None:
    """Raises InputError if a name cannot be that of a folder, on any system."""
    if not name.isprintable() or name != name.strip() or name in ("", ".", "..") or set(name) & set('/\\:*?"<>|'):
        raise InputError(f"{name!r} cannot name a group: it has to be a possible name of a folder")


def export_groups(index: Index, folder: Path) -> int:
    """Makes a class folder of each group, with links to its images, for `train.py --data`.

    Args:
        index: The index.
        folder: Must not exist.

    Returns:
        How many images are in it.

    Raises:
        InputError: The folder exists, there are no groups, one has a name that no folder can have, or an image is on
            an object store.
        OSError: It cannot be written.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; choose another place")
    entries = _grouped(index)
    if not entries:
        raise InputError(f"{index.place} has no groups yet")
    if far := next((entry.id for entry in entries if url_of(entry.id) is not None), None):
        raise InputError(f"{far} is on an object store; class folders link to files of this machine")
    for name in {str(entry.attributes[GROUP]) for entry in entries}:
        check_group_name(name)
    with new_folder(folder, replace=False) as temporary:
        for entry in entries:
            inside = temporary / str(entry.attributes[GROUP])
            inside.mkdir(exist_ok=True)
            _link(image_path(entry.id, index.root), inside)
    return len(entries)


def _kmeans(vectors: np.ndarray, groups: int, seed: int) -> np.ndarray:
    faiss = load_faiss()
    vectors = np.ascontiguousarray(vectors, np.float32)
    model = faiss.Kmeans(
        vectors.shape[1], groups, niter=KMEANS_ROUNDS, seed=seed, spherical=True, min_points_per_centroid=1
    )
    model.train(vectors)
    return model.index.search(vectors, 1)[1][:, 0]


def _grouped(index: Index) -> list[Entry]:
    entries = index.records.entries([row for row, *_ in index.records.listing()])
    return [entry for entry in entries if entry.attributes.get(GROUP) is not None]


def _in_group(entry: Entry, group: Group | None) -> Entry:
    attributes = {name: value for name, value in entry.attributes.items() if name not in (GROUP, CENTER)}
    if group is not None:
        attributes[GROUP] = group.name
        if group.center == entry.id:
            attributes[CENTER] = True
    return replace(entry, attributes=attributes)


def _put_in(index: Index, ids: Sequence[str], name: str | None, *, centers: bool) -> None:
    """Changes the group of images, which stay the middle of it only if `centers`."""
    rows = list(index.records.known_rows(ids).values())
    for start in range(0, len(rows), UPDATED_IMAGES):
        changed = []
        for entry in index.records.entries(rows[start : start + UPDATED_IMAGES]):
            attributes = {**entry.attributes, GROUP: name}
            if name is None:
                del attributes[GROUP]
            if not centers:
                attributes.pop(CENTER, None)
            changed.append(replace(entry, attributes=attributes))
        index.update(changed)


def _link(path: str, folder: Path) -> None:
    """Links to a file, under its own name or one like it; copies it where links are not allowed."""
    stem, ending = os.path.splitext(Path(path).name)
    place, number = folder / (stem + ending), 1
    while os.path.lexists(place):
        place, number = folder / f"{stem}-{number}{ending}", number + 1
    with suppress(OSError, NotImplementedError):
        place.symlink_to(path)
        return
    shutil.copyfile(path, place)
