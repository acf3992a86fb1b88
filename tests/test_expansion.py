import numpy as np
import pytest

from dr_keras.errors import InputError
from dr_keras.evaluation import SearchOptions
from dr_keras.retrieval import expansion
from dr_keras.retrieval.expansion import average_gallery, expand_queries, unit_length


def unit(seed, *shape):
    return unit_length(np.random.default_rng(seed).standard_normal(shape))


def slow(vector, gallery, count, itself=None):
    """The weighted mean of a vector and its neighbours, written out."""
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
    monkeypatch.setattr(expansion, "BLOCK", 16)
    gallery = unit(1, 50, 6)
    expected = [slow(vector, gallery, count, row) for row, vector in enumerate(gallery)]
    np.testing.assert_allclose(average_gallery(gallery, count), expected, atol=1e-5)


def test_more_neighbours_than_there_are():
    gallery = unit(1, 3, 4)
    assert average_gallery(gallery, 30).shape == (3, 4)
    assert np.isfinite(expand_queries(gallery[:1], gallery, 30)).all()


def test_options_out_of_range():
    with pytest.raises(InputError, match="--query-expansion"):
        SearchOptions(query_expansion=-1)
