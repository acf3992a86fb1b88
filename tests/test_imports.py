"""Every module of the package can be imported on every system, also where Python lacks the modules of Unix."""

import subprocess
import sys

import pytest
from conftest import ROOT

UNIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")
NEEDS_JAX = {"dr_keras.data.augment_jax"}
FILES = (file.relative_to(ROOT).with_suffix("") for file in (ROOT / "dr_keras").rglob("*.py"))
NAMES = {".".join(file.parts).removesuffix(".__init__") for file in FILES if file.name != "__main__"}
MODULES = sorted(NAMES - NEEDS_JAX)
# Imports every module in one process, and prints what fails. The standard library may use the Unix modules itself, so
# only imports from this package are refused.
CODE = """
import builtins, importlib, sys, traceback
unix, modules = sys.argv[1].split(","), sys.argv[2].split(",")
original = builtins.__import__

def refuse(name, globals=None, locals=None, fromlist=(), level=0):
    if name.partition(".")[0] in unix and str((globals or {}).get("__name__", "")).startswith("dr_keras"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = refuse
for name in modules:
    try:
        importlib.import_module(name)
    except Exception:
        print(f"{name}: {traceback.format_exc().splitlines()[-1]}")
"""


@pytest.fixture(scope="module")
def failures():
    """What each module that cannot be imported says."""
    command = [sys.executable, "-W", "ignore", "-c", CODE, ",".join(UNIX_ONLY), ",".join(MODULES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith("dr_keras."))


def test_all_modules_are_tried():
    assert {"dr_keras.cli.main", "dr_keras.server.routes", "dr_keras.training.run"} <= set(MODULES)


@pytest.mark.xfail(
    "import fcntl" in (ROOT / "dr_keras/index/store.py").read_text(encoding="utf-8"),
    reason="the index still locks by fcntl",
    strict=True,
)
def test_no_module_needs_unix(failures):
    assert {name: error for name, error in failures.items() if "No module named" in error} == {}


def test_no_module_fails_otherwise(failures):
    assert {name: error for name, error in failures.items() if "No module named" not in error} == {}
