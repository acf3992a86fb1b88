"""What commands do with a Ray cluster, without Ray: blocks, lost ones, addresses, waiting."""

import io
import os
import sys
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from conftest import ROOT, script
from ray_work import Doubles
from rich.console import Console

from dr_keras import subprocesses
from dr_keras.cli import index as index_cli
from dr_keras.cli.ray_flags import with_address
from dr_keras.errors import InputError, RunError
from dr_keras.heads import TRAINED
from dr_keras.index.batch import Known, Looked
from dr_keras.index.index import Index
from dr_keras.index.reader import Reader
from dr_keras.ray_jobs import cluster as cluster_module
from dr_keras.ray_jobs.adding import on_ray
from dr_keras.ray_jobs.cluster import BLOCKS_PER_WORKER, FIRST_ITEMS, Lost, RayCluster, _Blocks, parse_address
from dr_keras.ray_jobs.messages import Ready, receive, send
from dr_keras.ray_jobs.model import MOST_FIRST, SharedModel


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """Makes a cluster whose driver is the fake one."""
    monkeypatch.setattr(cluster_module, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(subprocesses, "command", lambda _: [sys.executable, str(ROOT / "tests" / "fake_ray_driver.py")])
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setenv("MARKS", str(tmp_path))

    def make(patience=20.0, address="local"):
        return RayCluster(address, Console(file=io.StringIO(), width=200), patience)

    return make


def doubled(cluster, count, most=10, **work):
    """Each number with what became of it."""
    found = {}
    for numbers, doubles in cluster.results(Doubles(**work), range(count), list, most):
        values = [doubles] * len(numbers) if isinstance(doubles, Lost) else doubles
        for number, double in zip(numbers, values, strict=True):
            assert number not in found
            found[number] = double
    return found


def test_each_item_comes_once(cluster):
    assert doubled(cluster(), 1000) == {number: 2 * number for number in range(1000)}
    assert doubled(cluster(), 0) == {}


def test_an_item_that_is_always_lost_costs_no_other(cluster, monkeypatch):
    monkeypatch.setenv("LOST", "3 77")
    found = doubled(cluster(), 200)
    assert {number for number, double in found.items() if isinstance(double, Lost)} == {3, 77}
    assert {number: double for number, double in found.items() if number not in (3, 77)} == {
        number: 2 * number for number in range(200) if number not in (3, 77)
    }


def test_a_driver_that_dies_is_replaced(cluster, monkeypatch):
    monkeypatch.setenv("DIES", "60")
    assert doubled(cluster(), 100) == {number: 2 * number for number in range(100)}


def test_a_driver_that_always_dies_is_reported(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("DIES", "0")
    monkeypatch.setenv("MARKS", str(tmp_path / "missing"))  # which cannot be written
    with pytest.raises(RunError, match="ended 3 times, and said last: FileNotFoundError"):
        doubled(cluster(), 5)


def test_what_the_work_refuses_ends_it(cluster):
    with pytest.raises(RunError, match=r"^7 is refused$"):
        doubled(cluster(), 100, refused=7)
    with pytest.raises(RunError, match="no Ray to use at nowhere:1"):
        doubled(cluster(address="nowhere:1"), 100)


def test_silence_ends(cluster, monkeypatch):
    monkeypatch.setenv("SILENT", "")
    monkeypatch.setattr(cluster_module, "TELL_SECONDS", 1.0)
    made = cluster(patience=4)
    started = time.monotonic()
    with pytest.raises(RunError, match=r"nothing has come from Ray for \d+ s: 1 of 3 machines.*same command resumes"):
        doubled(made, 5)
    assert time.monotonic() - started < 25
    said = made.console.file.getvalue()
    assert "nothing has come from Ray for 1 s" in said


def test_a_use_that_ends_early_leaves_no_process(cluster, monkeypatch):
    started = []
    popen = cluster_module.subprocess.Popen
    monkeypatch.setattr(
        cluster_module.subprocess, "Popen", lambda *args, **more: started.append(popen(*args, **more)) or started[-1]
    )
    results = cluster().results(Doubles(), range(1000), list, 1)
    next(results)
    results.close()
    assert [process.poll() is not None for process in started] == [True]


def test_blocks_grow_with_what_is_known():
    blocks = _Blocks(range(100_000), 256)
    first, singly = blocks.round(4)
    assert len(first) == 4 * BLOCKS_PER_WORKER
    assert {len(block.items) for block in first} == {FIRST_ITEMS}
    assert not singly
    blocks.took(1.0, 1)  # ten items take ten seconds
    assert {len(block.items) for block in blocks.round(4)[0]} == {10}
    for _ in range(100):
        blocks.took(1e-3, 1)
    assert len(blocks.round(4)[0][0].items) == 256


def test_few_items_are_shared_by_all_workers():
    first, _ = _Blocks(range(64), 256).round(4)
    assert len(first) == 32
    assert _Blocks(range(3), 256).round(4)[0][0].items == range(1)


def test_lost_blocks_are_tried_whole_and_then_singly():
    blocks = _Blocks([1, 2, 3], 3)
    blocks.took(1.0, 10)
    tried = []
    for _ in range(10):
        chosen, singly = blocks.round(1)
        if not chosen:
            break
        tried.append(([list(block.items) for block in chosen], singly))
        for block in chosen:
            blocks.lost(block)
    assert [list(block.items) for block in blocks.given_up] == [[1], [2], [3]]
    assert tried[0] == tried[1] == ([[1], [2], [3]], False)
    assert tried[2] == tried[3] == ([[1], [2], [3]], True)


def test_blocks_that_a_driver_takes_with_it_are_not_blamed():
    blocks = _Blocks([1], 1)
    for _ in range(20):
        (block,), singly = blocks.round(1)
        assert not singly
        blocks.lost(block, counts=False)
    assert not blocks.given_up


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["add", "--ray", "my-pictures"], ["add", "--ray=local", "my-pictures"]),
        (["add", "--ray", "s3://bucket/photos"], ["add", "--ray=local", "s3://bucket/photos"]),
        (["add", "my-pictures", "--ray"], ["add", "my-pictures", "--ray=local"]),
        (["add", "--ray", "--label", "x", "y"], ["add", "--ray=local", "--label", "x", "y"]),
        (["add", "--ray", "10.0.0.1:6379", "x"], ["add", "--ray", "10.0.0.1:6379", "x"]),
        (["add", "--ray", "auto", "x"], ["add", "--ray", "auto", "x"]),
        (["add", "--ray=head:6379", "x"], ["add", "--ray=head:6379", "x"]),
    ],
)
def test_a_folder_after_ray_is_no_address(given, parsed):
    assert with_address(given) == parsed


@pytest.mark.parametrize("text", ["head", "ray://head:10001", "head:", "a b:1", "/x:1", "my-pictures/"])
def test_what_is_no_address(text):
    assert parse_address(text) is None


def test_a_wrong_address_is_refused(capsys):
    with pytest.raises(SystemExit):
        index_cli.main(["add", "--ray=ray://head:1", "x"])
    assert "is no address of a Ray cluster" in capsys.readouterr().err


def test_patience_is_positive(cluster):
    with pytest.raises(InputError, match="must be positive"):
        cluster(patience=0)


def test_without_ray(tmp_path, refuse):
    env = {"PYTHONPATH": os.pathsep.join(refuse("nothing").values())}
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'ray' else find(name, *more)\n"
    )
    for arguments in (
        ("index.py", "add", "--ray", "mine", "--index", "i"),
        ("index.py", "duplicates", "mine", "--ray"),
    ):
        (tmp_path / "mine").mkdir(exist_ok=True)
        result = script(tmp_path, *arguments, env=env)
        assert result.returncode == 2
        assert "pip install 'dr_keras[ray]'" in result.stderr
    assert not (tmp_path / "i").exists()


def test_what_has_come_is_kept_when_it_ends_early(tmp_path, cluster, monkeypatch):
    """Ctrl-C, or a cluster that falls silent."""

    def looked(file):
        return Looked({file: (b"h" * 32, 1, 2)}, set(), {}, {file: None}, np.array([[1.0, 0.0]], np.float32))

    def results(*_, first):
        assert first == MOST_FIRST  # of small images
        yield ["a.png"], looked("a.png")
        yield ["b.png"], Lost()
        yield ["c.png"], looked("c.png")
        raise KeyboardInterrupt

    monkeypatch.setattr(RayCluster, "results", results)
    with Index.create(tmp_path / "index", 2, root=tmp_path) as index:
        known = Known(*(dict.fromkeys(("a.png", "b.png", "c.png"), value) for value in ("?", "cats")))
        known = replace(known, ids={file: file for file in known.ids})
        take = on_ray(cluster(), SharedModel("run", "auto", TRAINED, ""), Reader(lambda _: None, 8, "stretch"))
        seen = []
        with pytest.raises(KeyboardInterrupt):
            seen.extend(take(index, known, list(known.ids)))
        assert [id for _, id, *_ in index.records.listing()] == ["a.png", "c.png"]
        assert index.image_files.skipped() == {}  # so that it is tried again


def test_messages():
    stream = io.BytesIO()
    send(stream, Ready(3))
    send(stream, Ready(4))
    stream.seek(0)
    assert [receive(stream), receive(stream), receive(stream)] == [Ready(3), Ready(4), None]
    assert receive(io.BytesIO(stream.getvalue()[:-1])) == Ready(3)
    half = io.BytesIO(stream.getvalue()[:20])
    assert receive(half) is None
