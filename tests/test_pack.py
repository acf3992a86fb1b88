"""Packed runs: small, complete, and usable on another machine."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import script
from test_resume import flags, rows, start_and_signal

from dr_keras.cli.pack import pack
from dr_keras.errors import InputError, RunError
from dr_keras.export.release import release
from dr_keras.runs import Run
from dr_keras.training.checkpoint import read_progress


def unpack(parts, runs):
    """Unpacks as documented: cat NAME.tar.* | tar x -C runs"""
    runs.mkdir()
    subprocess.run(["tar", "x", "-C", str(runs)], input=b"".join(part.read_bytes() for part in parts), check=True)


@pytest.mark.nightly
def test_an_unfinished_run_goes_on_elsewhere(tmp_path, folders):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    run = Run(here / "runs" / "r")
    averaged = ("--weight-average", "0.9", "--optimizer", "sgd", "--learning-rate", "0.05", "--steps-per-epoch", "20")
    child = start_and_signal(here, [*flags(folders, "r"), *averaged], run, 10, signal.SIGINT)
    message = child.communicate(timeout=120)[1]
    assert child.returncode == 130, message
    parts = pack(run, tmp_path / "packed", part=100_000)
    assert [part.name for part in parts] == [f"r.tar.{number:03d}" for number in range(len(parts))]
    assert max(part.stat().st_size for part in parts) <= 100_000
    there.mkdir()
    unpack(parts, there / "runs")
    arrived = Run(there / "runs" / "r")
    assert arrived.checkpoint_file.stat().st_size < 0.5 * run.checkpoint_file.stat().st_size
    assert read_progress(arrived.checkpoint_file) == read_progress(run.checkpoint_file)
    for place in (here, there):
        result = script(place, "train.py", "--resume", "--run", "r")
        assert result.returncode == 0, result.stderr
    whole, carried = rows(run), rows(arrived)
    assert len(carried) == len(whole)
    begun = next(number for number, row in enumerate(whole) if row != carried[number])
    assert begun > 5  # the two histories agree up to there
    loss = whole[0].index("loss")
    apart = [abs(float(a[loss]) - float(b[loss])) for a, b in zip(whole[begun:], carried[begun:], strict=True)]
    assert apart[0] < 0.02  # half precision, at the first step after that


def test_parts_are_named_after_the_folder_and_sort_in_order(workplace, tmp_path, monkeypatch):
    run = Run(workplace / "runs" / "small")
    monkeypatch.setattr("dr_keras.cli.pack.PACKED_FILES", ("config.json",))
    monkeypatch.setattr("dr_keras.model.released.write_weights", lambda file, _: file.touch())
    monkeypatch.chdir(run.path)
    with pytest.raises(InputError, match="--part is 0"):
        pack(Run(Path()), tmp_path, part=0)
    parts = pack(Run(Path()), tmp_path, part=10)
    assert len(parts) > 1000
    assert [part.name for part in parts] == sorted(part.name for part in tmp_path.iterdir())
    unpack(parts, tmp_path / "runs")
    assert (tmp_path / "runs" / "small" / "config.json").read_bytes() == run.config_file.read_bytes()


@pytest.mark.nightly
@pytest.mark.usefixtures("export_here")
def test_a_finished_run_can_be_searched_with_exported_and_released(workplace, tmp_path):
    run = Run(workplace / "runs" / "small")
    parts = pack(run, tmp_path / "packed")
    unpack(parts, tmp_path / "runs")
    arrived = Run(tmp_path / "runs" / "small")
    assert not arrived.network_file.exists()
    assert arrived.history_file.read_bytes() == run.history_file.read_bytes()
    exported = script(tmp_path, "train.py", "--export-only", "--run", "small")
    assert exported.returncode == 0, exported.stderr
    assert arrived.litert_file.is_file()
    differences = release(arrived, Run(tmp_path / "model"))
    assert differences["rounding"] == 0.0  # already rounded when packed
    release(run, Run(tmp_path / "other"))
    assert (tmp_path / "other" / "weights.npz").read_bytes() == (tmp_path / "model" / "weights.npz").read_bytes()


def test_what_cannot_be_packed_is_a_clear_error(workplace, tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        pack(Run(tmp_path / "none"), tmp_path / "packed")
    half = Run(tmp_path / "half")
    shutil.copytree(workplace / "runs" / "small", half.path)
    half.metrics_file.unlink()
    with pytest.raises(RunError, match="nothing to resume"):
        pack(half, tmp_path / "packed")
    half.write_config(type(half.config())(**{**half.config().to_dict(), "optimizer": "adamw"}))
    with pytest.raises(RunError, match="adamw"):
        pack(half, tmp_path / "packed")
    assert not list((tmp_path / "packed").iterdir())
    (tmp_path / "packed" / "half.tar.000").write_bytes(b"an earlier one")
    with pytest.raises(RunError, match="adamw"):
        pack(half, tmp_path / "packed")
    assert (tmp_path / "packed" / "half.tar.000").read_bytes() == b"an earlier one"
