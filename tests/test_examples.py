"""The notebooks in examples/ run from the first cell to the last, in an empty folder."""

import os
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["first_search", "train_on_your_folders", "web_application"])
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # `!dr-keras ...`
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebooks_are_kept_with_their_pictures():
    for file in sorted(EXAMPLES.glob("*.ipynb")):
        notebook = nbformat.read(file, as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in outputs), file.name
        assert not any(output["output_type"] == "error" for output in outputs), file.name
        assert str(Path.home()) not in file.read_text(encoding="utf-8")
