"""Groups of images that are found without labels."""

import numpy as np
import pytest
from conftest import script

from dr_keras import Entry, Index
from dr_keras.errors import InputError
from dr_keras.index import groups
from dr_keras.index.groups import NONE, cluster, export_groups, group_images, groups_of, medoid, rename_group


def blobs(sizes, dim=8, spread=0.05, seed=0):
    """Vectors around as many centers, and which one each is around."""
    random = np.random.default_rng(seed)
    centers = np.linalg.qr(random.normal(size=(dim, dim)))[0][: len(sizes)]
    of = np.repeat(np.arange(len(sizes)), sizes)
    vectors = centers[of] + spread * random.normal(size=(len(of), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = random.permutation(len(of))
    return vectors[order].astype(np.float32), of[order]


@pytest.mark.parametrize("method", ["kmeans", "agglomerative", "hdbscan"])
def test_clear_groups_are_found_the_largest_first(method):
    vectors, of = blobs((20, 40, 30))
    found = cluster(vectors, method=method, groups=3)
    assert [int((found == number).sum()) for number in range(3)] == [40, 30, 20]
    assert {(int(a), int(b)) for a, b in zip(found, of, strict=True)} == {(0, 1), (1, 2), (2, 0)}


def test_what_is_near_nothing_is_in_no_group_of_hdbscan():
    vectors, _ = blobs((30, 30), dim=16)
    odd = -vectors.mean(axis=0, keepdims=True)
    found = cluster(np.concatenate([vectors, odd / np.linalg.norm(odd)]), method="hdbscan")
    assert found[-1] == NONE
    assert set(found[:-1].tolist()) == {0, 1}


def test_too_many_images_for_other_methods(monkeypatch):
    monkeypatch.setattr(groups, "MAX_PAIRED", 50)
    vectors, _ = blobs((40, 30))
    assert len(set(cluster(vectors).tolist())) == 6  # the square root of 35
    with pytest.raises(InputError, match="hdbscan takes up to 50 images, and there are 70; use kmeans"):
        cluster(vectors, method="hdbscan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 1}, "1 groups of 20 images are impossible"),
        ({"groups": 21}, "21 groups of 20 images are impossible"),
        ({"method": "guess"}, "method is 'guess'; choose one of kmeans, agglomerative"),
        ({"method": "hdbscan", "min_images": 1}, "choose from 2 to the number of images, 20"),
        ({"method": "hdbscan", "min_images": 21}, "min_images is 21; choose from 2 to the number of images, 20"),
    ],
)
def test_impossible_groups(options, message):
    with pytest.raises(InputError, match=message):
        cluster(blobs((20,))[0], **options)


def test_the_medoid_is_nearest_to_all_others():
    vectors, _ = blobs((25,), spread=0.4)
    total = np.linalg.norm(vectors[:, None] - vectors[None], axis=2) ** 2
    assert medoid(vectors) == int(np.argmin(total.sum(axis=1)))


@pytest.fixture
def index(tmp_path):
    vectors, of = blobs((4, 6))
    (tmp_path / "pictures").mkdir()
    made = Index.create(tmp_path / "index", 8, root=tmp_path / "pictures")
    made.add([Entry(f"{n}.png", attributes={"year": int(k)}) for n, k in enumerate(of)], vectors)
    for number in range(len(of)):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(b"picture")
    yield made
    made.close()


def test_groups_become_attributes(index):
    found = group_images(index, groups=2)
    assert [group.count for group in found] == [6, 4]
    assert [group for group, _ in groups_of(index)] == found
    assert [len(ids) for _, ids in groups_of(index)] == [6, 4]
    for row, id, *_ in index.records.listing():
        entry = index.records.entries([row])[0]
        assert entry.attributes["group"] == {1: "1", 0: "2"}[entry.attributes["year"]]
        assert entry.attributes.get("group_center", False) is (id in {group.center for group in found})
    rows, _ = index.search(index.vectors[:1], where="group = '2'")
    assert rows.shape == (1, 4)
    again = group_images(index, groups=5)
    assert sum(group.count for group in again) == 10
    assert len(groups_of(index)) == 5


def test_groups_are_named_joined_and_exported(index, tmp_path):
    group_images(index, method="agglomerative", groups=3)
    assert rename_group(index, "1", "Beach") == 6
    left = [group for group, _ in groups_of(index)][1:]
    assert rename_group(index, left[0].name, left[1].name) == left[0].count
    found = [group for group, _ in groups_of(index)]
    assert [(group.name, group.count) for group in found] == [("Beach", 6), (left[1].name, 4)]
    assert found[1].center == left[1].center
    assert export_groups(index, tmp_path / "classes") == 10
    assert len(list((tmp_path / "classes" / "Beach").iterdir())) == 6
    link = next((tmp_path / "classes" / "Beach").iterdir())
    assert link.resolve() == tmp_path / "pictures" / link.name
    with pytest.raises(InputError, match="exists"):
        export_groups(index, tmp_path / "classes")
    for name in ("a/b", "..", "", " x", "a\nb", "a:b"):
        with pytest.raises(InputError, match="cannot name a group"):
            rename_group(index, "Beach", name)
    with pytest.raises(InputError, match="there is no group 'none'"):
        rename_group(index, "none", "any")


def test_names_never_lead_out_of_the_folder(index, tmp_path):
    index.update([Entry("0.png", attributes={"group": "../../evil"})])
    with pytest.raises(InputError, match="cannot name a group"):
        export_groups(index, tmp_path / "deep" / "classes")
    assert not (tmp_path / "evil").exists()


def test_no_groups_yet(index, tmp_path):
    assert groups_of(index) == []
    with pytest.raises(InputError, match="has no groups yet"):
        export_groups(index, tmp_path / "classes")
    assert not (tmp_path / "classes").exists()


def test_groups_by_the_script(place):
    result = script(place, "index.py", "cluster", "--index", "my-index", "--groups", 4, "--export", "classes")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("16 of 16 images are in 4 groups\n")
    assert "16 links in classes" in result.stdout
    renamed = script(place, "index.py", "cluster", "--index", "my-index", "--rename", "1", "first")
    assert "are in first now" in renamed.stdout
    exported = script(place, "index.py", "cluster", "--index", "my-index", "--export", "more")
    assert (place / "more" / "first").is_dir(), exported.stderr
    refused = script(place, "index.py", "cluster", "--index", "my-index", "--groups", 3)
    assert (refused.returncode, "see --replace" in refused.stderr) == (2, True)
    anew = script(place, "index.py", "cluster", "--index", "my-index", "--groups", 3, "--replace")
    assert "16 of 16 images are in 3 groups" in anew.stdout
    found = script(place, "retrieve.py", "--index", "my-index", "--query", "disc_0.png", "--where", "group = 1")
    assert found.returncode == 0
    train = script(place, "index.py", "add", "classes", "--run", "small", "--index", "grouped")
    assert train.returncode == 0
