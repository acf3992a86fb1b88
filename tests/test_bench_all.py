"""The table of all benchmarks: what is kept, what is older than its code, and the page that is made of it."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_all

FIGURE = {"name": "a", "median": 2.0, "low": 1.0, "high": 3.0, "n": 3, "unit": "ms", "ratio": 0.4, "to": "b"}


def test_the_page_is_made_of_what_is_kept():
    assert bench_all.PAGE.read_text() == bench_all.page(json.loads(bench_all.KEPT.read_text()))


@pytest.mark.parametrize("name", bench_all.BENCHMARKS)
def test_a_benchmark_names_its_script_and_code(name):
    one = bench_all.BENCHMARKS[name]
    assert (ROOT / "benchmarks" / one.command.split()[0]).is_file()
    assert all((ROOT / "dr_keras" / place).exists() for place in one.code)


@pytest.mark.parametrize(
    ("goal", "ratio", "held"),
    [("<= 0.5", 0.4, True), ("<= 0.5", 0.6, False), (">= 0.5", 0.6, True), ("<= 2", None, True), (">= 3", None, False)],
)
def test_a_goal_is_of_the_ratio_or_else_of_the_value(goal, ratio, held):
    assert bench_all.holds(FIGURE | {"goal": goal, "ratio": ratio}) == held


def test_a_table_compares_with_what_is_kept():
    lines = bench_all.table([FIGURE | {"goal": "<= 0.3"}], [FIGURE | {"median": 4.0}])
    assert lines[2] == ("| a | 2 ms (1 to 3, n = 3) | 0.4 of b | <= 0.3: **missed** | 4 ms (1 to 3, n = 3) | 0.50 |")
    assert len({line.count("|") for line in lines}) == 1


def test_figures_are_stale_when_their_code_or_command_changes(tmp_path, monkeypatch):
    for name in ("one.py", "two/three.py"):
        file = tmp_path / "dr_keras" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a = 1\n")
    monkeypatch.setattr(bench_all, "ROOT", tmp_path)
    monkeypatch.setattr(
        bench_all,
        "BENCHMARKS",
        {"x": bench_all.Benchmark("", "c", ("one.py",)), "y": bench_all.Benchmark("", "c", ("two",))},
    )
    kept = {name: {"code": bench_all.digest(one), "command": "c"} for name, one in bench_all.BENCHMARKS.items()}
    assert bench_all.stale(kept) == []
    (tmp_path / "dr_keras" / "two" / "three.py").write_text("a = 2\n")
    assert bench_all.stale(kept) == ["y"]
    assert bench_all.stale({"x": kept["x"] | {"command": "d"}}) == ["x"]


@pytest.mark.slow
def test_a_benchmark_passes_its_figures_on(tmp_path):
    """The shortest one, as a process of its own."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "bench_all.py"), "--only", "gather"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| copied rectangles (kept) |" in result.stdout
