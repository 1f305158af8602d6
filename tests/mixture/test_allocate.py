import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskpgm.mixture import allocate


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_totals_are_exact_and_limits_hold(data):
    n = data.draw(st.integers(1, 5))  # each number of tasks is compiled
    weights = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    if weights.sum() < 1e-6:
        weights[0] = 1
    weights = weights / weights.sum()
    sizes = np.array(data.draw(st.lists(st.integers(0, 50), min_size=n, max_size=n)))
    epochs = data.draw(st.sampled_from([1.0, 2.0, 0.5, 3.7]))
    limit = np.floor(np.round(epochs * sizes, 6))
    budget = data.draw(st.integers(0, int(limit.sum())))
    counts = allocate(weights, budget, sizes, epochs)
    assert counts.dtype == np.int64 and counts.sum() == budget
    assert (counts >= 0).all() and (counts <= limit).all()
    # A task without weight is used only when those with weight are exhausted.
    if (counts[weights == 0] > 0).any():
        assert (counts[weights > 0] == limit[weights > 0]).all()
    if (np.round(weights * budget, 9) <= limit).all():
        assert (np.abs(counts - weights * budget) < 1 + 1e-6).all()  # quota


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(0, 10**7))
def test_without_limits_it_is_largest_remainder(parts, budget):
    parts = np.array(parts)
    if parts.sum() == 0:
        parts[0] = 1
    counts = allocate(parts / parts.sum(), budget)
    # In whole numbers: no rounding to disagree about.
    quotient, remainder = np.divmod(parts * budget, parts.sum())
    order = sorted(range(len(parts)), key=lambda i: (-remainder[i], i))
    expected = quotient.copy()
    expected[order[: budget - int(expected.sum())]] += 1
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(
    "weights, budget, sizes, epochs, expected",
    [
        ([1.0], 7, None, 1, [7]),
        ([0.5, 0.5], 3, None, 1, [2, 1]),  # a tie goes to the lower index
        ([1 / 3] * 3, 2, None, 1, [1, 1, 0]),
        ([0.29, 0.71], 100, None, 1, [29, 71]),
        ([1 / 75, 20 / 75, 21 / 75, 33 / 75], 30, None, 1, [1, 8, 8, 13]),  # 0.4 and 8.4 tie
        ([0.5, 0.5], 0, None, 1, [0, 0]),
        ([1.0, 0.0], 10, [10, 10], 1, [10, 0]),
        ([1.0, 0.0], 12, [10, 10], 1, [10, 2]),
        ([0.8, 0.2, 0.0], 10, [4, 100, 100], 1, [4, 6, 0]),
        ([0.5, 0.5], 20, [10, 10], 1, [10, 10]),
        ([0.9, 0.1], 10, [3, 100], 2, [6, 4]),
        ([0.9, 0.1], 29, [100, 100], 0.29, [26, 3]),
        ([1.0, 0.0, 0.0], 9, [3, 3, 3], 1, [3, 3, 3]),
        ([0.0, 1.0], 5, [0, 9], 1, [0, 5]),
        ([0.25] * 4, 10**12 + 2, None, 1, [250000000001, 250000000001, 25 * 10**10, 25 * 10**10]),
    ],
)
def test_known_counts(weights, budget, sizes, epochs, expected):
    np.testing.assert_array_equal(allocate(weights, budget, sizes, epochs), expected)


def test_a_published_budget_is_met_exactly():
    weights = np.random.default_rng(0).dirichlet(np.full(316, 0.1))
    sizes = np.random.default_rng(1).integers(50, 3000, 316)
    assert allocate(weights, 25_000, sizes).sum() == 25_000


@pytest.mark.parametrize(
    "arguments, says",
    [
        (([0.5, 0.6], 3), "one mixture"),
        (([1.5, -0.5], 3), "one mixture"),
        (([[1.0]], 3), "one mixture"),
        (([np.nan, 1], 3), "finite"),
        (([], 3), "n >= 1"),
        (([1.0], -1), "budget=-1"),
        (([1.0], 1.5), "budget=1.5"),
        (([1.0], 5, [4]), "more than the 4 examples"),
        (([1.0], 5, [4, 4]), "2 entries where there are 1"),
        (([1.0], 5, [-4]), ">= 0"),
        (([1.0], 5, [4], -1.0), ">= 0"),
    ],
)
def test_bad_input_is_an_error_of_one_line(arguments, says):
    with pytest.raises(ValueError, match=says) as error:
        allocate(*arguments)
    assert "\n" not in str(error.value)
