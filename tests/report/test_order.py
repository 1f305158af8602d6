"""The clustering against scipy's, and against families that were planted."""

import numpy as np
import pytest

from taskpgm.report import cluster


def symmetric(n: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(n, n))
    return noise + noise.T


@pytest.mark.parametrize("n", [2, 3, 7, 40])
def test_heights_are_those_of_average_linkage(n):
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    matrix = symmetric(n, n)
    distance = matrix[~np.eye(n, dtype=bool)].max() - matrix
    expected = hierarchy.average(distance[np.triu_indices(n, 1)])[:, 2]
    found = [merge[-1] for merge in cluster(matrix).merges]
    np.testing.assert_allclose(sorted(found), sorted(expected), atol=1e-12)


def test_order_is_a_permutation_and_brings_families_together():
    of = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 8))
    matrix = 0.2 * symmetric(40, 1) + 3.0 * (of[:, None] == of)
    order = cluster(matrix).order
    assert sorted(order) == list(range(40))
    assert (np.diff(of[order]) != 0).sum() == 4


def test_brackets_join_at_the_middle_of_their_branches():
    matrix = np.array([[0, 5, 1, 1], [5, 0, 1, 1], [1, 1, 0, 4], [1, 1, 4, 0.0]])
    merges = cluster(matrix).merges
    assert sorted(merges[:2]) == [(0.0, 1.0, 0.0, 0.0, 0.0), (2.0, 3.0, 0.0, 0.0, 1.0)]
    left, right, *heights, at = merges[2]
    assert (left, right, sorted(heights), at) == (0.5, 2.5, [0.0, 1.0], 4.0)


@pytest.mark.parametrize("matrix", [np.zeros((1, 1)), np.zeros((2, 2)), np.ones((6, 6))])
def test_nothing_to_order_is_no_error(matrix):
    assert sorted(cluster(matrix).order) == list(range(len(matrix)))
