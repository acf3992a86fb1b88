"""Backbones of KerasHub: loaded from folders, preprocessed, pooled, resized, saved, searched with and fine-tuned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import script

from dr_keras.config import NetworkConfig
from dr_keras.data.images import decode
from dr_keras.embedders import LiteRTEmbedder, OpenVINOEmbedder, SavedModelEmbedder, embed_with_network
from dr_keras.errors import InputError
from dr_keras.export.onnx import OnnxEmbedder
from dr_keras.heads import GENERAL, TRAINED
from dr_keras.loading import load
from dr_keras.model.general_head import with_general_head
from dr_keras.model.hub import Pooling, _interpolated, hub_features, load_preset
from dr_keras.model.network import embedding_network, load_network
from dr_keras.model.source_card import source_card
from dr_keras.runs import Run

keras_hub = pytest.importorskip("keras_hub")

RANDOM = Path(__file__).parent.parent.parent / "shared" / "bin" / "random-dinov2"
HUGGING_FACE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
KERAS = ("vit", "deit", "clip", "siglip", "swin", "resnet")
SIDE = 32
SCALE, OFFSET = np.array([1 / 58, 1 / 57, 1 / 57.5]), np.array([-2.1, -2.0, -1.8])
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def backbone(kind):
    """A small backbone of random weights."""
    from keras_hub.src.models.clip.clip_text_encoder import CLIPTextEncoder
    from keras_hub.src.models.clip.clip_vision_encoder import CLIPVisionEncoder
    from keras_hub.src.models.siglip.siglip_text_encoder import SigLIPTextEncoder
    from keras_hub.src.models.siglip.siglip_vision_encoder import SigLIPVisionEncoder

    models, shape = keras_hub.models, (SIDE, SIDE, 3)
    transformer = {"image_shape": shape, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16}
    if kind == "vit":
        return models.ViTBackbone(mlp_dim=32, **transformer)
    if kind == "deit":
        return models.DeiTBackbone(intermediate_dim=32, **transformer)
    if kind == "clip":
        vision = CLIPVisionEncoder(8, 16, 1, 2, 32, "quick_gelu", image_shape=shape)
        return models.CLIPBackbone(vision, CLIPTextEncoder(50, 16, 16, 1, 2, 32, "quick_gelu"), 12)
    if kind == "siglip":
        text = SigLIPTextEncoder(50, 16, 16, 1, 2, 32, max_sequence_length=16)
        return models.SigLIPBackbone(SigLIPVisionEncoder(8, 16, 1, 2, 32, image_shape=shape), text)
    if kind == "swin":
        windows = {"depths": (1, 1), "num_heads": (1, 2), "window_size": 2, "patch_size": 4}
        return models.SwinTransformerBackbone(image_shape=shape, embed_dim=16, **windows)
    return models.ResNetBackbone([64], [7], [64], [1], [1], "basic_block", image_shape=(None, None, 3))


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """The folders of small backbones, by name."""
    place = tmp_path_factory.mktemp("presets")
    keras.utils.set_random_seed(0)
    for kind in KERAS:
        made = backbone(kind)
        made.save_to_preset(place / kind)
        layers = (value for value in vars(keras_hub.layers).values() if isinstance(value, type))
        converter = next(layer for layer in layers if getattr(layer, "backbone_cls", None) is type(made))
        converter(image_size=(SIDE, SIDE), scale=SCALE.tolist(), offset=OFFSET.tolist()).save_to_preset(place / kind)
    for kind in HUGGING_FACE if RANDOM.exists() else ():
        subprocess.run([sys.executable, RANDOM, place / kind, kind], check=True)
    return place


def sizes(kind):
    return (56, 112) if kind.startswith("dinov2") else (64, 80) if kind == "dinov3_vit" else (SIDE, 48)


def kinds():
    absent = pytest.mark.skipif(not RANDOM.exists(), reason="needs the writer of random weights in ../shared")
    return [*KERAS, *(pytest.param(kind, marks=absent) for kind in HUGGING_FACE)]


def pixels(size, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def expected(folder, kind, images):
    """The features by KerasHub alone."""
    network = keras_hub.models.Backbone.from_preset(str(folder))
    prepared = (images / 255 - MEAN) / STD if kind in HUGGING_FACE else images * SCALE + OFFSET
    prepared = prepared.astype(np.float32)
    if kind in ("clip", "siglip"):
        return keras.ops.convert_to_numpy(network.get_vision_embeddings(prepared))
    given = {next(iter(network.input)): prepared} if isinstance(network.input, dict) else prepared
    features = keras.ops.convert_to_numpy(network(given))
    if kind in ("swin", "resnet"):
        return features.reshape(len(images), -1, features.shape[-1]).mean(axis=1)
    return features[:, 0]


@pytest.mark.parametrize("kind", kinds())
def test_features_are_those_of_kerashub(kind, presets):
    size = sizes(kind)[0]
    image = keras.Input((size, size, 3), dtype="uint8")
    network = keras.Model(image, hub_features(f"hub:{presets / kind}", image))
    images = pixels(size)
    found = network.predict_on_batch(images)
    np.testing.assert_allclose(found, expected(presets / kind, kind, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", kinds())
def test_other_image_sizes_are_accepted_and_survive_saving(kind, presets, tmp_path):
    size = sizes(kind)[1]
    config = NetworkConfig(backbone=f"hub:{presets / kind}", image_size=size)
    network = embedding_network(config)
    vectors = network.predict_on_batch(pixels(size))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    network.save(tmp_path / "embedding.keras")
    again = load_network(tmp_path / "embedding.keras").predict_on_batch(pixels(size))
    np.testing.assert_allclose(again, vectors, rtol=0, atol=1e-6)


def test_interpolated_positions_keep_the_class_token_and_a_smooth_grid():
    rows, columns = np.mgrid[0:6, 0:6]
    grid = np.stack([rows, columns], axis=-1).reshape(36, 2)
    positions = np.concatenate([[[70, 80]], grid]).astype(np.float32)[None]  # (1, 1 + 36, 2)
    found = keras.ops.convert_to_numpy(_interpolated(positions, (1, 1 + 144, 2)))
    assert found[0, 0].tolist() == [70, 80]
    inner = found[0, 1:].reshape(12, 12, 2)[3:9, 3:9]  # away from the border, cubic interpolation is exact
    half = (np.mgrid[3:9, 3:9] + 0.5) / 2 - 0.5
    np.testing.assert_allclose(inner, np.moveaxis(half, 0, -1), atol=1e-4)
    same = keras.ops.convert_to_numpy(_interpolated(positions, (1, 37, 2)))
    np.testing.assert_allclose(same, positions, atol=1e-5)


def test_pooling_leaves_out_tokens_that_are_not_of_the_image():
    tokens = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    assert np.array_equal(Pooling(class_token=True)(tokens), tokens[:, 0])
    assert np.array_equal(Pooling(2)(tokens), tokens[:, 2:].mean(axis=1))
    assert np.array_equal(Pooling()(tokens.reshape(2, 2, 2, 3)), tokens.mean(axis=1))


def test_poolings_are_those_that_a_network_has(presets):
    for kind, pooling, other in (("vit", "mean", "projection"), ("clip", "projection", "cls"), ("swin", "mean", "cls")):
        config = {"backbone": f"hub:{presets / kind}", "image_size": SIDE}
        assert embedding_network(NetworkConfig(pooling=pooling, **config)).output_shape[1] > 0
        with pytest.raises(InputError, match=f"--pooling {other} is not possible"):
            embedding_network(NetworkConfig(pooling=other, **config))


def test_defaults_of_pretrained_networks():
    own, hub = NetworkConfig(), NetworkConfig(backbone="hub:dinov2_small")
    assert (own.image_size, own.embedding_dim, own.multiscale) == (64, 256, True)
    assert (hub.image_size, hub.embedding_dim, hub.multiscale) == (224, 0, False)
    assert NetworkConfig(backbone="hub:x", image_size=98, embedding_dim=64).embedding_dim == 64
    for settings in ({"weights": "imagenet", "backbone": "hub:x"}, {"pooling": "cls"}, {"pooling": "max"}):
        with pytest.raises(InputError):
            NetworkConfig(**settings)


def test_what_cannot_be_loaded_is_one_line(presets, tmp_path):
    (tmp_path / "empty").mkdir()
    for preset, words in ((tmp_path / "absent", "no such folder"), (tmp_path / "empty", "cannot be loaded")):
        with pytest.raises(InputError, match=words) as error:
            load_preset(str(preset), SIDE)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="does not accept --image-size 50"):
        load_preset(str(presets / "vit"), 50)


@pytest.mark.skipif(not RANDOM.exists(), reason="needs the writer of random weights in ../shared")
def test_downloads_that_are_slow_break_off_or_are_refused(tmp_path):
    folder = tmp_path / "models"
    subprocess.run([sys.executable, RANDOM, folder / "dino", "dinov2"], check=True)
    result = subprocess.run(
        [sys.executable, Path(__file__).parent / "hub_server.py", folder, "dino"],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert {said["mine/dino"], said["bad/slow"]} == {"DINOV2Backbone"}
    for model, words in (
        ("bad/gated", "the model is gated: accept its terms and log in"),
        ("bad/forbidden", "the model is gated"),
        ("bad/absent", "the hub has no such model"),
        ("bad/busy", "the hub answers 503"),
        ("bad/broken", "without sending complete message body"),
        ("mine/offline", "the hub cannot be reached"),
    ):
        assert said[model].startswith(f"--backbone hub:hf://{model} cannot be loaded: "), said[model]
        assert words in said[model]
        assert "folder" in said[model]


def test_the_card_names_source_and_license(presets, tmp_path):
    card = source_card(NetworkConfig(backbone=f"hub:{presets / 'vit'}"))
    assert "the folder vit" in card
    assert "not stated with the weights" in card
    for kind, head, words in (
        ("mine", "license: apache-2.0\ntags:\n- vision", "`apache-2.0`, as its card states"),
        ("other", "license: other\nlicense_name: my-terms", "`my-terms`"),
        ("large", "license: other\nlicense_name: dinov3-license", "the DINOv3 License, which is not an open-source"),
    ):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "README.md").write_text(f"---\n{head}\n---\n# Model\n")
        assert words in source_card(NetworkConfig(backbone=f"hub:{tmp_path / kind}"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "dinov3_vit"}')
    assert "DINOv3 License" in source_card(NetworkConfig(backbone=f"hub:{tmp_path / 'bare'}"))
    downloaded = source_card(NetworkConfig(backbone="MobileNet", weights="imagenet"))
    assert "ImageNet-1k" in downloaded
    assert "research and education" in downloaded
    assert "the file own.h5" in source_card(NetworkConfig(backbone="MobileNet", weights="/some/where/own.h5"))


@pytest.mark.nightly
@pytest.mark.usefixtures("export_here")
@pytest.mark.parametrize("kind", [*KERAS[:1], *kinds()[6:]])
def test_from_the_network_as_it_is_to_a_tuned_one(kind, presets, folders, tmp_path):
    size = sizes(kind)[0]
    network = ("--backbone", f"hub:{presets / kind}", "--image-size", size)
    result = script(tmp_path, "train.py", *network, "--epochs", 0, "--run", "as-it-is")
    assert result.returncode == 0, result.stderr
    result = script(tmp_path, "retrieve.py", "--run", "as-it-is", "--gallery", folders, "--query", "disc_0.png")
    assert result.returncode == 0, result.stderr
    assert "License of the weights" in (tmp_path / "runs" / "as-it-is" / "README.md").read_text()
    assert "has no gallery" in script(tmp_path, "retrieve.py", "--run", "as-it-is", "--query", "disc_0.png").stderr
    steps = ("--epochs", 1, "--pretrain-epochs", 0, "--steps-per-epoch", 2, "--batch-size", 8, "--shift", 1)
    result = script(tmp_path, "train.py", "--data", folders, *network, *steps, "--run", "tuned", "--onnx")
    assert result.returncode == 0, result.stderr
    check_exports(tmp_path / "runs" / "tuned", folders)
    for run in ("as-it-is", "tuned"):
        result = script(tmp_path, "evaluate.py", "--run", run, "--data", folders, "--no-baselines")
        assert result.returncode == 0, result.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("kind", kinds()[:1])
def test_jax_needs_no_tensorflow(kind, presets, folders, tmp_path, refuse):
    place = {"KERAS_BACKEND": "jax"} | refuse("tensorflow")
    network = (
        "--backbone",
        f"hub:{presets / kind}",
        "--image-size",
        sizes(kind)[0],
        "--epochs",
        0,
        "--run",
        "as-it-is",
    )
    result = script(tmp_path, "train.py", *network, env=place)
    assert result.returncode == 0, result.stderr
    assert "TensorFlow is not installed here" in result.stderr
    query = ("--gallery", folders, "--query", "disc_0.png", "--json")
    result = script(tmp_path, "retrieve.py", "--run", "as-it-is", *query, env=place | {"DR_KERAS_CACHE": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    by_tensorflow = load(tmp_path / "runs" / "as-it-is", runtime="keras").use_gallery(folders).retrieve("disc_0.png")
    found = {one["id"]: one["distance"] for one in json.loads(result.stdout)["results"]}
    for one in by_tensorflow.results[:10]:
        assert found[one.id] == pytest.approx(one.distance, abs=1e-4)


def check_exports(path, folders):
    """Each export, by each runtime, gives the network's vectors of pictures that it did not see in its own check."""
    run = Run(path)
    files = sorted(folders.rglob("*.png"))[:40]
    images = np.stack([decode(file, run.config().image_size) for file in files])
    network = load_network(run.network_file)
    networks = {TRAINED: network, GENERAL: with_general_head(network, run.general_head(), alone=True)}
    for head, one in networks.items():
        expected = embed_with_network(one, images)
        for embed in (
            SavedModelEmbedder(run.saved_model, head),
            LiteRTEmbedder(run.litert_file, head),
            OnnxEmbedder(run.onnx_file, head),
            OpenVINOEmbedder(run.litert_file, head),
        ):
            np.testing.assert_allclose(embed(images), expected, atol=1e-4, err_msg=f"{head}, {type(embed).__name__}")
