"""Judgments that the page collects, and explanations by the API."""

import csv

import numpy as np
import pytest
from served import client, refused

from dr_keras.data.judgments import read_judgments
from dr_keras.errors import InputError
from dr_keras.loading import load
from dr_keras.server import schemas
from dr_keras.server.judging import JudgmentFile, uncertain_triplet


@pytest.fixture
def judging(place):
    with client(place, judge=place / "judgments.csv") as made:
        yield made


def judge(client, *ids, **more):
    names = ("query", "positive", "negative")
    return client.post("/v1/judgments", json=dict(zip(names, ids, strict=True)) | more)


IDS = ("disc/disc_0.png", "disc/disc_1.png", "bars/bars_0.png")


def test_the_network_asks_and_the_answers_can_be_trained_on(place, judging):
    for number in range(1, 4):
        question = judging.get("/v1/judgment").json()
        schemas.Question.model_validate(question)
        ids = [question[name]["id"] for name in ("query", "first", "second")]
        assert len(set(ids)) == 3
        answer = judge(judging, *ids)
        assert (answer.status_code, answer.json()) == (201, {"judgments": number})
    model = load(place / "runs" / "small", index=place / "my-index")
    kept = read_judgments(place / "judgments.csv", lambda name, _: model.index.records.row(name))
    assert kept.votes.sum() + kept.against.sum() == 3  # the same question may come twice
    assert "Which of these two is more like it?" in judging.get("/judge").text


def test_answers_are_added_to_those_of_earlier_servers(place):
    file = place / "judgments.csv"
    for number in (1, 2):
        with client(place, judge=file) as made:
            assert judge(made, *IDS).json() == {"judgments": number}
    with open(file, newline="") as stream:
        assert list(csv.reader(stream))[1:] == [[*IDS, "1", "0"]] * 2


def test_what_is_no_answer_is_refused(place, judging):
    refused(judge(judging, "disc/disc_0.png", "disc/disc_1.png", "nothing.png"), 404, "no image of this id")
    refused(judge(judging, "disc/disc_0.png", "disc/disc_0.png", "bars/bars_0.png"), 422, "three different images")
    refused(judge(judging, *IDS, votes=99), 422, "votes")
    refused(judging.post("/v1/judgments", content=b"{", headers={"Content-Type": "application/json"}), 400, "not JSON")
    refused(judging.post("/v1/judgments", data={"query": "x"}), 415, "application/json")
    assert not (place / "judgments.csv").exists()


def test_a_file_that_cannot_be_written_is_an_error_and_not_lost(place, judging):
    (place / "judgments.csv").mkdir()
    refused(judge(judging, *IDS), 507, "could not be written")
    (place / "judgments.csv").rmdir()
    assert judge(judging, *IDS).status_code == 201


def test_without_judge_nothing_is_asked(page):
    assert page.get("/v1/judgment").status_code == 404
    assert judge(page, *IDS).status_code == 404
    assert page.get("/judge").status_code == 404


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text("path,label\na,b\n")
    with pytest.raises(InputError, match="has the columns path, label"):
        JudgmentFile(tmp_path / "table.csv")
    (tmp_path / "order.csv").write_text("votes,query,positive,negative,votes_against\n1,a,b,c,0\n")
    with pytest.raises(InputError, match="has other columns"):
        JudgmentFile(tmp_path / "order.csv")
    with pytest.raises(InputError, match="there is no folder"):
        JudgmentFile(tmp_path / "no" / "table.csv")


def test_questions_are_about_near_images_at_nearly_equal_distances():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((400, 8)).astype(np.float32)
    vectors[::2] = vectors[1::2] + 1e-3  # near-copies, which are not asked about together
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.arange(400)
    gaps, ranks = [], []
    for _ in range(50):
        query, first, second = uncertain_triplet(vectors, rows, random)
        assert len({query, first, second}) == 3
        assert np.linalg.norm(vectors[first] - vectors[second]) > 0.05
        distances = np.linalg.norm(vectors - vectors[query], axis=1)
        gaps.append(abs(distances[first] - distances[second]))
        ranks.append((distances < min(distances[first], distances[second])).sum())
    assert np.median(gaps) < 0.01
    assert max(ranks) < 100
    assert set(uncertain_triplet(vectors, np.array([7, 9, 12]), random)) == {7, 9, 12}


def test_near_copies_of_the_query_are_not_asked_about():
    random = np.random.default_rng(1)
    vectors = random.standard_normal((40, 8)).astype(np.float32)
    vectors[:10] = vectors[0]  # ten copies of one picture
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for _ in range(100):
        query, first, second = uncertain_triplet(vectors, np.arange(40), random)
        assert np.linalg.norm(vectors[first] - vectors[second]) > 0.05
        assert (query >= 10) or (min(first, second) >= 10)


@pytest.mark.parametrize("last", [b"", b"\n"])
def test_a_line_is_added_below_the_last_one(tmp_path, last):
    file = tmp_path / "table.csv"
    file.write_bytes(b"query,positive,negative,votes,votes_against\na,b,c,2,0" + last)
    assert JudgmentFile(file).append("d", "e", "f") == 2
    assert file.read_text().splitlines()[1:] == ["a,b,c,2,0", "d,e,f,1,0"]
    (tmp_path / "empty.csv").touch()
    assert JudgmentFile(tmp_path / "empty.csv").append("d", "e", "f") == 1
    assert len((tmp_path / "empty.csv").read_text().splitlines()) == 2
    (tmp_path / "header.csv").write_text("query,positive,negative,votes_against,votes\n")
    with pytest.raises(InputError, match="has other columns"):
        JudgmentFile(tmp_path / "header.csv")


def test_an_explanation_by_the_api(place, page):
    asked = {"query": "disc_0.png", "neighbor": "disc/disc_1.png"}
    assert page.get("/v1/explain", params=asked).json()["pairs"] is None
    found = page.get("/v1/explain", params=asked | {"pairs": True})
    assert found.status_code == 200, found.text
    explanation = found.json()
    schemas.Explanation.model_validate(explanation)
    model = load(place / "runs" / "small", index=place / "my-index")
    expected = model.explain("disc_0.png", "disc_1.png")
    assert (explanation["query"], explanation["neighbor"]) == ("disc/disc_0.png", "disc/disc_1.png")
    assert explanation["exact"]
    np.testing.assert_allclose(explanation["query_map"], expected.query_map, atol=1e-5)
    np.testing.assert_allclose(explanation["pairs"], expected.pairs, atol=1e-5)
    assert explanation["resize"] == "stretch"
    refused(page.get("/v1/explain", params={"query": "disc_0.png", "neighbor": "none.png"}), 404, "none.png")
    refused(page.get("/v1/explain", params={"query": "disc_0.png"}), 422, "neighbor")
