"""An index whose writer is killed at random times loses no acknowledged change and always opens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("wanted", "changes", "parts"), [pytest.param(100, 100, 5, marks=pytest.mark.nightly), (20, 10, 0)]
)
def test_a_hundred_kills_lose_nothing(wanted, changes, parts, tmp_path):
    script = Path(__file__).parent / "kill_index.py"
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(wanted), "0"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    kills, acknowledged, _, in_parts = map(int, re.findall(r"\d+", result.stdout)[:4])
    assert kills == wanted
    assert acknowledged > changes  # kills hit the process during changes,
    assert in_parts > parts  # and in the middle of syncs
