"""`--resume` works in any state of a run: not started, killed before its first checkpoint, moved, or finished."""

import csv
import os
import shutil
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import script, vectors_of, write_folders
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dr_keras.config import Config
from dr_keras.errors import InputError, Interrupted, RunError
from dr_keras.runs import Run, new_run, resumable_run, start_run
from dr_keras.training import callbacks
from dr_keras.training import run as run
from dr_keras.training.checkpoint import read_progress
from dr_keras.training.monitor import Monitor
from dr_keras.training.train import train

NIGHTLY = partial(pytest.param, marks=pytest.mark.nightly)

pytestmark = pytest.mark.usefixtures("eagerly")


def test_a_run_that_was_named_after_the_time_is_resumed_by_its_name(tmp_path):
    config = Config(data="pictures", margin=0.5)
    started = new_run(config, tmp_path)
    start_run(started, config)
    assert resumable_run(replace(config, run=started.path.name), tmp_path) == started
    moved = Run(started.path.rename(tmp_path / "moved"))
    assert resumable_run(replace(moved.config(), run="moved"), tmp_path) == moved
    with pytest.raises(RunError, match="other values of --margin"):
        resumable_run(replace(config, run="moved", margin=1.0), tmp_path)


class Killed(BaseException):
    """Nothing in the library catches this."""


@pytest.fixture(autouse=True)
def no_export(monkeypatch):
    monkeypatch.setattr(run, "_export", lambda *_: {})


@pytest.fixture
def config(folders):
    network = {"image_size": 16, "backbone": "resnet10", "width": 4, "embedding_dim": 8, "precision": "float32"}
    steps = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 8, "shift": 1, "pretrain_epochs": 0}
    return Config(data=str(folders), run="r", deterministic=True, **network, **steps)


def killed_at(monkeypatch, config, runs, step, *, saves=False, **options):
    """Trains until this step and dies there, with or without a checkpoint."""
    ended = callbacks.Checkpoints.on_train_batch_end

    def die(self, batch, logs=None):
        ended(self, batch, logs)
        if saves:
            self._keep()
        if self.model.optimizer.iterations >= step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoints, "on_train_batch_end", die)
        with pytest.raises(Killed):
            train(config, runs=runs, **options)


def rows(run):
    with open(run.history_file, newline="") as file:
        return list(csv.reader(file))


def events(run):
    """The steps of the monitor events in TensorBoard."""
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    return [event.step for event in board.Scalars("monitor/precision_at_1")]


@pytest.mark.slow
@pytest.mark.parametrize("initial", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_run_killed_before_its_first_checkpoint_starts_again(initial, tmp_path, config, monkeypatch):
    if initial:
        train(replace(config, run="before", epochs=1, seed=3), runs=tmp_path)
        config = replace(config, initial_weights=str(tmp_path / "before"))
    train(replace(config, run="whole"), runs=tmp_path)
    killed_at(monkeypatch, config, tmp_path, 2)
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "r")
    assert broken.config_file.is_file()
    assert not broken.checkpoint_file.exists()
    (broken.path / "notes.txt").write_text("a person's own")
    train(config, runs=tmp_path, resume=True)
    assert rows(broken) == rows(whole)
    assert events(broken) == events(whole)
    assert np.array_equal(*map(vectors_of, (whole, broken)))
    assert (broken.path / "notes.txt").exists()
    assert not list(broken.path.glob(".*"))
    if initial:
        return
    config = replace(config, run="later")  # and one killed after a checkpoint resumes exactly
    killed_at(monkeypatch, config, tmp_path, 4, saves=True)
    later = Run(tmp_path / "later")
    assert read_progress(later.checkpoint_file).step == 4
    train(config, runs=tmp_path, resume=True)
    assert rows(later) == rows(whole)
    assert np.array_equal(*map(vectors_of, (whole, later)))


@pytest.mark.slow
@pytest.mark.parametrize("step", [NIGHTLY(2), 3, NIGHTLY(6)])  # at the end of an epoch, before its ranking; inside one
def test_early_stopping_counts_the_rankings_before_a_kill(step, tmp_path, config, monkeypatch):
    look = Monitor.look

    def worse_each_time(self, vectors_of, step):
        return look(self, vectors_of, step) | {self.figure: -step}

    monkeypatch.setattr(Monitor, "look", worse_each_time)
    config = replace(config, epochs=9, steps_per_epoch=2, early_stopping=2)
    train(replace(config, run="whole"), runs=tmp_path)
    killed_at(monkeypatch, config, tmp_path, step, saves=True)
    train(config, runs=tmp_path, resume=True)
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "r")
    assert len(rows(whole)) == 1 + 2 * 3  # the first ranking is the best, and two more are not better
    assert rows(broken) == rows(whole)
    assert events(broken) == events(whole)
    assert np.array_equal(*map(vectors_of, (whole, broken)))


def test_a_stop_during_a_ranking_is_saved(tmp_path, config, monkeypatch):
    look = Monitor.look

    def press_ctrl_c(self, vectors_of, step):
        os.kill(os.getpid(), signal.SIGINT)
        return look(self, vectors_of, step)

    config = replace(config, steps_per_epoch=2)
    train(replace(config, run="whole"), runs=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "look", press_ctrl_c)
        with pytest.raises(Interrupted, match="after step 2 of 4, and saved"):
            train(config, runs=tmp_path)
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "r")
    assert read_progress(broken.checkpoint_file).step == 2
    train(config, runs=tmp_path, resume=True)
    assert rows(broken) == rows(whole)
    assert events(broken) == events(whole)
    assert np.array_equal(*map(vectors_of, (whole, broken)))


@pytest.mark.parametrize("folder", ["none", "empty", "half written"])
def test_a_run_that_was_never_started_is_started(folder, tmp_path, config):
    if folder != "none":
        (tmp_path / "r").mkdir()
    if folder == "half written":
        (tmp_path / "r" / ".config.x1.json").write_text("{")
    with pytest.raises(RunError, match=r"has not been started; name the --data"):
        train(replace(config, data=None), runs=tmp_path, resume=True)
    assert train(replace(config, epochs=1), runs=tmp_path, resume=True).run.finished


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path, config):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").touch()
    with pytest.raises(RunError, match="exists and is not a run folder"):
        train(config, runs=tmp_path, resume=True)


def test_the_images_may_lie_elsewhere_but_must_be_the_same(tmp_path, folders, config, monkeypatch):
    killed_at(monkeypatch, config, tmp_path, 2, saves=True)
    broken = Run(tmp_path / "r")
    moved = shutil.copytree(folders, tmp_path / "moved")
    fewer = shutil.copytree(folders, tmp_path / "fewer")
    (fewer / "disc" / "disc_0.png").unlink()
    renamed = shutil.copytree(folders, tmp_path / "renamed")
    (renamed / "disc" / "disc_0.png").rename(renamed / "disc" / "other.png")
    with pytest.raises(RunError, match=r"started with 96 other images, not with the 95 images in .*fewer"):
        train(replace(config, data=str(fewer)), runs=tmp_path, resume=True)
    with pytest.raises(RunError, match="started with the same number of other images"):
        train(replace(config, data=str(renamed)), runs=tmp_path, resume=True)
    assert broken.config().data == config.data
    with pytest.raises(RunError, match="other values of --seed"):
        train(replace(config, seed=1), runs=tmp_path, resume=True)
    model = train(replace(config, data=str(moved), onnx=True), runs=tmp_path, resume=True)
    assert model.run.config().data == str(moved)
    assert model.run.config().onnx  # the exports read it there
    assert model.index.root == moved
    assert len(rows(broken)) == 7


def test_a_scheduler_that_always_says_resume(tmp_path, folders):
    """It starts the run; once finished, it reports so and exits with 0."""
    arguments = [
        *("train.py", "--resume", "--run", "r", "--image-size", 16, "--backbone", "resnet10", "--width", 4),
        *("--embedding-dim", 8, "--epochs", 1, "--steps-per-epoch", 2, "--batch-size", 8, "--shift", 1),
    ]
    refused = script(tmp_path, *arguments)
    assert refused.returncode == 2
    assert "runs/r has not been started; name the --data to start it with" in refused.stderr.splitlines()[-1]
    for words in ("finished: runs/r", "runs/r is finished; there is nothing to resume"):
        result = script(tmp_path, *arguments, "--data", folders)
        assert result.returncode == 0, result.stderr
        assert result.stderr.splitlines()[-1] == words
    other = script(tmp_path, *arguments, "--data", folders, "--seed", 5)
    assert other.returncode == 2
    assert "other values of --seed" in other.stderr


def test_training_leaves_the_process_unchanged(tmp_path, config):
    import tensorflow as tf
    from tensorflow.python.framework import config as tensorflow_config

    assert not tensorflow_config.is_op_determinism_enabled()
    train(replace(config, epochs=1), runs=tmp_path)
    assert not tensorflow_config.is_op_determinism_enabled()
    assert tf.config.get_visible_devices()


# NaN and infinite embeddings.


def test_a_diverged_network_is_one_line(tmp_path, folders):
    flags = [
        *("--data", folders, "--run", "r", "--image-size", 16, "--backbone", "resnet10", "--width", 4, "--shift", 1),
        *("--embedding-dim", 8, "--epochs", 2, "--pretrain-epochs", 0, "--batch-size", 8, "--optimizer", "sgd"),
        *("--monitor", 0.1),
    ]
    bad = ("--learning-rate", "1e30", "--warmup", 0, "--steps-per-epoch", 1)
    result = script(tmp_path, "train.py", *flags, *bad)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "--learning-rate" in result.stderr.splitlines()[-1]
    again = script(tmp_path, "train.py", "--resume", "--run", "r")
    assert again.returncode == 2, again.stderr
    assert "--learning-rate" in again.stderr.splitlines()[-1]
    good = script(tmp_path, "train.py", *flags, "--overwrite", "--steps-per-epoch", 1)
    assert good.returncode == 0, good.stderr


def test_a_damaged_network_is_one_line_wherever_it_embeds(tmp_path, folders, config, monkeypatch):
    import keras

    from dr_keras.embedders import check_finite
    from dr_keras.evaluation.evaluate import evaluate_run

    model = train(replace(config, epochs=1), runs=tmp_path)
    network = keras.models.load_model(model.run.network_file)
    network.set_weights([np.full(w.shape, np.nan, w.dtype) for w in network.get_weights()])
    network.save(model.run.network_file)
    query = folders / "disc" / "disc_0.png"
    shutil.copy(query, tmp_path / "query.png")
    with pytest.raises(InputError, match="1 of 1 embeddings are not numbers"):
        model.search([tmp_path / "query.png"])
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "more", each=2, seed=9)
    for arguments in (
        ("retrieve.py", "--query", "query.png", "--run", "r"),
        ("index.py", "add", "more", "--run", "r", "--index", "new"),
        ("evaluate.py", "--run", "r", "--data", folders, "--no-baselines"),
    ):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        shutil.copytree(tmp_path / "r", tmp_path / "runs" / "r")
        result = script(tmp_path, *arguments)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert "embeddings are not numbers" in result.stderr.splitlines()[-1]
    model.index.vectors  # noqa: B018 - the run's own index, which may hold vectors of a damaged run
    monkeypatch.setattr("dr_keras.evaluation.ranked_images.RankedImages.of_index", _with_nan(model))
    with pytest.raises(InputError, match="1 of 96 embeddings are not numbers"):
        evaluate_run(model, baselines=False)
    for bad in (np.nan, np.inf, -np.inf):
        vectors = np.zeros((3, 4), np.float32)
        vectors[1, 2] = bad
        with pytest.raises(InputError, match="1 of 3 embeddings"):
            check_finite(vectors)
    assert check_finite(np.empty((0, 4), np.float32)).shape == (0, 4)


def _with_nan(model):
    from dr_keras.evaluation.ranked_images import RankedImages

    images = RankedImages.of_index(model.index)
    vectors = np.array(images.vectors)
    vectors[5, 0] = np.nan
    return lambda _: replace(images, vectors=vectors)
