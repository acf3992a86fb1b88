"""What TensorBoard shows of a run, besides its curves."""

import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dr_keras.config import Config
from dr_keras.image_grid import PAPER
from dr_keras.training import run as run_module
from dr_keras.training.monitor import _class_similarity
from dr_keras.training.train import train

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    from conftest import running_eagerly

    network = {"image_size": 16, "backbone": "resnet10", "width": 4, "embedding_dim": 8, "precision": "float32"}
    steps = {"epochs": 2, "pretrain_epochs": 1, "steps_per_epoch": 2, "batch_size": 8, "shift": 1, "monitor": 0.2}
    config = Config(data=str(folders), run="r", projector=40, **network, **steps)
    with pytest.MonkeyPatch.context() as patch, running_eagerly(True):
        patch.setattr(run_module, "_export", lambda *_: {})
        return train(config, runs=tmp_path_factory.mktemp("board")).run


def pictures(run, tag):
    board = EventAccumulator(str(run.tensorboard), size_guidance={"images": 0})
    board.Reload()
    return [np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in board.Images(tag)]


def test_pictures_at_each_ranking(run):
    for tag in ("monitor/neighbors", "monitor/hardest_triplets", "monitor/class_similarity"):
        found = pictures(run, tag)
        assert len(found) == 2  # after each epoch; that of the end is of the same step
        assert all((picture != PAPER).any() for picture in found)
    triplets = pictures(run, "monitor/hardest_triplets")[0]
    assert triplets.shape[1] > 1.5 * triplets.shape[0]  # eight columns of three


def test_the_projector_has_a_thumbnail_and_a_line_for_each_image(run):
    (folder,) = {file.parent for file in run.tensorboard.rglob("sprite.png")}
    vectors = np.loadtxt(folder / "tensors.tsv")
    lines = (folder / "metadata.tsv").read_text().splitlines()
    assert vectors.shape == (36, 8)
    assert lines[0].split("\t") == ["class", "split", "id"]
    assert len(lines) == 37
    assert {line.split("\t")[0] for line in lines[1:]} == {"bars", "disc", "plain", "rings"}
    with Image.open(folder / "sprite.png") as sprite:
        assert sprite.size == (6 * 64, 6 * 64)
    assert "sprite.png" in (run.tensorboard / "projector_config.pbtxt").read_text()


def test_the_similarity_of_classes():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], np.float32)
    found = _class_similarity(vectors, np.array([2, 2, 5, 7]))
    assert found.shape == (600, 600, 3)
    yellow, blue = (250, 220, 90), (38, 56, 112)
    assert tuple(found[100, 100]) == tuple(found[300, 300]) == yellow
    assert tuple(found[100, 300]) == tuple(found[100, 500]) == blue
