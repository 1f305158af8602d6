"""Importance of the tasks that are judged, and targets, which are judged but not mixed."""

import numpy as np
import pytest

from taskpgm.mixture import bootstrap_weights, energy_from_affinity, ratio_path, solve_exact
from tests.mixture.matrices import affinity

N = 12


def test_importance_replaces_the_mean_over_tasks_in_the_unary_term_alone():
    s = affinity(N)
    w = np.random.default_rng(0).dirichlet(np.ones(N))
    made, plain = energy_from_affinity(s, 2.5, importance=w), energy_from_affinity(s, 2.5)
    np.testing.assert_allclose(made.unary, 2.5 * s @ w)
    np.testing.assert_array_equal(made.pairwise, plain.pairwise)
    uniform = energy_from_affinity(s, 2.5, importance=np.full(N, 1 / N))
    np.testing.assert_allclose(uniform.unary, plain.unary)


def test_the_task_that_matters_gains_weight():
    x = np.random.default_rng(1).normal(size=(N, 40))
    s = x @ x.T / 40
    for task in range(N):
        some = solve_exact(energy_from_affinity(s, 2.0, importance=np.eye(N)[task])).weights
        assert some[task] > 2 * solve_exact(energy_from_affinity(s, 2.0)).weights[task]


def test_targets_enter_the_unary_term_and_no_other():
    both = affinity(N + 3)
    s, targets = both[:N, :N], both[:N, N:]
    made = energy_from_affinity(s, 2.0, judged=targets)
    np.testing.assert_allclose(made.unary, 2.0 * targets.mean(1))
    np.testing.assert_array_equal(made.pairwise, energy_from_affinity(s, 2.0).pairwise)
    weighted = energy_from_affinity(s, 2.0, judged=both[:N], importance=np.eye(N + 3)[N + 1])
    np.testing.assert_allclose(weighted.unary, 2.0 * targets[:, 1])
    assert solve_exact(made).weights.shape == (N,)
    ratios = energy_from_affinity(s, [0.5, 2.0], judged=targets)
    np.testing.assert_allclose(ratios.unary[1], made.unary)


def test_the_path_and_the_resamples_know_them():
    both = affinity(N + 3)
    s, targets = both[:N, :N], both[:N, N:]
    known = {"judged": targets, "importance": [0.5, 0.25, 0.25]}
    path = ratio_path(s, ratio_max=5.0, **known)
    exact = solve_exact(energy_from_affinity(s, 3.0, **known)).weights
    np.testing.assert_allclose(path.at(3.0), exact, atol=1e-10)
    found = bootstrap_weights(np.stack([s, s]), 3.0, **known)
    np.testing.assert_allclose(found.weights, [exact, exact], atol=1e-10)


@pytest.mark.parametrize(
    "known, says",
    [
        ({"importance": np.ones(N)}, "importance has to be a mixture"),
        ({"importance": np.ones(3) / 3}, "importance has 3 entries where there are 12"),
        ({"judged": np.ones((3, 2))}, "judged has shape"),
        ({"judged": np.full((N, 2), np.nan)}, "finite"),
    ],
)
def test_bad_input_is_an_error_of_one_line(known, says):
    with pytest.raises(ValueError, match=says) as error:
        energy_from_affinity(affinity(N), 1.0, **known)
    assert "\n" not in str(error.value)
