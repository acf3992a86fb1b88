"""Every module of the package can be imported on every system, even where Python lacks Unix-only modules."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

UNIX_ONLY = "fcntl,grp,pwd,resource,termios"


@pytest.mark.parametrize("arguments", [(), ("--without", UNIX_ONLY)])
def test_every_module_can_be_imported(arguments):
    command = [sys.executable, "-W", "ignore", ROOT / "tests" / "import_all.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" modules, 0 failed\n")


# What a search may import: `benchmarks/bench_retrieve.py` measures what it costs.
NEW_FILE = {"PIL", "ai_edge_litert", "flatbuffers"}  # what decodes and embeds a picture
NOT_BY_NAME = {
    "dr_keras.config",
    "dr_keras.embedders",
    "dr_keras.data.images",
    "hashlib",
    "zipfile",
    "concurrent.futures",
}
READERS = re.compile(r"PIL\.\w+ImagePlugin")
NOT_FOR_A_SEARCH = re.compile(
    r"dr_keras\.(training|model|evaluation|export|duplicates|server|ray_jobs|explanation|index\.(sync|filters"
    r"|cutoff|migrate|milvus)|data\.(augment\w*|augmentation_draws|pixel_store|catalog|batches|samplers|relevance\w*))\b"
)


@pytest.mark.parametrize(("query", "libraries"), [("name", {"numpy"}), ("file", {"numpy"} | NEW_FILE)])
def test_a_search_imports_little(workplace, folders, query, libraries):
    picture = next(folders.rglob("*.png")) if query == "name" else shutil.copy(next(folders.rglob("*.png")), workplace)
    asked = picture.name if query == "name" else f"./{Path(picture).name}"
    command = [sys.executable, "-X", "importtime", ROOT / "retrieve.py", "--run", "small", "--query", asked, "--json"]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=True, timeout=120)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    ours = {name for name in modules if name.startswith("dr_keras.")}
    assert "dr_keras.retrieval" in ours
    assert not {name for name in ours if NOT_FOR_A_SEARCH.match(name)}
    assert not {name for name in modules if READERS.fullmatch(name)} - {"PIL.PngImagePlugin"}
    assert "dr_keras.config" not in ours
    if query == "name":
        assert not NOT_BY_NAME & modules
    others = {name.partition(".")[0] for name in modules - ours} - set(sys.stdlib_module_names) - {"dr_keras"}
    others = {name for name in others if not name.startswith("_") and in_site_packages(name)}
    assert others <= libraries


def in_site_packages(name: str) -> bool:
    """Whether an imported package is one that was installed, and not a hook of the installation."""
    spec = find_spec(name)
    return bool(spec and spec.submodule_search_locations)
