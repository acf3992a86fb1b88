"""The HTML page about an evaluation."""

import re
from html.parser import HTMLParser

import pytest
from conftest import script, write_folders

from dr_keras.errors import InputError
from dr_keras.evaluation.evaluate import SearchOptions, evaluate_run
from dr_keras.loading import load


class Page(HTMLParser):
    """The tags of a page that are balanced, its pictures, and its text."""

    EMPTY = ("meta", "img", "line", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.headings, self.links = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_report_holds_the_figures_and_nothing_from_elsewhere(workplace, tmp_path):
    model = load(workplace / "runs" / "small")
    file = tmp_path / "report.html"
    found = evaluate_run(model, report=file, options=SearchOptions(flip_average=True))
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert page.headings[:2] == ["Figures", "Curves"]
    assert page.headings[-1] == "Classes"
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert all(image["alt"] for image in page.images)
    for ranker in (found, *found["baselines"].values(), *found["search_options"].values()):
        assert f"<td>{ranker['precision@30']:.4f}<small>" in text
    assert f"<td>{found['score_at_top_30']:,}<small>" in text
    for row in found["classes"]:
        assert f"<td>{row['precision@30']:.3f}</td>" in text
    assert len(re.findall("<svg", text)) == 3
    assert text.count("where alike") >= 20  # two for each of the best and the worst queries
    assert "http" not in text.replace("http-equiv", "")


def test_the_report_of_other_data_with_odd_names(tmp_path, workplace):
    folder = write_folders(tmp_path / "set", each=5)
    (folder / "disc").rename(folder / "<b>&\"disc'")
    found = script(
        workplace, "evaluate.py", "--run", "small", "--data", folder, "--no-baselines", "--report", tmp_path / "r.html"
    )
    assert found.returncode == 0, found.stderr
    assert "saved" in found.stdout
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not Page(text).open
    assert "&lt;b&gt;&amp;" in text
    assert "<b>&" not in text


def test_a_report_that_cannot_be_written_is_one_line(workplace, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"the report .* cannot be written"):
        evaluate_run(load(workplace / "runs" / "small"), baselines=False, report=tmp_path / "file" / "r.html")
