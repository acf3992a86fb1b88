"""Every module of the package can be imported on every system, even where Python lacks Unix-only modules."""

import subprocess
import sys

import pytest
from conftest import ROOT

UNIX_ONLY = "fcntl,grp,pwd,resource,termios"


@pytest.mark.parametrize("arguments", [(), ("--without", UNIX_ONLY)])
def test_every_module_can_be_imported(arguments):
    command = [sys.executable, "-W", "ignore", ROOT / "tests" / "import_all.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" modules, 0 failed\n")
