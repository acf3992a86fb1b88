"""Augmentation on the JAX device against the same draws applied by Pillow."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, script
from test_resume import rows, start_and_signal

from dr_keras.config import Config
from dr_keras.data.augment_pillow import augmented, mixed
from dr_keras.data.augmentation_draws import Augmentation
from dr_keras.data.batches import Share
from dr_keras.runs import Run
from dr_keras.training.sources import training_sources
from dr_keras.training.weight_average import _blended, _blended_on_device

jax = pytest.importorskip("jax")
from dr_keras.data import augment_jax  # noqa: E402

pytestmark = pytest.mark.jax

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.integers(0, 20, 48)


def smooth(count=20, height=32, width=32):
    """Images without noise, where a rounding error of one stays one."""
    coarse = RANDOM.integers(0, 256, (count, 5, 5, 3)).astype(np.float32)
    made = jax.image.resize(coarse, (count, height, width, 3), "cubic")
    return np.clip(np.asarray(made), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("how", [Augmentation(), Augmentation(flip=True), Augmentation(flip=True, shift=5)])
def test_moves_by_whole_pixels_are_the_same(how):
    pixels = RANDOM.integers(0, 256, (20, 24, 32, 3), dtype=np.uint8)
    expected = augmented(pixels, ROWS, how, seed=(1, 2))
    found = augment_jax.augmented(augment_jax.to_device(pixels), ROWS, how, seed=(1, 2))
    assert isinstance(found, jax.Array)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [None, 16, 24, 48])
@pytest.mark.parametrize(
    ("how", "apart"),
    [
        (Augmentation(flip=True, crop=0.3), 1),
        (Augmentation(flip=True, shift=4, color=0.5), 3),  # brightness can double rounding errors
        (Augmentation(erase=1.0), 1),
        (Augmentation(flip=True, crop=0.5, color=0.2, erase=0.5), 3),
    ],
)
def test_crops_colors_and_holes_are_the_same_but_for_rounding(how, apart, size):
    pixels = smooth()
    expected = augmented(pixels, ROWS, how, size=size, seed=(1, 2)).astype(int)
    found = np.asarray(augment_jax.augmented(augment_jax.to_device(pixels), ROWS, how, size=size, seed=(1, 2)))
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= apart


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness"])
def test_each_operation_is_the_same_but_for_rounding(name, monkeypatch):
    monkeypatch.setattr("dr_keras.data.augmentation_draws.OPERATIONS", (name,))
    pixels, how = smooth(), Augmentation(operations=1)
    expected = augmented(pixels, ROWS, how, size=24, seed=(3,)).astype(int)
    found = augment_jax.augmented(augment_jax.to_device(pixels), ROWS, how, size=24, seed=(3,))
    differences = np.abs(np.asarray(found) - expected).max(axis=-1)
    assert np.median(differences) <= 1
    assert (differences > 3).mean() < 0.002  # a pixel on an edge may fall on either side
    assert np.abs(expected - augmented(pixels, ROWS, Augmentation(), size=24)).max() > 30  # the operation had an effect


@pytest.mark.parametrize("name", ["posterize", "solarize"])
def test_tables_are_the_same(name, monkeypatch):
    monkeypatch.setattr("dr_keras.data.augmentation_draws.OPERATIONS", (name,))
    pixels, how = RANDOM.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8), Augmentation(operations=2)
    expected = augmented(pixels, ROWS, how, seed=(4,))
    assert np.array_equal(augment_jax.augmented(augment_jax.to_device(pixels), ROWS, how, seed=(4,)), expected)
    assert not np.array_equal(expected, pixels[ROWS])


def test_part_of_a_batch_equals_that_part_of_the_whole():
    pixels, how = augment_jax.to_device(smooth()), Augmentation(True, 0, 0.4, 0.4, 2, 0.5)
    whole = np.asarray(augment_jax.augmented(pixels, ROWS, how, seed=(5,)))
    assert np.array_equal(augment_jax.augmented(pixels, ROWS, how, seed=(5,), part=slice(10, 30)), whole[10:30])


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.4, 0.4)])
def test_mixing_is_the_same(mixup, cutmix):
    images = RANDOM.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    expected, partner, own = mixed(images, mixup=mixup, cutmix=cutmix, seed=(6,))
    found, found_partner, found_own = augment_jax.mixed(
        augment_jax.to_device(images), mixup=mixup, cutmix=cutmix, seed=(6,)
    )
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= (1 if mixup else 0)
    assert np.array_equal(found_partner, partner)
    assert np.array_equal(found_own, own)


def test_the_average_of_weights_is_the_same_and_shares_no_memory():
    weights = [RANDOM.normal(size=(5, 4)).astype(np.float32), np.array([3, 4], np.uint32)]
    averages = [RANDOM.normal(size=(5, 4)).astype(np.float32), np.array([1, 2], np.uint32)]
    blended = _blended_on_device()
    for decay in (0.9, 0.0):
        arrays, others = [jax.numpy.array(each) for each in weights], [jax.numpy.array(each) for each in averages]
        found = blended(others if decay else arrays, arrays, decay)
        for one, expected in zip(found, _blended(averages, weights, decay), strict=True):
            np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
        for array in arrays:
            array.delete()  # as the next step does by overwriting it
        assert np.isfinite(found[0]).all()
        assert np.array_equal(found[1], weights[1])


def tiny(folders, run, *more):
    return [
        *("--data", folders, "--run", run, "--store", "device", "--image-size", 24, "--progressive", "none"),
        *("--backbone", "resnet10", "--width", 4, "--stem-stride", 1, "--embedding-dim", 8, "--epochs", 2),
        *("--pretrain-epochs", 1, "--batch-size", 8, "--shift", 1, "--crop", 0.5, "--operations", 2, "--cutmix", 0.5),
        *("--mixup", 0.2, "--erase", 0.1, "--weight-average", 0.9, "--monitor", 0.1, "--validation", 0.2),
        *("--checkpoint-minutes", 0.002, "--eval-every", 0, *more),
    ]


@pytest.mark.nightly
@pytest.mark.usefixtures("jax_programs")
def test_a_run_with_its_store_on_the_device_is_resumed_where_it_was_killed(tmp_path, folders, refuse, monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)  # the store selects JAX by itself
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name, value in refuse("tensorflow").items():  # skips the export
        monkeypatch.setenv(name, value)
    whole, broken = Run(tmp_path / "runs" / "whole"), Run(tmp_path / "runs" / "broken")
    result = script(tmp_path, "train.py", *tiny(folders, "whole"), process=True)
    assert result.returncode == 0, result.stderr
    child = start_and_signal(tmp_path, [str(flag) for flag in tiny(folders, "broken")], broken, 4, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stderr.close()
    assert not broken.finished
    command = [sys.executable, "-m", "dr_keras", "pack", str(broken.path), str(tmp_path / "packed")]
    packed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert packed.returncode == 0, packed.stderr
    assert (tmp_path / "packed" / "broken.tar.000").is_file()
    result = script(
        tmp_path, "train.py", "--resume", "--run", "broken", "--store", "memory", env={"KERAS_BACKEND": "jax"}
    )
    assert result.returncode == 2
    assert "other values of --store" in result.stderr
    result = script(tmp_path, "train.py", "--resume", "--run", "broken", process=True)
    assert result.returncode == 0, result.stderr
    assert "resuming after step" in result.stderr
    one, other = (np.array(rows(run)) for run in (whole, broken))
    assert one.shape == other.shape
    assert np.array_equal(one[:, 0], other[:, 0])
    for name in ("loss", "classifier_loss", "triplet_loss"):
        column = one[0].tolist().index(name)
        filled = one[1:, column] != ""
        assert np.array_equal(filled, other[1:, column] != "")
        found, expected = (table[1:, column][filled].astype(float) for table in (other, one))
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)  # JAX does not guarantee the last digit


def test_every_batch_on_the_device_has_one_shape_and_holds_every_image():
    config = Config(store="device", batch_size=10, image_size=16, shift=1, progressive="none")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (47, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(47) % 4
    sources = training_sources(config, pixels, np.arange(47), labels, Share())
    for source, count in ((sources["softmax"], 30), (sources["triplets"], 10)):
        batches = [source.batch(step) for step in range(source.steps_per_epoch)]
        assert {len(value) for batch in batches for value in batch.values()} == {count}
    seen = np.concatenate([source.batch(step)["classes"][:, 0] for step in range(source.steps_per_epoch)])
    assert len(seen) == 50  # 47 queries, with three of the last batch repeated


def test_a_store_on_the_device_takes_one_device(tmp_path, folders):
    env = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    result = script(tmp_path, "train.py", *tiny(folders, "r"), env=env)
    assert result.returncode == 2
    assert "on one device, and there are 2" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("said", [None, "elsewhere"])
def test_what_is_compiled_for_a_gpu_is_kept(tmp_path, said):
    """On a CPU posing as a GPU."""
    code = (
        "import jax\n"
        "from dr_keras.config import RunConfig\n"
        "from dr_keras.training import devices\n"
        "devices.on_gpu = lambda: True\n"
        "devices.set_up_devices(RunConfig(), batch_size=64)\n"
        "jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))).block_until_ready()\n"
    )
    env = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "DR_KERAS_CACHE": str(tmp_path / "cache")}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
    if said:
        env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / said)
    subprocess.run([sys.executable, "-c", code], env=os.environ | env, check=True, cwd=tmp_path)
    assert any((tmp_path / (said or "cache/programs")).iterdir())
    assert (tmp_path / "cache").exists() == (said is None)


def test_a_store_on_the_device_needs_jax(tmp_path, folders):
    result = script(tmp_path, "train.py", *tiny(folders, "r"), env={"KERAS_BACKEND": "tensorflow"})
    assert result.returncode == 2
    assert "--store device needs JAX, and Keras runs on tensorflow" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
