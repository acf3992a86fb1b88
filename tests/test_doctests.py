"""The examples in docstrings do what they say; modules that need a framework to be imported are left out."""

import doctest
import importlib
import subprocess
import sys

import pytest

# Prints the modules that can be imported where no framework is installed.
LIST_MODULES = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "jax", "torch"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import dr_keras

print("dr_keras")
for module in pkgutil.walk_packages(dr_keras.__path__, "dr_keras.", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
            print(module.name)
        except ImportError:
            pass
"""


@pytest.fixture(scope="module")
def examples() -> dict[str, doctest.DocTest]:
    listed = subprocess.run([sys.executable, "-c", LIST_MODULES], stdout=subprocess.PIPE, text=True, check=True)
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in listed.stdout.split()]
    assert len(modules) > 50
    return {test.name: test for module in modules for test in finder.find(module) if test.examples}


def test_examples_do_what_they_say(examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"dr_keras.index.index.Index", "dr_keras.index.records.Entry"} <= examples.keys()
    shown: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for example in examples.values():
        runner.run(example, out=shown.append)
    assert not runner.failures, "".join(shown)
