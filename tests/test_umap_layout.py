"""The UMAP map of a gallery: neighbors stay neighbors, and new vectors are placed between them."""

import numpy as np
import pytest
from conftest import script

from dr_keras.errors import InputError, RunError
from dr_keras.index.index import Entry, Index
from dr_keras.index.umap_layout import LAYOUT_FILE, Layout, fit_umap

RANDOM = np.random.default_rng(3)
CENTERS = np.eye(4, 16, dtype=np.float32)


def clustered(count):
    vectors = CENTERS[np.arange(count) % 4] + 0.05 * RANDOM.standard_normal((count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def index(tmp_path):
    with Index.create(tmp_path / "index", 16, root=tmp_path, model="a network") as index:
        index.add([Entry(f"{n}.png", f"c{n % 4}") for n in range(200)], clustered(200))
        yield index


def layout():
    return Layout(clustered(40), RANDOM.standard_normal((40, 2)).astype(np.float32), "a network")


def test_fitted_vectors_keep_their_points_and_others_lie_between():
    made = layout()
    np.testing.assert_allclose(made(made.vectors), made.points, atol=1e-3)
    near = made.vectors[[0, 4, 8, 12]]  # all around one center
    between = made(near.mean(axis=0, keepdims=True))[0]
    own = made.points[::4]
    assert (own.min(axis=0) <= between).all()
    assert (between <= own.max(axis=0)).all()
    assert made(np.empty((0, 16), np.float32)).shape == (0, 2)


def test_it_is_kept_with_the_index_and_only_for_its_model(index):
    assert Layout.load(index) is None
    made = layout()
    made.save(index)
    kept = Layout.load(index)
    assert np.array_equal(kept.points, made.points)
    assert np.array_equal(kept.vectors, made.vectors)
    Layout(made.vectors, made.points, "another network").save(index)
    assert Layout.load(index) is None
    (index.folder / LAYOUT_FILE).write_bytes(b"no map")
    with pytest.raises(RunError, match="make it again"):
        Layout.load(index)


@pytest.mark.nightly
def test_umap_keeps_classes_together(index):
    pytest.importorskip("umap", reason="needs the extra map")
    made = fit_umap(index)
    points = made(np.asarray(index.vectors))
    assert np.quantile(np.abs(points), 0.99) <= 1.01
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 10 * np.eye(200)
    near = np.argsort(apart, axis=1)[:, :5]
    assert (near % 4 == np.arange(200)[:, None] % 4).mean() > 0.95
    index.remove([f"{n}.png" for n in range(171, 200)])
    with pytest.raises(InputError, match="29 images are too few"):
        index.remove([f"{n}.png" for n in range(29, 171)])
        fit_umap(index)


def test_a_map_without_umap_says_what_to_install(index, tmp_path, refuse):
    result = script(tmp_path, "index.py", "map", "--index", index.folder, env=refuse("umap"))
    assert (result.returncode, "pip install 'dr_keras[map]'" in result.stderr) == (2, True), result.stderr
