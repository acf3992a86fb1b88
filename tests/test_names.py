"""Names in either Unicode normalization form, with composed or combining accents."""

import json
import unicodedata

import numpy as np
import pytest
from conftest import draw_encoded, script, write_folders

from dr_keras.data.catalog import load_catalog
from dr_keras.errors import InputError
from dr_keras.filenames import existing, forms, told_apart
from dr_keras.index.index import Entry, Index

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
MIXED = "ế".join(("x", "y"))  # letters with two accents may be partly decomposed
HALF = unicodedata.normalize("NFC", MIXED).replace("ế", "ê\u0301")


def indexed(folder, *ids):
    index = Index.create(folder, 2, root=folder.parent)
    vectors = np.array([[np.cos(n), np.sin(n)] for n in range(len(ids))], np.float32)
    index.add([Entry(id) for id in ids], vectors)
    return index


@pytest.mark.parametrize(("kept", "asked"), [(NFC, NFD), (NFD, NFC), (HALF, MIXED), (MIXED, HALF)])
def test_a_name_is_found_in_either_form(tmp_path, kept, asked):
    with indexed(tmp_path / "index", "plain.png", f"{kept}/{kept}.png", f"other/{kept}2.png") as index:
        assert index.records.find(f"{asked}.png") == index.records.row(f"{kept}/{kept}.png")
        assert index.records.find(f"{asked}/{asked}.png") == index.records.row(f"{kept}/{kept}.png")
        assert index.records.find(f"{kept}/{asked}.png") == index.records.row(f"{kept}/{kept}.png")
        assert index.records.matching(f"{asked}2.png") == [f"other/{kept}2.png"]


def test_an_exact_match_wins_over_one_that_looks_the_same(tmp_path):
    with indexed(tmp_path / "index", f"a/{NFC}.png", f"b/{NFD}.png") as index:
        assert index.records.find(f"{NFC}.png") == 0
        assert index.records.find(f"{NFD}.png") == 1
        assert index.records.find(f"b/{NFC}.png") == 1


def test_names_that_look_the_same_are_spelled_out(tmp_path):
    with indexed(tmp_path / "index", f"a/{NFC}.png", f"a/{NFD}.png", f"b/{NFC}.png") as index:
        assert index.records.find(f"a/{NFC}.png") == 0
        with pytest.raises(InputError) as error:
            index.records.find(f"{NFC}.png")
        assert str(error.value).count(f"a/{NFC}.png") == 1
        with pytest.raises(InputError) as error:
            index.records.find(f"{NFC}x.png")
        near = str(error.value).partition("Similar names: ")[2].split(", ")
        assert len(set(map(str, near))) == len(near) == 2
        assert len({unicodedata.normalize("NFC", name) for name in near}) == 2
    assert told_apart(["a", NFC, NFD, "a"]) == ["a", ascii(NFC), ascii(NFD)]
    assert forms("plain") == ["plain"]


def test_files_are_found_in_either_form(tmp_path):
    (tmp_path / f"{NFD}.png").write_bytes(draw_encoded())
    assert existing(str(tmp_path / f"{NFC}.png")) == str(tmp_path / f"{NFD}.png")
    assert existing(str(tmp_path / "é.png")) == str(tmp_path / "é.png")
    write_folders(tmp_path / "set", each=2, classes=("a", "b"))
    (tmp_path / "set" / "a" / "a_0.png").rename(tmp_path / "set" / "a" / f"{NFD}.png")
    (tmp_path / "set.csv").write_text(f"path,label\nset/a/{NFC}.png,a\nset/b/b_0.png,b\n", encoding="utf-8")
    catalog = load_catalog(tmp_path / "set.csv", monitor=0, validation=0, seed=0)
    assert catalog.ids == (f"set/a/{NFD}.png", "set/b/b_0.png")


def test_a_search_by_a_name_from_a_keyboard_finds_the_file_of_a_mac(place):
    (place / "mine" / f"{NFD}.png").write_bytes(draw_encoded(seed=9))
    assert script(place, "index.py", "add", "mine", "--index", "my-index").returncode == 0
    (place / f"{NFD}2.png").write_bytes(draw_encoded(seed=9))
    for query in (f"{NFC}.png", f"{NFC}2.png", f"./{NFC}2.png"):
        done = script(place, "retrieve.py", "--index", "my-index", "--query", query, "--include-self", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["results"][0]["name"] == f"{NFD}.png"
