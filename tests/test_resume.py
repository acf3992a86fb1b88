"""A run that is stopped or killed continues as if nothing had happened."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, script, vectors_of

from dr_keras.config import Config
from dr_keras.errors import InputError, RunError
from dr_keras.model.network import initial_network
from dr_keras.runs import Run
from dr_keras.training.callbacks import Checkpoints, EachEpoch, StepLog
from dr_keras.training.checkpoint import (
    Progress,
    Rankings,
    read_progress,
    reduce_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from dr_keras.training.compile import compiled_model
from dr_keras.training.reporters import METRICS, CollapseAlarm, History

SMALL = Config(backbone="alexnet", embedding_dim=8, image_size=16, multiscale=False, batch_size=4)


def flags(folders: Path, run: str) -> list[str]:
    return [
        *("--data", str(folders), "--run", run, "--image-size", "16", "--backbone", "resnet10", "--width", "4"),
        *("--embedding-dim", "8", "--epochs", "3", "--steps-per-epoch", "40", "--batch-size", "8", "--shift", "1"),
        *("--deterministic", "--checkpoint-minutes", "0.002", "--eval-every", "0"),
    ]


def rows(run: Run) -> list[list[str]]:
    with open(run.history_file, newline="") as file:
        return list(csv.reader(file))


def start_and_signal(place: Path, arguments: list[str], run: Run, steps: int, number: int) -> subprocess.Popen[str]:
    """Starts train.py, waits until history.csv has `steps` more rows, and sends it a signal."""
    before = len(rows(run)) if run.history_file.exists() else 0
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=place, stderr=subprocess.PIPE, text=True
    )
    ends = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < ends:
        if run.checkpoint_file.exists() and run.history_file.exists() and len(rows(run)) >= before + steps:
            break
        time.sleep(0.02)
    child.send_signal(number)
    return child


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken_to_the_last_digit(tmp_path, folders):
    whole, broken = Run(tmp_path / "runs" / "whole"), Run(tmp_path / "runs" / "broken")
    result = script(tmp_path, "train.py", *flags(folders, "whole"))
    assert result.returncode == 0, result.stderr

    child = start_and_signal(tmp_path, flags(folders, "broken"), broken, 10, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stderr.close()
    assert not broken.finished
    child = start_and_signal(tmp_path, ["--resume", "--run", "broken"], broken, 5, signal.SIGINT)
    message = child.communicate(timeout=120)[1]
    assert child.returncode == 130, message
    assert message.splitlines()[-1].endswith("go on with: python train.py --resume --run broken")
    assert "Traceback" not in message
    assert 0 < read_progress(broken.checkpoint_file).step < 120

    refused = script(tmp_path, "train.py", "--resume", *flags(folders, "broken"), "--seed", "7")
    assert refused.returncode == 2
    assert "other values of --seed" in refused.stderr

    result = script(tmp_path, "train.py", "--resume", *flags(folders, "broken"))
    assert result.returncode == 0, result.stderr
    assert len(rows(whole)) == 121
    assert rows(broken) == rows(whole)
    assert np.array_equal(*map(vectors_of, (whole, broken)))
    assert not broken.checkpoint_file.exists()

    again = script(tmp_path, "train.py", "--resume", "--run", "broken")
    assert again.returncode == 0
    assert "is finished" in again.stderr


STAGES = [
    *("--image-size", "24", "--progressive", "16:0.5", "--weight-average", "0.9", "--mining", "distance-weighted"),
    *("--proxies", "2", "--crop", "0.6", "--mixup", "0.3", "--operations", "1"),
]

DIES_AT_THE_BOUNDARY = """
import sys
from dr_keras.config import Config
from dr_keras.training import callbacks
from dr_keras.training.run import run_training
import json, os
callbacks.Checkpoints.MIN_INTERVAL_IN_SAVES = 0
at_end = callbacks.Checkpoints.on_epoch_end
def die(self, epoch, logs=None):
    at_end(self, epoch, logs)
    if epoch == 1:
        os.kill(os.getpid(), 9)
callbacks.Checkpoints.on_epoch_end = die
run_training(Config(**json.loads(sys.argv[1])))
"""


@pytest.mark.nightly
def test_killed_at_the_end_of_a_stage_and_of_an_image_size_equals_unbroken(tmp_path, folders):
    """Stages change after 80 of 120 steps, sizes at the first epoch after 60 steps."""
    whole, broken = Run(tmp_path / "runs" / "whole"), Run(tmp_path / "runs" / "broken")
    result = script(tmp_path, "train.py", *flags(folders, "whole"), *STAGES)
    assert result.returncode == 0, result.stderr
    assert "epochs 1 to 2: softmax, 16 px" in result.stderr
    assert "epochs 3 to 3: triplets, 24 px" in result.stderr

    settings = whole.config().to_dict() | {"run": "broken"}
    dead = subprocess.run(
        [sys.executable, "-c", DIES_AT_THE_BOUNDARY, json.dumps(settings)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert read_progress(broken.checkpoint_file).step == 80
    assert read_progress(broken.checkpoint_file).phase == 0
    child = start_and_signal(tmp_path, ["--resume", "--run", "broken"], broken, 7, signal.SIGINT)
    message = child.communicate(timeout=120)[1]
    assert child.returncode == 130, message
    assert 80 < read_progress(broken.checkpoint_file).step < 120
    assert read_progress(broken.checkpoint_file).phase == 1
    result = script(tmp_path, "train.py", "--resume", "--run", "broken")
    assert result.returncode == 0, result.stderr
    assert rows(broken) == rows(whole)
    assert np.array_equal(*map(vectors_of, (whole, broken)))
    table = {line[0]: dict(zip(rows(whole)[0], line, strict=True)) for line in rows(whole)[1:]}
    assert table["79"]["triplet_accuracy"] == ""
    assert float(table["80"]["triplet_accuracy"]) >= 0
    assert float(table["80"]["proxy_loss"]) >= 0


def model(seed: int = 0) -> keras.Model:
    config = Config(**{**SMALL.to_dict(), "seed": seed})
    return compiled_model(initial_network(config), ranking=config, optimizer=config, steps=10)


def batch(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    images = {name: random.integers(0, 256, (4, 16, 16, 3), np.uint8) for name in ("query", "positive", "negative")}
    return images | {"classes": np.zeros((4, 2), np.int32)}


def test_a_checkpoint_holds_weights_optimizer_and_random_states(tmp_path):
    one, other = model(0), model(1)
    for step in range(3):
        one.train_on_batch(batch(step))
    save_checkpoint(tmp_path / "c.npz", one, Progress(3, 99, 1, Rankings(4, 0.5, 2)))
    assert read_progress(tmp_path / "c.npz") == Progress(3, 99, 1, Rankings(4, 0.5, 2))
    restore_checkpoint(tmp_path / "c.npz", other)
    assert int(other.optimizer.iterations) == 3
    for step in range(3, 6):  # AlexNet has dropout: equal losses require equal random states
        expected, found = (each.train_on_batch(batch(step), return_dict=True) for each in (one, other))
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_a_reduced_checkpoint_keeps_the_moments_that_come_in_two(optimizer, tmp_path):
    file, reduced = tmp_path / "c.npz", tmp_path / "r.npz"
    config = Config(**{**SMALL.to_dict(), "optimizer": optimizer, "proxies": 1, "images_per_class": 1})
    one = compiled_model(initial_network(config), ranking=config, optimizer=config, steps=10, classes=2)
    one.train_on_batch(batch(0))
    save_checkpoint(file, one, Progress(1, 0))
    reduce_checkpoint(file, reduced)
    variables = [*one.variables, *one.optimizer.variables]
    with np.load(reduced) as archive:
        kept = {int(name) for name in archive.files if name.isdigit()}
        exact = {n for n in kept if np.array_equal(archive[str(n)], keras.ops.convert_to_numpy(variables[n]))}
    first = len(one.variables)
    velocities = {n for n in range(first, len(variables)) if variables[n].path.endswith("velocity")}
    assert velocities <= exact
    left_out = {variables[n].path for n in range(first, len(variables)) if n not in kept}
    assert left_out.isdisjoint(variables[n].path.replace("velocity", "momentum") for n in velocities)
    assert bool(velocities) == (optimizer != "sgd")
    assert bool(left_out) == (optimizer != "adamw")
    if optimizer == "muon":
        assert any(variables[n].ndim == 3 for n in velocities)  # those of the class proxies


def test_a_bad_checkpoint_is_a_clear_error(tmp_path):
    file = tmp_path / "c.npz"
    with pytest.raises(RunError, match="nothing to resume"):
        read_progress(file)
    one = model()
    one.train_on_batch(batch(0))
    save_checkpoint(file, one, Progress(1, 0))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="damaged"):
        read_progress(file)
    middle = len(data) // 2
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    with pytest.raises(RunError, match="damaged"):
        restore_checkpoint(file, model())
    file.write_bytes(data)
    config = Config(**{**SMALL.to_dict(), "embedding_dim": 9})
    with pytest.raises(RunError, match="a different network"):
        restore_checkpoint(file, compiled_model(initial_network(config), ranking=config, optimizer=config, steps=10))


def test_history_drops_the_rows_that_a_checkpoint_does_not_cover(tmp_path):
    row = dict.fromkeys(METRICS, 0.1) | {"epoch": 0, "learning_rate": 1e-3}
    history = History(tmp_path / "h.csv")
    history([row | {"step": step} for step in range(5)])
    history.close()
    with open(tmp_path / "h.csv", "a") as file:
        file.write("5,0,0.0")  # cut off during the write
    history = History(tmp_path / "h.csv", first_step=3)
    history([row | {"step": 3}])
    history.close()
    with open(tmp_path / "h.csv", newline="") as file:
        assert [line["step"] for line in csv.DictReader(file)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(value):
    seen = []
    log = StepLog(7, lambda _: 1e-3, [seen.extend])
    log.on_train_batch_end(0, dict.fromkeys(METRICS, 0.5))
    log.on_train_batch_end(1, dict.fromkeys(METRICS, value))
    with pytest.raises(InputError, match=r"at step 8; try a lower --learning-rate$"):
        log.flush()
    assert [row["step"] for row in seen] == [7, 8]


def test_collapse_is_reported_once_after_200_steps():
    def row(step, loss, pairwise):
        return {"step": step, "triplet_loss": loss, "pairwise_distance": pairwise}

    for loss, pairwise, alarms in ((0.995, 0.5, 1), (0.4, 0.001, 1), (0.9, 0.5, 0)):
        said = []
        alarm = CollapseAlarm(said.append, margin=1.0)
        alarm([row(step, loss, pairwise) for step in range(199)])
        assert not said
        alarm([row(step, loss, pairwise) for step in range(199, 700)])
        assert len(said) == alarms
    for margin, loss in ((None, 1.0), (1.0, None)):  # mined triplets, and the softmax stage
        said = []
        values = {} if loss is None else {"triplet_loss": loss}
        CollapseAlarm(said.append, margin)([values | {"step": s, "pairwise_distance": 0.5} for s in range(300)])
        assert not said
        CollapseAlarm(said.append, margin)([values | {"step": s, "pairwise_distance": 0.0} for s in range(300)])
        assert len(said) == 1
    said = []  # a single query has no distance to others
    CollapseAlarm(said.append, margin=1.0, single=True)([row(step, 0.5, 0.0) for step in range(300)])
    assert not said
    said = []
    alarm = CollapseAlarm(said.append, margin=1.0)
    for step in range(1000):  # an occasional bad step is not a collapse
        alarm([row(step, 0.5 if step % 150 == 0 else 1.0, 0.5)])
    assert not said


def test_the_end_of_an_epoch_is_saved_where_saving_is_cheap(monkeypatch):
    now, saved = [0.0], []

    def save():
        saved.append(now[0])
        now[0] += 2  # seconds a save takes

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(save, minutes=5)
    checkpoints.set_model(keras.Sequential())
    for epoch in range(40):
        now[0] += 10
        checkpoints.on_train_batch_end(0)
        checkpoints.on_epoch_end(epoch)
    assert saved[0] == 10  # the duration of a save is not known yet
    assert np.diff(saved).min() >= 50 * 2
    assert len(saved) == 4
    now[0] = saved[-1] + 2 + 300  # in the middle of an epoch
    checkpoints.on_train_batch_end(0)
    assert len(saved) == 5


def test_early_stopping_counts_rankings_without_a_better_one():
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.4])
    each = EachEpoch(lambda _: next(figures), every=2, epochs=100, patience=2)
    each.set_model(keras.Sequential())
    stopped = []
    for epoch in range(9):
        each.model.stop_training = False
        each.on_epoch_end(epoch)
        stopped.append(each.stopped)
    assert stopped == [False] * 7 + [True, True]


def test_early_stopping_waits_for_the_last_phase():
    figures = iter([0.9, 0.2, 0.1, 0.3])
    each = EachEpoch(lambda _: next(figures), every=1, epochs=100, patience=1)
    each.set_model(keras.Sequential())
    each.model.stop_training = False
    each.patient = True
    for epoch in range(3):
        each.on_epoch_end(epoch)
        assert not each.stopped
    each.patient = False
    each.on_epoch_end(3)
    assert not each.stopped  # 0.3 is the best of this phase, but not overall


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, folders):
    (tmp_path / "runs").mkdir(mode=0o555)
    result = script(tmp_path, "train.py", *flags(folders, "r"))
    assert result.returncode == 2
    assert "cannot be created" in result.stderr.splitlines()[-1]
