"""Why two pictures are alike: exact sums over the cells of the maps, and covering for other networks."""

import json
import shutil

import keras
import numpy as np
import pytest
from conftest import draw, script
from PIL import Image

from dr_keras.cells import Cells
from dr_keras.config import NetworkConfig
from dr_keras.embedders import LiteRTMaps, embed_with_network
from dr_keras.errors import InputError
from dr_keras.explanation import COVERED, Explainer, explain_by_covering, explain_cells
from dr_keras.heads import fit_general_head
from dr_keras.loading import load
from dr_keras.model.general_head import feature_network, with_general_head
from dr_keras.model.maps import map_network, projection_of
from dr_keras.model.network import embedding_network
from dr_keras.runs import Run

RELEASED = "tiny-imagenet-64"


@pytest.fixture(scope="module")
def model():
    return load(RELEASED)


def pictures(count, size=64, seed=0):
    random = np.random.default_rng(seed)
    names = ("disc", "bars", "rings")
    return np.stack([np.asarray(draw(names[n % 3], random, size).convert("RGB")) for n in range(count)])


NETWORKS = {
    "resnet": {"backbone": "resnet10", "width": 4, "embedding_dim": 8},
    "resnet, no linear layer": {"backbone": "resnet10", "width": 4, "embedding_dim": 0},
    "resnet, one scale": {"backbone": "resnet10", "width": 4, "embedding_dim": 8, "multiscale": False},
    "MobileNet": {"backbone": "MobileNet", "embedding_dim": 0, "multiscale": False},
    "MobileNet with all paths": {"backbone": "MobileNet", "embedding_dim": 8, "multiscale": True},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [32, 48])
def test_the_cells_sum_to_the_embedding(name, size):
    keras.utils.set_random_seed(1)
    settings = NETWORKS[name]
    network = embedding_network(NetworkConfig(image_size=size, **settings))
    if settings["embedding_dim"]:  # a bias that is not zero, as that of a trained network
        layer = network.get_layer("linear_embedding")
        layer.set_weights([layer.get_weights()[0], np.linspace(-0.3, 0.5, settings["embedding_dim"])])
    images = pictures(12, size)
    maps, projection = map_network(network)(images), projection_of(network)
    general = fit_general_head(embed_with_network(feature_network(network), images), dim=6)
    for head, expected in (
        (None, embed_with_network(network, images)),
        (general, embed_with_network(with_general_head(network, general, alone=True), images)),
    ):
        cells = [projection.cells(of, head) for of in maps]
        np.testing.assert_allclose(np.stack([of.embedding for of in cells]), expected, atol=2e-6)
        found = explain_cells(cells[0], cells[5], float(expected[0] @ expected[5]))
        assert found.exact
        assert found.total == pytest.approx(found.cosine, abs=1e-5)
        for values in (found.query_map, found.neighbor_map, found.pairs):
            assert values.sum() + found.bias == pytest.approx(found.total, abs=1e-9)
        np.testing.assert_allclose(found.pairs.sum(axis=(2, 3)), found.query_map, atol=1e-9)
        np.testing.assert_allclose(found.pairs.sum(axis=(0, 1)), found.neighbor_map, atol=1e-9)


def test_other_networks_have_no_maps():
    for settings in ({"backbone": "alexnet"}, {"backbone": "ConvNeXtTiny", "multiscale": False, "embedding_dim": 0}):
        assert map_network(embedding_network(NetworkConfig(image_size=32, **settings))) is None


@pytest.mark.parametrize("head", ["trained", "general"])
def test_the_released_model_explains_its_cosines(head):
    model = load(RELEASED, head=head)
    images = [Image.fromarray(picture) for picture in pictures(6)]
    vectors = model.embed(images)
    for query, neighbor in ((0, 1), (2, 5), (3, 3)):
        found = model.explain(images[query], images[neighbor])
        assert found.exact
        assert found.cosine == pytest.approx(float(vectors[query] @ vectors[neighbor]), abs=1e-6)
        # The LiteRT file of a released model rounds the constants of the general head to half precision.
        assert found.total == pytest.approx(found.cosine, abs=1e-5 if head == "trained" else 1e-4)
        swapped = model.explain(images[neighbor], images[query])
        np.testing.assert_allclose(swapped.query_map, found.neighbor_map, atol=1e-6)


def test_a_mirrored_picture_has_the_mirrored_map(model):
    agreement, without = [], []
    for patch, neighbor in zip(pictures(8, 48), pictures(8, seed=1), strict=True):
        query = np.full((64, 64, 3), 90, np.uint8)
        query[20:44, 4:28] = patch[::2, ::2]
        plain = model.explain(Image.fromarray(query), Image.fromarray(neighbor)).query_map
        mirrored = model.explain(Image.fromarray(query[:, ::-1].copy()), Image.fromarray(neighbor)).query_map
        agreement.append(np.corrcoef(mirrored[:, ::-1].ravel(), plain.ravel())[0, 1])
        without.append(np.corrcoef(mirrored.ravel(), plain.ravel())[0, 1])
    assert np.median(agreement) > 0.6  # the network itself is only nearly symmetric
    assert np.median(agreement) > np.median(without) + 0.3


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (3, 3)])
def test_a_pasted_patch_lights_up_in_both(model, place):
    patch = pictures(1, 32)[0][::2, ::2]
    canvases = [np.full((64, 64, 3), color, np.uint8) for color in ((30, 90, 40), (200, 200, 190))]
    for canvas in canvases:
        canvas[16 * place[0] : 16 * place[0] + 16, 16 * place[1] : 16 * place[1] + 16] = patch
    found = model.explain(*map(Image.fromarray, canvases))
    for values in (found.query_map, found.neighbor_map):
        brightest = np.unravel_index(values.argmax(), values.shape)
        assert max(abs(brightest[0] - place[0]), abs(brightest[1] - place[1])) <= 1  # a map's cells see their neighbors
        assert values[place] > np.median(values)


def test_covering_finds_the_part_that_matters():
    def brightness_of_a_corner(images):
        level = images[:, :8, 8:16].mean(axis=(1, 2, 3)) / 255
        return np.stack([level, np.sqrt(1 - level**2)], axis=1)

    query = np.full((64, 64, 3), 60, np.uint8)
    query[:8, 8:16] = 255
    found = explain_by_covering(brightness_of_a_corner, query, query)
    assert not found.exact
    assert found.query_map.shape == (COVERED, COVERED)
    assert np.unravel_index(found.query_map.argmax(), found.query_map.shape) == (0, 1)
    assert np.count_nonzero(np.abs(found.query_map) > 1e-6) == 1
    assert found.to_dict()["total"] is None


def test_retrieve_why(tmp_path, folders):
    query = folders / "disc" / "disc_0.png"
    arguments = ("retrieve.py", "--run", RELEASED, "--gallery", folders, "--query", query, "--top", 14)
    found = script(tmp_path, *arguments, "--why", "why.png", "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert len(answer["results"]) == 14
    for result in answer["results"]:
        explanation = result["explanation"]
        assert explanation["exact"]
        assert explanation["total"] == pytest.approx(explanation["cosine"], abs=1e-5)
        assert result["distance"] == pytest.approx((2 - 2 * explanation["cosine"]) ** 0.5, abs=1e-3)
        sums = np.sum(explanation["query_map"]), np.sum(explanation["neighbor_map"])
        assert sums == pytest.approx([explanation["total"] - explanation["bias"]] * 2, abs=1e-9)
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 6 * 160
        assert picture.height > 4 * 160  # twelve neighbors in two rows, the query above each
    plain = script(tmp_path, *arguments, "--json")
    assert "explanation" not in json.loads(plain.stdout)["results"][0]
    assert "saved why.png" in script(tmp_path, *arguments, "--why", "why.png").stdout
    for more, message in (
        (["--why", "why.txt"], "has the ending .txt"),
        (["--why", "why.png", "--negative", query], "--why explains the search for a single query"),
    ):
        failed = script(tmp_path, *arguments, *more)
        assert failed.returncode == 2
        assert message in failed.stderr


def test_nothing_to_explain_and_a_picture_that_is_gone(tmp_path, folders):
    copy = tmp_path / "copy"
    shutil.copytree(folders, copy)
    arguments = ("retrieve.py", "--run", RELEASED, "--gallery", copy, "--query", "disc_0.png", "--why", "why.png")
    nothing = script(tmp_path, *arguments, "--max-distance", "0")
    assert nothing.returncode == 3
    assert not (tmp_path / "why.png").exists()
    answer = json.loads(script(tmp_path, *arguments, "--json", "--top", 5).stdout)
    gone = answer["results"][1]["id"]
    model = load(RELEASED).use_gallery(copy)
    (copy / gone).unlink()
    found: list = []
    for result in model.retrieve("disc_0.png", k=5).results:
        try:
            found.append(model.explain("disc_0.png", result.path))
        except InputError:
            found.append(result.id)
    assert [one for one in found if isinstance(one, str)] == [gone]


def test_pairs_are_pooled_to_fewer_parts():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((2, 6, 6, 3)).astype(np.float32)
    found = explain_cells(*(Cells(one, np.zeros(3, np.float32)) for one in vectors), cosine=0.0)
    pooled = found.pooled_pairs(3)
    assert pooled.shape == (3, 3, 3, 3)
    np.testing.assert_allclose(pooled[0, 1, 2, 0], found.pairs[0:2, 2:4, 4:6, 0:2].sum())
    np.testing.assert_allclose(found.pooled_pairs(6), found.pairs)
    assert found.pooled_pairs(4).shape == (3, 3, 3, 3)


def test_explaining_needs_no_framework(tmp_path, folders, refuse):
    arguments = ("retrieve.py", "--run", RELEASED, "--gallery", folders, "--query", "disc_0.png", "--json")
    found = script(tmp_path, *arguments, "--why", "why.png", env=refuse("keras", "tensorflow", "jax", "torch"))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["results"][0]["explanation"]["exact"]


def test_names_are_those_of_the_gallery(folders):
    model = load(RELEASED).use_gallery(folders)
    by_name = model.explain("disc_0.png", "bars/bars_1.png")
    by_path = model.explain(str(folders / "disc" / "disc_0.png"), folders / "bars" / "bars_1.png")
    np.testing.assert_array_equal(by_name.query_map, by_path.query_map)
    with pytest.raises(InputError, match=r"disc_99\.png"):
        model.explain("disc_0.png", "disc_99.png")


def test_a_run_by_keras_and_one_with_a_fitted_head(workplace, folders):
    run = Run(workplace / "runs" / "small")
    model = load(run.path, runtime="keras")
    found = model.explain("disc_0.png", "disc_1.png")
    assert found.exact
    assert found.total == pytest.approx(found.cosine, abs=1e-5)
    exported = load(run.path).explain("disc_0.png", "disc_1.png")
    np.testing.assert_allclose(exported.query_map, found.query_map, atol=1e-4)
    assert LiteRTMaps(run.litert_file).available

    vectors = model.embed(list(folders.rglob("*.png")))
    after = fit_general_head(vectors, dim=5)
    one, other = pictures(2, model.config.image_size)
    found = Explainer(run, model.vectors)(one, other, "trained", after)
    expected = after(model.vectors(np.stack([one, other]), "trained"))
    assert found.cosine == pytest.approx(float(expected[0] @ expected[1]), abs=1e-6)
    assert found.total == pytest.approx(found.cosine, abs=1e-5)
