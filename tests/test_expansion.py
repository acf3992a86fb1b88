import numpy as np
import pytest

from dr_keras.errors import InputError
from dr_keras.evaluation import query_expansion as expansion
from dr_keras.evaluation.evaluate import SearchOptions
from dr_keras.evaluation.query_expansion import average_gallery, expand_queries, unit_length
from dr_keras.search_results import refined_query


def unit(seed, *shape):
    return unit_length(np.random.default_rng(seed).standard_normal(shape))


def slow(vector, gallery, count, itself=None):
    """The weighted mean of a vector and its neighbors, written out."""
    cosines = gallery @ vector
    order = [row for row in np.argsort(-cosines, kind="stable") if row != itself][:count]
    total = vector + sum(max(cosines[row], 0) ** 3 * gallery[row] for row in order)
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("count", [1, 5])
def test_query_expansion_equals_the_plain_loop(count):
    queries, gallery = unit(0, 20, 6), unit(1, 50, 6)
    expected = [slow(query, gallery, count) for query in queries]
    np.testing.assert_allclose(expand_queries(queries, gallery, count), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 7])
def test_gallery_averaging_equals_the_plain_loop(count, monkeypatch):
    monkeypatch.setattr(expansion, "BLOCK_VECTORS", 16)
    gallery = unit(1, 50, 6)
    expected = [slow(vector, gallery, count, row) for row, vector in enumerate(gallery)]
    np.testing.assert_allclose(average_gallery(gallery, count), expected, atol=1e-5)


def test_more_neighbors_than_there_are():
    gallery = unit(1, 3, 4)
    assert average_gallery(gallery, 30).shape == (3, 4)
    assert np.isfinite(expand_queries(gallery[:1], gallery, 30)).all()


def test_options_out_of_range():
    with pytest.raises(InputError, match="--query-expansion"):
        SearchOptions(query_expansion=-1)


def test_a_refined_query_is_like_the_positives_and_unlike_the_negatives():
    random = np.random.default_rng(0)
    vectors = unit_length(random.standard_normal((6, 8)).astype(np.float32))
    assert refined_query(vectors[:1], vectors[:0]).tolist() == vectors[0].tolist()
    found = refined_query(vectors[:3], vectors[3:5])
    expected = vectors[:3].mean(axis=0) - 0.5 * vectors[3:5].mean(axis=0)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    assert found @ vectors[3] < refined_query(vectors[:3], vectors[:0]) @ vectors[3]
    with pytest.raises(InputError, match="cancel each other out"):
        refined_query(np.stack([vectors[0], -vectors[0]]), vectors[:0])
