"""Results as plain values, whose paths are made only when somebody asks for them."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from dr_keras.search_results import Answer, Result


def result(path):
    return Result(1, "cats/tom.jpg", path, "cats", "cats", 0.25)


def test_a_path_may_be_given_as_text():
    one = result("photos/cats/./tom.jpg")
    assert one.path == Path("photos/cats/tom.jpg")
    assert one == result(Path("photos/cats/tom.jpg"))
    assert repr(one) == repr(result(Path("photos/cats/tom.jpg")))
    assert replace(result("a/b"), rank=2).path == Path("a/b")
    assert pickle.loads(pickle.dumps(result("a/b"))) == result("a/b")


def test_a_result_has_a_path_and_keeps_it():
    with pytest.raises(TypeError, match="required positional argument"):
        Result(1, "cats/tom.jpg")
    with pytest.raises(AttributeError, match="cannot assign"):
        result("a").path = Path("b")


def test_paths_are_left_out_if_nobody_asks():
    answer = Answer(
        "query.jpg", Path("query.jpg"), None, None, [result("photos//cats/tom.jpg"), result("s3://a/b.jpg")]
    )
    named = answer.to_dict()["results"]
    assert [one["path"] for one in named] == ["photos/cats/tom.jpg", "s3://a/b.jpg"]
    plain = answer.to_dict(paths=False)["results"]
    assert plain == [{name: value for name, value in one.items() if name != "path"} for one in named]
