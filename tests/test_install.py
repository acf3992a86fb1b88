"""The package as installed by a new user: wheel and sdist, first without TensorFlow, from another folder."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
import zipfile

import pytest
from conftest import ROOT, write_folders

from dr_keras.version import __version__

TIMEOUT_SECONDS = 600


def run(*command, cwd, status=0):
    """Runs a command isolated from the repository and the caller's packages; returns its output."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env | {"KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the sdist and the wheel, which is built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder outside the repository, with class folders of pictures."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_folders(folder / "mine", each=6)
    (folder / "mine" / "disc" / "again.png").write_bytes((folder / "mine" / "disc" / "disc_0.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def venv(built, tmp_path_factory):
    """The bin folder of a new environment with the wheel, without extras."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "--quiet", next(built.glob("*.whl")), cwd=folder)
    return programs


def test_requirements_are_the_core_and_the_extra_train():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if not line.startswith("#")]
    assert sorted(named) == sorted(project["dependencies"] + project["optional-dependencies"]["train"])


@pytest.mark.slow
def test_the_distributions_hold_what_they_need(built):
    names = zipfile.ZipFile(next(built.glob(f"dr_keras-{__version__}-*.whl"))).namelist()
    for file in ("py.typed", "server/static/index.html", "released/tiny-imagenet-64/embedding.tflite"):
        assert f"dr_keras/{file}" in names
    assert {name.split("/")[0] for name in names} == {"dr_keras", f"dr_keras-{__version__}.dist-info"}
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    needed = ("dr_keras/", "tests/", "docs/", "benchmarks/")
    assert {name for name in listed if name.startswith(needed) or name.endswith(".py")} <= packed


@pytest.mark.slow
def test_without_tensorflow_it_searches(venv, place):
    command = venv / "dr-keras"
    frameworks = "import importlib.util as u; print([n for n in ('tensorflow', 'keras', 'fastapi') if u.find_spec(n)])"
    assert run(venv / "python", "-c", frameworks, cwd=place) == "[]\n"
    assert run(command, "--version", cwd=place) == f"dr_keras {__version__}\n"
    released = ("--run", "tiny-imagenet-64")
    query = ("--query", "mine/bars/bars_0.png", "--top", 3)
    said = run(command, "retrieve", *released, "--gallery", "mine", *query, "--json", cwd=place)
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert len(found["results"]) == 3
    assert "25 added" in run(command, "index", "add", "mine", *released, "--index", "my-index", cwd=place)
    said = run(command, "index", "duplicates", "mine", cwd=place)
    assert re.search(r"^ +1 group of equal files$", said, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("train", "--data", "mine", "--run", "first"), "train"),
        (("retrieve", "--run", "tiny-imagenet-64", "--gallery", "mine", "--query", "x", "--runtime", "keras"), "train"),
        (("serve", "--run", "tiny-imagenet-64", "--gallery", "mine"), "serve"),
        (("train", "--data", "digits", "--run", "first"), "train"),
    ],
)
def test_what_is_missing_is_named_by_its_extra(venv, place, arguments, extra):
    said = run(venv / "dr-keras", *arguments, cwd=place, status=2)
    assert f"pip install 'dr_keras[{extra}]'" in said.splitlines()[-1]


@pytest.mark.slow
def test_with_the_extra_serve_it_answers(built, venv, place):
    run(venv / "python", "-m", "pip", "install", "--quiet", f"{next(built.glob('*.whl'))}[serve]", cwd=place)
    arguments = ("serve", "--run", "tiny-imagenet-64", "--gallery", "mine", "--port", "0")
    process = subprocess.Popen([venv / "dr-keras", *arguments], cwd=place, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
        with urllib.request.urlopen(f"{address}/v1/stats", timeout=30) as answer:
            assert json.load(answer)["images"] == 25
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.nightly
def test_with_the_extra_train_it_trains(built, venv, place):
    run(venv / "python", "-m", "pip", "install", "--quiet", f"{next(built.glob('*.whl'))}[train]", cwd=place)
    tiny = ("--image-size", 16, "--backbone", "resnet10", "--width", 4, "--epochs", 1, "--steps-per-epoch", 2)
    small = ("--batch-size", 8, "--embedding-dim", 8)
    run(venv / "dr-keras", "train", "--data", "mine", "--run", "first", *tiny, *small, cwd=place)
    said = run(venv / "dr-keras", "retrieve", "--run", "first", "--query", "bars_0.png", "--json", cwd=place)
    assert json.loads(said[said.index("{") : said.rindex("}") + 1])["results"]
