"""The examples in docstrings do what they say, and everything public has one."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType

import pytest
from PIL import Image

import dr_keras

PUBLIC = [name for name in dr_keras.__all__ if not name.startswith("_")]
TRAIN = "dr_keras.training.train.train"
DOCUMENTED = [  # also in docs/reference/library.md
    "dr_keras.model.network.embedding_network",
    "dr_keras.model.network.training_network",
    "dr_keras.model.ranking.TripletRanking",
    "dr_keras.search_model.Model.embed",
    "dr_keras.search_model.Model.retrieve",
    "dr_keras.search_model.Model.search",
    "dr_keras.search_model.Model.use_gallery",
    "dr_keras.search_results.Answer",
    "dr_keras.search_results.Result",
]


def modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(dr_keras.__path__, "dr_keras.")]
    return [dr_keras, *(importlib.import_module(name) for name in names if not name.endswith("__main__"))]


@pytest.fixture(scope="module")
def examples() -> dict[str, doctest.DocTest]:
    finder = doctest.DocTestFinder()
    return {test.name: test for module in modules() for test in finder.find(module) if test.examples}


def test_everything_public_has_an_example(examples):
    public = [getattr(dr_keras, name) for name in PUBLIC]
    named = [f"{it.__module__}.{it.__qualname__}" for it in public if inspect.isclass(it) or inspect.isfunction(it)]
    assert len(named) == len(PUBLIC)
    assert not {*named, *DOCUMENTED} - examples.keys()


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working folder with `my-pictures`, as the examples expect it."""
    for folder, color in ("apples", "red"), ("apples", "maroon"), ("limes", "lime"), ("limes", "green"):
        (tmp_path / "my-pictures" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), color).save(tmp_path / "my-pictures" / folder / f"{color}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DR_KERAS_CACHE", str(tmp_path / "cache"))


def run(examples: Iterable[doctest.DocTest]) -> None:
    shown: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for example in examples:
        runner.run(example, out=shown.append)
    assert runner.tries
    assert not runner.failures, "".join(shown)


@pytest.mark.usefixtures("pictures")
def test_examples_do_what_they_say(examples):
    run(example for name, example in examples.items() if name != TRAIN)


@pytest.mark.nightly
@pytest.mark.usefixtures("pictures")
def test_the_example_of_training_does_what_it_says(examples):
    run([examples[TRAIN]])
