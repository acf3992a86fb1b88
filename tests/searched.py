"""Helpers shared by the tests of search and of the index."""

import numpy as np

RANDOM = np.random.default_rng(0)


def unit(count, length=8):
    vectors = RANDOM.standard_normal((count, length)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def slow(queries, gallery, k):
    d = np.linalg.norm(queries[:, None].astype(np.float64) - gallery[None], axis=2)
    return np.argsort(d, axis=1, kind="stable")[:, :k], np.sort(d, axis=1)[:, :k]
