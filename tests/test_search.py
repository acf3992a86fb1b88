"""Exact search against the full sort."""

import numpy as np
import pytest
from searched import RANDOM, slow, unit

from dr_keras.index import exact_search as search
from dr_keras.index.exact_search import distances, nearest, stretches


@pytest.mark.parametrize("queries", [1, 8, 9, 60])
@pytest.mark.parametrize("k", [1, 5, 300, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_nearest_equals_the_full_sort(queries, k, dtype, monkeypatch):
    monkeypatch.setattr(search, "FEW_QUERIES", 8)  # more queries go through FAISS
    monkeypatch.setattr(search, "PRODUCT_VALUES", 1000)  # and fewer in blocks of 3
    monkeypatch.setattr(search, "BLOCK_VALUES", 700)  # splits a uint8 gallery into blocks of 100
    gallery = (RANDOM.random((300, 7)) * 255).astype(dtype)
    asked = (RANDOM.random((queries, 7)) * 255).astype(dtype)
    rows, squared = nearest(asked, gallery, k)
    _, expected = slow(asked, gallery, k)
    assert rows.shape == squared.shape == (queries, min(k, 300))
    np.testing.assert_allclose(np.sqrt(squared), expected, rtol=1e-3, atol=0.3)
    np.testing.assert_allclose(distances(asked, gallery, rows), expected, rtol=1e-3, atol=0.3)
    assert all(len(set(found)) == len(found) for found in rows.tolist())


@pytest.mark.parametrize("queries", [2, 9])  # with NumPy and with FAISS
def test_candidates_are_ranked_by_exact_differences(queries, monkeypatch):
    monkeypatch.setattr(search, "FEW_QUERIES", 8)
    gallery, asked = unit(50, 7), unit(queries, 7)
    gallery[20:] = gallery[:30]
    asked[0] = gallery[3]
    proposed = np.stack([RANDOM.permutation(50)[:40] for _ in range(queries)])
    proposed[0] = np.r_[23, 3, -1, -1, np.setdiff1d(np.arange(50), [3, 23])[:36]]
    rows, found = search.ranked(asked, gallery, proposed, 30)
    assert (rows[0, :2].tolist(), found[0, :2].tolist()) == ([3, 23], [0, 0])
    for query, some, places, values in zip(asked, proposed, rows, found, strict=True):
        some = np.sort(some[some >= 0])
        expected = np.linalg.norm(gallery[some].astype(np.float64) - query, axis=1)
        np.testing.assert_allclose(values, np.sort(expected)[:30], atol=1e-6)
        assert set(places.tolist()) <= set(some.tolist())
        ties = values[:-1] == values[1:]
        assert (places[:-1][ties] < places[1:][ties]).all()
    few = np.full((queries, 3), -1)
    few[:, 1] = 5
    rows, found = search.ranked(asked, gallery, few, 2)
    assert rows.tolist() == [[5, -1]] * queries
    assert np.isinf(found[:, 1]).all()


@pytest.mark.parametrize("unit_length", [False, True])
@pytest.mark.parametrize("queries", [2, 9])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97, 1.0])
def test_nearest_of_some_rows_equals_the_full_sort_of_them(queries, share, unit_length, monkeypatch):
    monkeypatch.setattr(search, "FEW_QUERIES", 8)
    monkeypatch.setattr(search, "MIN_RUN_ROWS", 8)
    monkeypatch.setattr(search, "BLOCK_VALUES", 350)  # splits gathered rows into blocks of 50
    gallery, asked = unit(400, 7), 1.5 * unit(queries, 7)
    rows = np.flatnonzero(RANDOM.random(400) < share)
    found, squared = nearest(asked, gallery, 10, rows=rows, unit=unit_length)
    places, expected = slow(asked, gallery[rows], 10)
    assert np.array_equal(found, rows[places])
    np.testing.assert_allclose(np.sqrt(squared), expected, atol=1e-3)


def test_stretches():
    assert stretches(np.array([], np.int64)).tolist() == []
    assert stretches(np.array([4])).tolist() == [[4, 5]]
    assert stretches(np.array([0, 1, 2, 5, 7, 8])).tolist() == [[0, 3], [5, 6], [7, 9]]
