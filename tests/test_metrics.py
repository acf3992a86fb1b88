import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_keras.errors import InputError
from dr_keras.evaluation import metrics
from dr_keras.evaluation.metrics import average_precision_at_r, class_table, confused_pairs, evaluate
from dr_keras.evaluation.triplet_metrics import ranked_triplets


def clusters(seed=0, queries=40, gallery=200, classes=5, length=6, spread=1.0):
    random = np.random.default_rng(seed)
    centers = random.standard_normal((classes, length))
    query_labels, gallery_labels = random.integers(0, classes, queries), random.integers(0, classes, gallery)
    q, g = (
        (centers[labels] + spread * random.standard_normal((len(labels), length))).astype(np.float32)
        for labels in (query_labels, gallery_labels)
    )
    return q, query_labels, g, gallery_labels


def slow_figures(q, ql, g, gl):
    """The definitions, one query at a time."""
    rows = []
    for vector, label in zip(q, ql, strict=True):
        if label not in gl:
            continue
        order = np.argsort(np.linalg.norm(g.astype(np.float64) - vector, axis=1))
        right = gl[order] == label
        r = int((gl == label).sum())
        row = {}
        for k in (1, 10, 30):
            row[f"precision@{k}"] = right[: min(k, len(g))].mean()
            row[f"recall@{k}"] = float(right[:k].any())
        row["map@r"] = sum(right[: i + 1].mean() for i in range(r) if right[i]) / r
        rows.append(row)
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gallery", [12, 200])
@pytest.mark.parametrize("block", [1024, 7])
def test_equals_the_definitions(seed, gallery, block, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_QUERIES", block)
    data = clusters(seed, gallery=gallery)
    figures = evaluate(*data, class_count=5).figures
    for name, expected in slow_figures(*data).items():
        assert figures[name] == pytest.approx(expected, abs=1e-9), name


def test_perfect_and_hopeless():
    labels = np.repeat([0, 1], 40)
    gallery = np.where(labels[:, None] == 0, [0.0, 0.0], [5.0, 5.0]).astype(np.float32)
    perfect = evaluate(gallery[[0, 40]] + 0.1, np.array([0, 1]), gallery, labels, class_count=2).figures
    assert {name: perfect[name] for name in ("precision@30", "recall@1", "map@r", "similarity_precision")} == {
        "precision@30": 1, "recall@1": 1, "map@r": 1, "similarity_precision": 1
    }  # fmt: skip
    wrong = evaluate(gallery[[0, 40]] + 0.1, np.array([1, 0]), gallery, labels, class_count=2).figures
    assert wrong["precision@30"] == wrong["recall@30"] == wrong["map@r"] == wrong["similarity_precision"] == 0


def test_map_at_r_by_hand():
    right = np.array([[True, False, True, True], [False, False, True, True]])
    # R = 3: hits at ranks 1 and 3 of 3: (1 + 2/3) / 3. R = 2: no hit in the top 2.
    np.testing.assert_allclose(average_precision_at_r(right, np.array([3, 2])), [(1 + 2 / 3) / 3, 0])


def test_queries_without_a_right_answer_are_left_out_and_counted():
    q, ql, g, gl = clusters(classes=3)
    lonely = np.concatenate([ql, [3, 3]])
    more = np.concatenate([q, q[:2]])
    with_them = evaluate(more, lonely, g, gl, class_count=4)
    assert with_them.figures["queries_without_positive"] == 2
    without = evaluate(q, ql, g, gl, class_count=4).figures
    assert with_them.figures["precision@30"] == without["precision@30"]
    assert np.isnan(with_them.class_precision[3])
    with pytest.raises(InputError, match="no class in common"):
        evaluate(q[:2], np.array([3, 3]), g, gl, class_count=4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_similarity_precision_draws_from_the_right_classes(seed, classes):
    random = np.random.default_rng(seed)
    gl = np.concatenate([np.arange(classes), random.integers(0, classes, 20)])
    ql = random.integers(0, classes, 7)
    # One-dimensional vectors equal to the class: positives are at distance 0, negatives at 1 or more.
    triplets = ranked_triplets(ql[:, None], ql, gl[:, None], gl, seed=seed)
    near, far = triplets.near, triplets.far
    assert near.shape == far.shape == (7, 10)
    assert (near == 0).all()
    assert (far >= 1).all()


def test_similarity_precision_is_seeded():
    data = clusters()
    one, same, other = (evaluate(*data, class_count=5, seed=seed).figures["similarity_precision"] for seed in (1, 1, 2))
    assert one == same != other


def test_a_single_class_has_no_similarity_precision():
    q, _, g, _ = clusters()
    figures = evaluate(q, np.zeros(len(q), int), g, np.zeros(len(g), int), class_count=1).figures
    assert figures["precision@30"] == 1
    assert figures["similarity_precision"] is None
    assert figures["score_at_top_30"] is None


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_score_at_top_30_equals_the_definition(seed, leave_one_out):
    q, ql, g, gl = clusters(seed, gallery=90)
    if leave_one_out:
        q, ql = g, gl
    own = np.arange(len(q)) if leave_one_out else None
    triplets = ranked_triplets(q, ql, g, gl, seed=seed, own=own)
    score = counted = 0
    for query in range(len(q)):
        distances = np.linalg.norm(g.astype(np.float64) - q[query], axis=1)
        if leave_one_out:
            distances[query] = np.inf
        nearest = set(np.argsort(distances)[:30].tolist())
        for p, n in zip(triplets.positive[query].tolist(), triplets.negative[query].tolist(), strict=True):
            assert (gl[p], gl[n] != ql[query]) == (ql[query], True)
            if {p, n} & nearest:
                counted += 1
                score += 1 if distances[p] < distances[n] else -1
    figures = evaluate(q, ql, g, gl, class_count=5, seed=seed, leave_one_out=leave_one_out).figures
    assert (figures["score_at_top_30"], figures["triplets_at_top_30"]) == (score, counted)
    assert 0 < counted < 10 * len(q)
    low, high = figures["intervals"]["score_at_top_30"]
    assert low < score < high


def test_tables():
    gallery = np.array([[0.0], [0.1], [1.0], [1.1]], np.float32)
    labels = np.array([0, 0, 1, 1])
    # All four are among the 30 nearest, so half of the results for each class are its own.
    ranking = evaluate(np.array([[0.05], [1.05]], np.float32), np.array([0, 1]), gallery, labels, class_count=3)
    assert [row["class"] for row in class_table(ranking, ("a", "b", "c"), ("A", "B", "C"))] == ["a", "b"]
    assert confused_pairs(ranking, ("A", "B", "C")) == [
        {"query": "A", "neighbor": "B", "share": 0.5},
        {"query": "B", "neighbor": "A", "share": 0.5},
    ]
