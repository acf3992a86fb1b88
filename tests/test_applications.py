"""Networks of keras.applications as the ConvNet path."""

import keras
import numpy as np
import pytest

from dr_keras.atomic_files import write_array
from dr_keras.config import Config
from dr_keras.errors import InputError, MissingPackage
from dr_keras.export.write import export
from dr_keras.model.applications import application_names, preprocessing
from dr_keras.model.network import embedding_network, load_network
from dr_keras.runs import Run
from dr_keras.training.run import run_training

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


MODULES = {
    "ResNet50": "resnet",
    "ResNet50V2": "resnet_v2",
    "VGG16": "vgg16",
    "VGG19": "vgg19",
    "DenseNet121": "densenet",
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Large": "mobilenet_v3",
    "EfficientNetB7": "efficientnet",
    "EfficientNetV2S": "efficientnet_v2",
    "ConvNeXtTiny": "convnext",
    "InceptionV3": "inception_v3",
    "InceptionResNetV2": "inception_resnet_v2",
    "Xception": "xception",
    "NASNetMobile": "nasnet",
}


@pytest.mark.parametrize("name", MODULES)
def test_the_preprocessing_is_the_networks_own(name):
    module = getattr(keras.applications, MODULES[name])
    expected = module.preprocess_input(IMAGES.astype(np.float32).copy())
    found = keras.ops.convert_to_numpy(preprocessing(name)(IMAGES))
    assert np.abs(found - np.asarray(expected)).max() < 1e-4


def test_all_networks_are_known_by_name():
    names = application_names()
    assert {"EfficientNetB0", "ResNet50", "MobileNetV3Small", "ConvNeXtTiny", "VGG16", "NASNetMobile"} <= set(names)
    assert all(hasattr(keras.applications, name) for name in names)
    assert len(names) >= 30
    for name in names:  # each has a preprocessing that can be found
        preprocessing(name)


@pytest.mark.parametrize("name", ["MobileNetV2", pytest.param("EfficientNetB0", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("multiscale", [False, True])
def test_an_application_becomes_an_embedding_network(name, multiscale, tmp_path):
    network = embedding_network(Config(backbone=name, image_size=32, embedding_dim=16, multiscale=multiscale))
    vectors = network.predict(IMAGES, verbose=0)
    assert vectors.shape == (5, 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    network.save(tmp_path / "network.keras")
    assert np.array_equal(load_network(tmp_path / "network.keras").predict(IMAGES, verbose=0), vectors)


@pytest.mark.parametrize("name", ["VGG16", pytest.param("ResNet50", marks=pytest.mark.nightly)])
def test_an_application_is_exported(name, tmp_path):
    config = Config(backbone=name, image_size=32, embedding_dim=8, multiscale=False, onnx=True)  # turned to BGR
    run = Run(tmp_path / "r")
    run.write_config(config)
    embedding_network(config).save(run.network_file)
    write_array(run.samples_file, IMAGES)
    differences = export(run)
    assert set(differences) == {"saved_model", "saved_model_bytes", "litert", "onnx"}
    assert max(differences.values()) < 1e-4


def test_onnx_names_the_package_that_is_missing(monkeypatch):
    monkeypatch.setattr("dr_keras.export.onnx.find_spec", lambda module: None if module == "tf2onnx" else module)
    with pytest.raises(MissingPackage, match=r"tf2onnx; pip install 'dr_keras\[onnx\]'"):
        run_training(Config(onnx=True))


def test_weights_are_read_from_a_file(tmp_path):
    source = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    source.save_weights(tmp_path / "mine.weights.h5")
    settings = {"backbone": "MobileNetV2", "image_size": 32, "embedding_dim": 8, "multiscale": False}
    network = embedding_network(Config(**settings, weights=str(tmp_path / "mine.weights.h5")))
    inner = next(layer for layer in network.layers if isinstance(layer, keras.Model))
    assert all(np.array_equal(a, b) for a, b in zip(inner.get_weights(), source.get_weights(), strict=True))
    other = embedding_network(Config(**settings, weights="none"))
    inner = next(layer for layer in other.layers if isinstance(layer, keras.Model))
    assert not np.array_equal(inner.get_weights()[0], source.get_weights()[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "VGG17"}, "backbone is 'VGG17'; choose resnet10.*VGG16"),
        ({"backbone": "VGG16", "image_size": 24}, "VGG16 at 24 px with --weights None: .*32"),
        ({"backbone": "VGG16", "weights": "/no/such.weights.h5"}, "does not exist"),
        ({"backbone": "VGG16", "weights": __file__}, "VGG16 at 224 px with --weights .*test_applications"),
    ],
)
def test_what_cannot_be_built_is_a_clear_error(settings, message):
    with pytest.raises(InputError, match=message):
        embedding_network(Config(**settings))


def test_weights_that_cannot_be_downloaded_are_a_clear_error(monkeypatch):
    def unreachable(*_arguments, **_options):
        raise Exception("URL fetch failure on https://storage.example: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", unreachable)
    with pytest.raises(InputError, match="URL fetch failure"):
        embedding_network(Config(backbone="MobileNetV2", weights="imagenet", image_size=96))
