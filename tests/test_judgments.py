"""People's judgments: reading them, training on them, and measuring how often a network agrees."""

import json

import keras
import numpy as np
import pytest
from conftest import draw, script, write_folders
from hypothesis import given
from hypothesis import strategies as st

from dr_keras.config import Config, RankingConfig
from dr_keras.data.judgments import Judgments, JudgmentSampler, read_judgments
from dr_keras.data.sources.table import read_table
from dr_keras.errors import InputError, RunError
from dr_keras.evaluation.evaluate import evaluate_run
from dr_keras.evaluation.judgments import evaluate_judgments, judgment_figures
from dr_keras.loading import load
from dr_keras.model.network import embedding_network, training_network
from dr_keras.model.ranking import TripletRanking
from dr_keras.training import callbacks
from dr_keras.training import run as run_module
from dr_keras.training.train import train

COUNT = 12


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures without class folders, and judgments about them: the brighter one is more alike."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(COUNT):
        draw(("disc", "bars")[number % 2], random).save(folder / f"{number}.png")
    lines = ["query,positive,negative,votes,votes_against"]
    for query in range(COUNT - 1):
        positive, negative = (query + 2) % COUNT, (query + 1) % COUNT  # of the same kind, of the other
        lines.append(f"pictures/{query}.png,pictures/{positive}.png,pictures/{negative}.png,3,{query % 2}")
    lines += ["pictures/0.png,pictures/1.png,pictures/4.png,1,4", "pictures/0.png,pictures/5.png,pictures/4.png,2,2"]
    (tmp_path / "judgments.csv").write_text("\n".join(lines))
    return tmp_path


def numbers(name, _where):
    return int(name)


def table(tmp_path, text):
    (tmp_path / "table.csv").write_text(text)
    return tmp_path / "table.csv"


def test_reading(tmp_path):
    text = "negative, Query ,positive,votes,votes_against\n2,0,1,3,1\n5,4,3,,\n"
    found = read_judgments(table(tmp_path, text), numbers)
    assert found.images.tolist() == [[0, 1, 2], [4, 3, 5]]
    assert found.votes.tolist() == [3, 1]
    assert found.against.tolist() == [1, 0]
    np.testing.assert_allclose(found.agreement, [0.5, 1])


def test_lines_about_the_same_three_images_are_one_judgment(tmp_path):
    text = "query,positive,negative,votes,votes_against\n0,1,2,1,0\n0,2,1,4,1\n1,0,2,1,0\n0,1,2,0.5,0\n"
    found = read_judgments(table(tmp_path, text), numbers)
    assert found.images.tolist() == [[0, 1, 2], [1, 0, 2]]
    assert found.votes.tolist() == [2.5, 1]
    assert found.against.tolist() == [4, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,positive\n0,1\n", "has the columns query, positive; expected query, positive, negative"),
        ("query,positive,negative\n", "lists no judgments"),
        ("query,positive,negative\n0,1,1\n", "line 2: a judgment is about three different images"),
        ("query,positive,negative,votes\n0,1,2,many\n", "line 2: votes is 'many'; expected a number"),
        ("query,positive,negative,votes\n0,1,2,0\n", "line 2: votes are 0 and 0"),
        ("query,positive,negative,votes\n0,1,2,-1\n", "line 2: votes are -1 and 0"),
        ("query,positive,negative,votes\n0,1,2,nan\n", "line 2: votes are nan and 0"),
        ('query,positive,negative\n"0,1,2\n', "cannot be read as a CSV file"),
    ],
)
def test_a_bad_file_says_where(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_judgments(table(tmp_path, text), numbers)


def test_the_lines_of_any_table_belong_to_the_data():
    assert [path.name for path in Config(triplets="a.csv").tables] == ["a.csv"]
    pairs = Config(sampling="relevance", relevance="PAIRS.CSV")
    assert [path.name for path in pairs.tables] == ["PAIRS.CSV"]
    assert Config(sampling="relevance").tables == []


def test_a_missing_file_is_a_clear_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        list(read_table(tmp_path / "none.csv", "query"))


def some_judgments():
    images = np.array([[0, 1, 2], [0, 2, 3], [4, 1, 0], [5, 0, 1]])
    return Judgments(images, np.array([4.0, 1.0, 2.0, 3.0]), np.array([0.0, 3.0, 2.0, 1.0]))


def test_the_majority_says_which_is_the_positive():
    found = some_judgments().decided()
    assert found.images.tolist() == [[0, 1, 2], [0, 3, 2], [5, 0, 1]]
    assert found.votes.tolist() == [4, 3, 3]
    assert found.against.tolist() == [0, 1, 1]


def test_an_epoch_draws_each_judgment_once_with_its_weight():
    sampler = JudgmentSampler(some_judgments(), np.arange(6) % 2, batch_size=2, seed=1)
    assert sampler.steps_per_epoch == 2
    for epoch in range(3):
        batches = [sampler.batch(2 * epoch + step) for step in range(2)]
        drawn = {
            (int(q), int(p), int(n)): float(w)
            for batch in batches
            for q, p, n, w in zip(batch.query, batch.positive, batch.negative, batch.weights, strict=True)
        }
        assert drawn == pytest.approx({(0, 1, 2): 1.5, (0, 3, 2): 0.75, (5, 0, 1): 0.75})
    alone = JudgmentSampler(some_judgments(), np.arange(6) % 2, batch_size=2, seed=1).batch(4)
    assert np.array_equal(alone.query, sampler.batch(4).query)
    assert alone.classes.tolist() == [[q % 2, n % 2] for q, n in zip(alone.query, alone.negative, strict=True)]
    with pytest.raises(InputError, match="no judgment has a majority"):
        JudgmentSampler(some_judgments().take(np.array([2])), np.zeros(6), 2, 0)


def test_weights_multiply_the_losses_of_triplets():
    vectors = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    weights = np.array([0, 1, 2, 0.5], np.float32)
    layer = TripletRanking(margin=5.0)
    plain = keras.ops.convert_to_numpy(layer(vectors)["loss"])
    weighted = layer(vectors, weights=weights)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weighted["loss"]), plain * weights, rtol=1e-5)
    assert float(layer.losses[-1]) == pytest.approx((plain * weights).mean(), rel=1e-5)

    config = Config(image_size=16, backbone="resnet10", width=4, embedding_dim=8)
    model = training_network(embedding_network(config), RankingConfig(mining="none"), weighted=True)
    assert sorted(model.input) == ["classes", "negative", "positive", "query", "weights"]


def slow_figures(judgments, vectors):
    """The definitions, one judgment at a time."""
    right = decided = agreed = votes = most = 0.0
    for (q, p, n), pro, con in zip(judgments.images, judgments.votes, judgments.against, strict=True):
        near, far = (np.linalg.norm(vectors[q] - vectors[other]) for other in (p, n))
        if pro != con:
            decided += 1
            right += (near < far) == (pro > con)
        agreed += pro if near < far else con
        votes += pro + con
        most += max(pro, con)
    return right / decided, agreed / votes, most / votes


@given(st.integers(0, 10**6))
def test_figures_equal_the_definitions(seed):
    random = np.random.default_rng(seed)
    images = np.array([random.permutation(7)[:3] for _ in range(20)])
    judgments = Judgments(images, random.integers(0, 4, 20).astype(float), random.integers(1, 4, 20).astype(float))
    judgments.votes[0] = judgments.against[0] + 1
    vectors = random.standard_normal((7, 3))
    found = judgment_figures(judgments, vectors, seed=0)
    expected = slow_figures(judgments, vectors)
    assert (found["agreement"], found["vote_agreement"], found["vote_ceiling"]) == pytest.approx(expected)
    assert found["vote_agreement"] <= found["vote_ceiling"]
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high
    assert (found["judgments"] + found["ties"], found["votes"]) == (20, judgments.votes.sum() + judgments.against.sum())


def test_no_majority_at_all_is_a_clear_error():
    with pytest.raises(InputError, match="no judgment has a majority"):
        judgment_figures(Judgments(np.array([[0, 1, 2]]), np.ones(1), np.ones(1)), np.eye(3), seed=0)


NETWORK = {"image_size": 16, "backbone": "resnet10", "width": 4, "embedding_dim": 8, "precision": "float32"}


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("by_class", [False, True])
def test_training_on_judgments(pictures, by_class, monkeypatch):
    monkeypatch.setattr(run_module, "_export", lambda *_: {})
    data = pictures if by_class else pictures / "pictures"  # one folder of pictures, in a folder or by itself
    config = Config(
        data=str(data), triplets=str(pictures / "judgments.csv"), run="r", epochs=2, batch_size=4, shift=1, **NETWORK
    )
    assert (config.softmax_epochs, config.mining, config.classifier_weight, config.monitor) == (0, "none", 0, 0)
    assert config.sizes == ((16, 1),)
    model = train(config, runs=pictures)
    assert len(model.run.history_file.read_text().splitlines()) == 1 + 2 * 3  # 12 judgments have a majority
    assert len(model.index.records.listing()) == COUNT
    found = evaluate_judgments(model, pictures / "judgments.csv")
    assert found["head"] == "trained"
    assert (found["judgments"], found["ties"]) == (12, 1)
    assert set(found["baselines"]) == {"pixels", "untrained"}
    same = evaluate_judgments(model, pictures / "judgments.csv", data=str(data), baselines=False)
    assert same["agreement"] == found["agreement"]


def test_settings_that_need_classes_are_refused():
    for settings in ({"mining": "hard"}, {"proxies": 1}, {"pretrain_epochs": 2}, {"classifier_weight": 1.0}):
        name = "--" + next(iter(settings)).replace("_", "-")
        with pytest.raises(InputError, match=f"without classes; leave out {name}"):
            Config(triplets="a.csv", **settings)
    with pytest.raises(InputError, match="both choose the triplets"):
        Config(triplets="a.csv", sampling="relevance")
    assert (Config().mining, Config().classifier_weight, Config().monitor) == ("semi-hard", 1.0, 0.01)


def test_judgments_about_held_out_images_are_left_out_and_counted(pictures, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "_export", lambda *_: {})
    settings = NETWORK | {"epochs": 1, "batch_size": 2, "steps_per_epoch": 1, "shift": 1, "validation": 0.2}
    train(Config(data=str(pictures), triplets=str(pictures / "judgments.csv"), run="r", **settings), runs=pictures)
    shown = capsys.readouterr().err
    assert "are about held-out images" in shown
    assert "training on 12 judgments" not in shown


@pytest.mark.nightly
def test_a_resumed_run_needs_the_same_judgments(pictures, monkeypatch):
    monkeypatch.setattr(run_module, "_export", lambda *_: {})
    file = pictures / "judgments.csv"
    config = Config(data=str(pictures), triplets=str(file), run="r", epochs=2, batch_size=4, shift=1, **NETWORK)
    ended = callbacks.Checkpoints.on_train_batch_end

    def stop(self, batch, logs=None):
        ended(self, batch, logs)
        self._keep()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoints, "on_train_batch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, runs=pictures)
    text = file.read_text()
    file.write_text(text + "\npictures/3.png,pictures/5.png,pictures/6.png,1,0")
    with pytest.raises(RunError, match=r"the lines of .*judgments\.csv have changed"):
        train(config, runs=pictures, resume=True)
    file.write_text(text)
    assert train(config, runs=pictures, resume=True).run.finished


def test_names_may_be_those_of_the_data(pictures, monkeypatch):
    monkeypatch.setattr(run_module, "_export", lambda *_: {})
    settings = NETWORK | {"epochs": 1, "batch_size": 4, "steps_per_epoch": 1, "shift": 1}
    data = str(pictures / "pictures")
    elsewhere = pictures / "elsewhere"
    elsewhere.mkdir()
    text = (pictures / "judgments.csv").read_text().replace("pictures/", "")
    (elsewhere / "ids.csv").write_text(text)
    model = train(Config(data=data, triplets=str(elsewhere / "ids.csv"), run="r", **settings), runs=pictures)
    found = evaluate_judgments(model, elsewhere / "ids.csv", baselines=False)
    same = evaluate_judgments(model, pictures / "judgments.csv", baselines=False)
    assert (found["agreement"], found["vote_agreement"]) == (same["agreement"], same["vote_agreement"])
    assert model.head_for(data) == "trained"
    write_folders(pictures / "other", each=4)
    assert evaluate_run(model, data=str(pictures / "other"), baselines=False)["head"] == "trained"


def test_evaluate_script(pictures):
    arguments = ("evaluate.py", "--run", "tiny-imagenet-64", "--triplets", "judgments.csv")
    found = json.loads(script(pictures, *arguments, "--json", "--no-baselines").stdout)
    model = load("tiny-imagenet-64")
    expected = evaluate_judgments(model, pictures / "judgments.csv", baselines=False)
    assert found == expected
    assert found["head"] == "general"
    shown = script(pictures, *arguments).stdout
    assert f"{found['agreement']:.4f}" in shown
    assert "untrained" in shown
    for more, message in (
        (["--flip-average"], "--triplets cannot be combined with --flip-average"),
        (["--index", "mine"], "--triplets cannot be combined with --index"),
        (["--protocol", "class-disjoint"], "--triplets cannot be combined with --protocol"),
        (["--data", "digits"], "no image of the data set is named 'pictures/0.png'"),
    ):
        failed = script(pictures, *arguments, *more)
        assert failed.returncode == 2
        assert message in failed.stderr
    (pictures / "pictures" / "3.png").write_bytes(b"not a picture")
    assert "1 images of judgments.csv cannot be read" in script(pictures, *arguments).stderr
    (pictures / "pictures" / "3.png").unlink()
    assert "line 3: there is no file" in script(pictures, *arguments).stderr
