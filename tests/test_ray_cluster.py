"""Commands on a Ray cluster of several nodes on loopback give what they give without it, whatever dies meanwhile."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, draw_encoded, script, write_folders
from ray_nodes import RayNodes, needs_ray
from ray_work import Doubles, Tells
from s3_server import BUCKET, store

from dr_keras.index.index import Entry, Index
from dr_keras.progress import stderr
from dr_keras.ray_jobs.cluster import Lost, RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes():
    """Two nodes of one core, whose workers find the modules of the tests."""
    needs_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        with RayNodes(1, 1) as made:
            yield made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """300 pictures and two files that are none."""
    needs_ray()
    folder = write_folders(tmp_path_factory.mktemp("pictures") / "mine", each=75, seed=5)
    (folder / "disc" / "broken.png").write_bytes(b"not a picture")
    (folder / "rings" / "empty.jpg").write_bytes(b"")
    return folder


def entries(place: Path) -> dict[str, tuple[Entry, np.ndarray]]:
    with Index.open(place) as index:
        assert not index.verify()
        listing = index.records.listing()
        found = {id: (index.records.entries([row])[0], np.array(index.vectors[[row]][0])) for row, id, *_ in listing}
        assert len(found) == len(listing)
        return found


def assert_equal(place: Path, other: Path) -> None:
    ours, theirs = entries(place), entries(other)
    assert ours.keys() == theirs.keys()
    for id, (entry, vector) in ours.items():
        assert entry == theirs[id][0]
        assert np.abs(vector - theirs[id][1]).max() <= 1e-6
    with Index.open(place) as one, Index.open(other) as two:
        assert one.image_files.skipped() == two.image_files.skipped()


def add_flags(pictures: Path, workplace: Path, index: str) -> list[object]:
    run = workplace / "runs" / "small"
    return ["add", pictures, "--run", run, "--index", index, "--runtime", "litert", "--set", "year=2021", "--parts", 3]


@contextmanager
def started_script(place: Path, arguments: Sequence[object]) -> Iterator[subprocess.Popen[str]]:
    """Runs index.py, and ends it with the block."""
    command = [sys.executable, str(ROOT / "index.py"), *map(str, arguments)]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.nightly
def test_a_worker_and_a_node_are_killed_midway(pictures, workplace, tmp_path):
    started = time.monotonic()
    assert script(tmp_path, "index.py", *add_flags(pictures, workplace, "local")).returncode == 0
    with RayNodes(1, 1, 1) as nodes:
        command = [*add_flags(pictures, workplace, "ray"), "--ray", nodes.address]
        with started_script(tmp_path, command) as process:
            nodes.wait_for_workers()
            for worker in nodes.workers(1):
                worker.suspend()  # the command cannot end before the node is dead
            nodes.workers(0)[0].kill()
            time.sleep(1)
            nodes.kill(1)
            assert process.poll() is None, process.communicate()  # it was midway
            said, _ = process.communicate(timeout=80)
        assert process.returncode == 0, said
        assert "300 added, 0 updated, 0 unchanged, 2 could not be read; 300 images" in said
        assert "could not be read: mine/disc/broken.png" in said or "disc/broken.png" in said
        assert_equal(tmp_path / "ray", tmp_path / "local")
    assert time.monotonic() - started < 90


def test_what_has_changed_is_read_again(nodes, workplace, tmp_path):
    write_folders(tmp_path / "mine", each=4, seed=5)
    run = workplace / "runs" / "small"

    def add(index: str, *more: object) -> str:
        result = script(
            tmp_path, "index.py", "add", "mine", "--run", run, "--index", index, "--runtime", "litert", *more
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    on_ray = ("--ray", nodes.address)
    assert "16 added" in add("ray", *on_ray)
    assert "16 added" in add("local")
    (tmp_path / "mine" / "disc" / "disc_0.png").write_bytes(draw_encoded(9))
    (tmp_path / "mine" / "disc" / "disc_1.png").write_bytes(b"broken")
    (tmp_path / "mine" / "disc" / "new.png").write_bytes(draw_encoded(10))
    os.utime(tmp_path / "mine" / "rings" / "rings_0.png")
    for index, more in (("ray", on_ray), ("local", ())):
        assert "1 added, 1 updated, 14 unchanged, 1 could not be read" in add(index, *more, "--label", "other")
    assert_equal(tmp_path / "ray", tmp_path / "local")
    assert "0 added, 0 updated, 16 unchanged, 1 could not be read" in add("ray", "--ray", "nowhere:1")  # nothing to do


@pytest.mark.nightly  # on a busy machine all may be done before the signal comes
def test_interrupted_and_resumed(nodes, pictures, workplace, tmp_path):
    for index in ("ray", "ray-2", "ray-3"):  # all pictures take less than a second, so it may come too late
        command = [*add_flags(pictures, workplace, index), "--ray", nodes.address]
        with started_script(tmp_path, command) as process:
            nodes.wait_for_workers()
            while not (drivers := psutil.Process(process.pid).children()):  # the workers may be those of the last test
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=30)
        if process.returncode == 130:
            break
    assert process.returncode == 130, said
    assert "the same command resumes it" in said
    assert drivers
    assert not psutil.wait_procs(drivers, timeout=10)[1]
    kept = len(entries(tmp_path / index))
    assert kept < 300
    result = script(tmp_path, "index.py", *command)
    assert f"{300 - kept} added, 0 updated, {kept} unchanged, 2 could not be read; 300 images" in result.stdout


@pytest.mark.nightly
def test_a_file_that_kills_its_reader_is_named_and_costs_no_other(nodes):
    found = {}
    for numbers, doubles in RayCluster(nodes.address, stderr()).results(Doubles(killers=(17,)), range(60), list, 8):
        for place, number in enumerate(numbers):
            assert number not in found
            found[number] = doubles if isinstance(doubles, Lost) else doubles[place]
    assert found.pop(17) == Lost()
    assert found == {number: 2 * number for number in range(60) if number != 17}


@pytest.mark.nightly
def test_a_worker_takes_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    with RayNodes(2, gpus=1) as nodes:
        cluster = RayCluster(nodes.address, stderr())
        assert {told for _, told in cluster.results(Tells(gpu=True), range(4), list, 1)} == {(2, "0")}
        assert {told for _, told in cluster.results(Tells(gpu=False), range(4), list, 1)} == {(1, "")}


@pytest.mark.nightly
def test_files_on_an_object_store(pictures, workplace, tmp_path, monkeypatch):
    run = ("--run", workplace / "runs" / "small", "--runtime", "litert", "--head", "trained", "--index")
    with store() as made, ExitStack() as stack:
        made.put_folder(pictures, "mine")
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        nodes = stack.enter_context(RayNodes(1, 1))
        result = script(tmp_path, "index.py", "add", "--ray", nodes.address, f"s3://{BUCKET}/mine", *run, "far")
        assert result.returncode == 0, result.stderr
        assert "300 added, 0 updated, 0 unchanged, 2 could not be read" in result.stdout
        assert f"could not be read: s3://{BUCKET}/mine/rings/empty.jpg is empty" in result.stderr
    script(tmp_path, "index.py", "add", pictures, *run, "near")
    far, near = entries(tmp_path / "far"), entries(tmp_path / "near")
    assert far.keys() == {f"s3://{BUCKET}/mine/{id}" for id in near}
    for id, (entry, vector) in near.items():
        other, its = far[f"s3://{BUCKET}/mine/{id}"]
        assert (other.label, other.hash, other.attributes) == (entry.label, entry.hash, entry.attributes)
        assert np.abs(vector - its).max() <= 1e-6


@pytest.mark.nightly
@pytest.mark.milvus
def test_workers_write_to_milvus(nodes, pictures, workplace, tmp_path, milvus_address):
    place = f"{milvus_address}/ray_{secrets.token_hex(4)}"
    run = ("--run", workplace / "runs" / "small", "--runtime", "litert", "--set", "year=2021", "--index")
    result = script(tmp_path, "index.py", "add", "--ray", nodes.address, pictures, *run, place)
    assert result.returncode == 0, result.stderr
    assert f"300 added, 0 updated, 0 unchanged, 2 could not be read; 300 images in {place}" in result.stdout
    script(tmp_path, "index.py", "add", pictures, *run, "local")
    with Index.open(place) as far, Index.open(tmp_path / "local") as near:
        assert far.image_files.skipped() == near.image_files.skipped()
        assert far.records.count() == 300
        for _, id, *_ in near.records.listing():
            (entry, vector), (other, its) = near.get(id), far.get(id)
            assert entry == other
            assert np.abs(vector - its).max() <= 1e-6
    result = script(tmp_path, "index.py", "add", "--ray", nodes.address, pictures, *run, place)
    assert "0 added, 0 updated, 300 unchanged, 2 could not be read" in result.stdout


def test_a_cluster_that_is_not_there(workplace, tmp_path):
    needs_ray()
    write_folders(tmp_path / "mine", each=1)
    run = ("--run", workplace / "runs" / "small", "--index", "i")
    result = script(tmp_path, "index.py", "add", "--ray", "127.0.0.1:9", "mine", *run)
    assert result.returncode == 2
    assert "there is no Ray to use at 127.0.0.1:9" in result.stderr
    assert len(result.stderr.splitlines()) <= 2


@pytest.mark.nightly
def test_no_core_for_a_worker_ends_clearly(workplace, tmp_path):
    write_folders(tmp_path / "mine", each=1)
    run = ("--run", workplace / "runs" / "small", "--index", "i")
    with RayNodes() as nodes:
        result = script(tmp_path, "index.py", "add", "--ray", nodes.address, "mine", *run, "--ray-patience", 12)
    assert result.returncode == 2
    assert "nothing has come from Ray for" in result.stderr
    assert "0 of 0 cores free" in result.stderr
    assert "the same command resumes it" in result.stderr


@pytest.mark.nightly
def test_a_cluster_of_this_machine(workplace, tmp_path):
    needs_ray()
    write_folders(tmp_path / "mine", each=2)
    run = ("--run", workplace / "runs" / "small", "--index", "i")
    before = set(psutil.pids())
    result = script(tmp_path, "index.py", "add", "--ray", "mine", *run)
    assert result.returncode == 0, result.stderr
    assert "8 added" in result.stdout
    assert result.stderr == "embedding 8 images\n"
    new = (psutil.Process(pid) for pid in set(psutil.pids()) - before if psutil.pid_exists(pid))
    assert not [process for process in new if "raylet" in process.name()]


@pytest.mark.nightly
def test_another_run_on_a_machine_of_the_cluster(nodes, workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from dr_keras.errors import RunError
    from dr_keras.heads import TRAINED
    from dr_keras.ray_jobs.collection import embed_files
    from dr_keras.ray_jobs.model import SharedModel
    from dr_keras.runs import open_run

    shutil.copytree(workplace / "runs" / "small", tmp_path / "runs" / "small")
    model = SharedModel.of(open_run("small"), "auto", TRAINED)
    (tmp_path / "a.png").write_bytes(draw_encoded())
    with (tmp_path / "runs" / "small" / "embedding.keras").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RunError, match="another run there than where the command runs"):
        embed_files(RayCluster(nodes.address, stderr()), model, [str(tmp_path / "a.png")])


@pytest.mark.nightly
def test_duplicates(nodes, workplace, tmp_path):
    folder = write_folders(tmp_path / "mine", each=10, seed=7)
    shutil.copy(folder / "disc" / "disc_0.png", folder / "rings" / "copy.png")
    (folder / "disc" / "broken.png").write_bytes(b"broken")
    run = ("--run", workplace / "runs" / "small", "--max-distance", 0.2)
    found = {}
    for name, more in (("local", ()), ("ray", ("--ray", nodes.address))):
        result = script(tmp_path, "index.py", "duplicates", "mine", *run, *more, "--json", f"{name}.json")
        assert result.returncode == 0, result.stderr
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["ray"] == found["local"]
    assert found["ray"]["exact"]
    assert [one["id"] for one in found["ray"]["skipped"]] == ["disc/broken.png"]


def test_evaluate(nodes, workplace, tmp_path):
    write_folders(tmp_path / "mine", each=10, seed=7)
    (tmp_path / "mine" / "disc" / "broken.png").write_bytes(b"broken")
    run = ("--run", workplace / "runs" / "small", "--data", "mine", "--no-baselines", "--json")
    local, ray = (script(tmp_path, "evaluate.py", *run, *more) for more in ((), ("--ray", nodes.address)))
    assert ray.returncode == 0, ray.stderr
    assert "1 files skipped, disc/broken.png first" in ray.stderr
    ours, theirs = (json.loads(one.stdout) for one in (ray, local))
    assert ours.pop("ranking_seconds") >= 0
    assert theirs.pop("ranking_seconds") >= 0
    assert ours == theirs
