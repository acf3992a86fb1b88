"""Every module of the package can be imported on every system, also where Python lacks the modules of Unix."""

import subprocess
import sys

import pytest
from conftest import ROOT

UNIX_ONLY = "fcntl,grp,pwd,resource,termios"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        pytest.param(
            ("--without", UNIX_ONLY),
            marks=pytest.mark.xfail(
                "import fcntl" in (ROOT / "dr_keras/index/store.py").read_text(encoding="utf-8"),
                reason="the index still locks by fcntl",
                strict=True,
            ),
        ),
    ],
)
def test_every_module_can_be_imported(arguments):
    command = [sys.executable, "-W", "ignore", ROOT / "tests" / "import_all.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" modules, 0 failed\n")
