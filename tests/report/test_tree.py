"""The tree beside the heat map against scipy's, and the order it stands on."""

import numpy as np
import pytest

from taskpgm.mixture.clustering import order_rows
from taskpgm.report.tree import Merge, merges


def symmetric(n: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(n, n))
    noise += noise.T
    np.fill_diagonal(noise, 0)
    return noise


@pytest.mark.parametrize("n", [2, 3, 7, 60])
def test_heights_are_those_of_average_linkage(n):
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    matrix = symmetric(n, n)
    distance = matrix[~np.eye(n, dtype=bool)].max() - matrix
    expected = hierarchy.average(distance[np.triu_indices(n, 1)])[:, 2]
    order = order_rows(matrix)
    found = [merge.height for merge in merges(matrix[np.ix_(order, order)])]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_brackets_join_at_the_middle_of_their_branches():
    matrix = np.array([[0, 5, 1, 1], [5, 0, 1, 1], [1, 1, 0, 4], [1, 1, 4, 0.0]])
    assert merges(matrix) == [
        Merge((0, 1), (0, 0), 0),
        Merge((2, 3), (0, 0), 1),
        Merge((0.5, 2.5), (0, 1), 4),
    ]


@pytest.mark.parametrize("matrix", [np.zeros((1, 1)), np.zeros((2, 2)), np.ones((6, 6))])
def test_nothing_to_order_is_no_error(matrix):
    assert [merge.height for merge in merges(matrix)] == [0.0] * (len(matrix) - 1)
