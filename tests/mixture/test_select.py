import itertools

import numpy as np
import pytest

from taskpgm.mixture import Energy, energy_from_affinity, select_greedy, solve_exact
from tests.mixture.matrices import affinity


def values_of_all_subsets(unary, pairwise):
    """f of every subset by enumeration: f(A) is the largest over supports whose w is >= 0."""
    n = len(unary)
    own = np.zeros(2**n)
    for bits in range(1, 2**n):
        f = [i for i in range(n) if bits >> i & 1]
        w = np.linalg.solve(pairwise[np.ix_(f, f)], unary[f])
        own[bits] = 0.5 * unary[f] @ w if (w >= -1e-12).all() else 0
    for i in range(n):  # the maximum over all subsets of each set
        for bits in range(2**n):
            if bits >> i & 1:
                own[bits] = max(own[bits], own[bits ^ (1 << i)])
    return own


def random_problem(rng, n):
    x = rng.normal(size=(n, n + int(rng.integers(-1, 3)))) + rng.choice([0.0, 1.0, -1.0])
    pairwise = x @ x.T / n + rng.choice([1e-3, 1e-1, 1.0]) * np.eye(n)
    return rng.normal(size=n), pairwise


def bits_of(chosen):
    return sum(1 << int(i) for i in chosen)


def test_greedy_is_greedy_and_within_its_guarantee_on_many_matrices():
    rng = np.random.default_rng(3)
    worst = 1.0
    for trial in range(60):
        n = 6 if trial < 59 else 10
        unary, pairwise = random_problem(rng, n)
        f = values_of_all_subsets(unary - min(unary.min(), 0), pairwise)
        k = int(rng.integers(1, n + 1))
        found = select_greedy(Energy(unary, pairwise), k)
        assert len(set(found.order.tolist())) == k
        for step in range(k):
            before = bits_of(found.order[:step])
            best = max(f[before | 1 << i] for i in range(n) if not before >> i & 1)
            now = f[before | 1 << int(found.order[step])]
            assert now >= best - 1e-9 * max(1, best)
            np.testing.assert_allclose(found.values[step], now, rtol=1e-8, atol=1e-12)
        optimum = max(f[bits_of(c)] for c in itertools.combinations(range(n), k))
        assert found.values[-1] >= found.guarantee * optimum - 1e-12
        worst = min(worst, found.values[-1] / optimum)
    assert worst < 0.9  # not a test in which greedy is always right


def test_measured_submodularity_ratio_is_never_below_the_bound():
    rng = np.random.default_rng(1)
    closest = np.inf
    for _ in range(50):
        n = 5
        unary, pairwise = random_problem(rng, n)
        f = values_of_all_subsets(unary - min(unary.min(), 0), pairwise)
        gamma = select_greedy(Energy(unary, pairwise), 1).gamma
        for low in range(2**n):
            for more in range(1, 2**n):
                if low & more:
                    continue
                together = f[low | more] - f[low]
                apart = sum(f[low | 1 << i] - f[low] for i in range(n) if more >> i & 1)
                assert apart >= gamma * together - 1e-9 * max(1, f[low | more])
                if together > 1e-6:
                    closest = min(closest, apart / together)
    assert closest < 0.9  # f is not submodular: the bound is needed


def test_weights_are_the_exact_mixture_over_the_chosen():
    energy = energy_from_affinity(affinity(40), 3.0)
    found = select_greedy(energy, 10)
    chosen = np.sort(found.order)
    part = Energy(energy.unary[chosen], energy.pairwise[np.ix_(chosen, chosen)])
    np.testing.assert_allclose(found.weights[chosen], solve_exact(part).weights, atol=1e-10)
    assert np.delete(found.weights, chosen).max() == 0
    assert (np.diff(found.values) >= -1e-12).all()
    np.testing.assert_allclose(found.guarantee, 1 - np.exp(-found.gamma))
    shifted = energy_from_affinity(affinity(40), 3.0, psd="shift")
    least = np.linalg.eigvalsh(shifted.pairwise)[0]
    found = select_greedy(shifted, 10)
    np.testing.assert_allclose(found.gamma, least / np.diag(shifted.pairwise).max())


def test_a_matrix_convex_on_the_simplex_alone_is_raised_along_the_mean():
    energy = energy_from_affinity(affinity(12), 3.0)
    assert np.linalg.eigvalsh(energy.pairwise)[0] < 0
    found = select_greedy(energy, 4)
    basis = np.linalg.svd(np.eye(12) - 1 / 12)[0][:, :11]
    inside = np.linalg.eigvalsh(basis.T @ energy.pairwise @ basis)[0]
    shifts = np.linspace(0, 100, 100001)
    assert 0 < found.gamma < 1 and inside > 0
    raised = next(a for a in shifts if np.linalg.eigvalsh(energy.pairwise + a)[0] >= inside / 2)
    f = values_of_all_subsets(energy.unary - min(energy.unary.min(), 0), energy.pairwise + raised)
    np.testing.assert_allclose(found.values[-1], f[bits_of(found.order)], rtol=1e-2)
    np.testing.assert_allclose(found.share, found.values / f[-1], rtol=1e-2)


def test_the_share_is_a_guarantee_for_every_k_and_ends_at_one():
    rng = np.random.default_rng(2)
    for _ in range(10):
        unary, pairwise = random_problem(rng, 7)
        f = values_of_all_subsets(unary - min(unary.min(), 0), pairwise)
        found = select_greedy(Energy(unary, pairwise), 7)
        np.testing.assert_allclose(found.share, found.values / f[-1], rtol=1e-8)
        np.testing.assert_allclose(found.share[-1], 1.0)
        for k in range(1, 8):
            best = max(f[bits_of(c)] for c in itertools.combinations(range(7), k))
            assert found.values[k - 1] >= found.share[k - 1] * best - 1e-12
    nothing = select_greedy(Energy(np.zeros(3), np.eye(3)), 2)
    np.testing.assert_array_equal(nothing.share, [1.0, 1.0])


def test_all_tasks_and_ties():
    energy = energy_from_affinity(np.zeros((5, 5)), 1.0)
    np.testing.assert_array_equal(select_greedy(energy, 5).order, np.arange(5))
    every = select_greedy(energy_from_affinity(affinity(40), 3.0), 40)
    np.testing.assert_array_equal(np.sort(every.order), np.arange(40))
    exact = solve_exact(energy_from_affinity(affinity(40), 3.0))
    np.testing.assert_allclose(every.weights, exact.weights, atol=1e-10)


@pytest.mark.parametrize(
    "energy, k, says",
    [
        (Energy(np.ones(3), np.eye(3)), 0, "k=0"),
        (Energy(np.ones(3), np.eye(3)), 4, "k=4"),
        (Energy(np.ones(3), np.eye(3)), 1.5, "k=1.5"),
        (Energy(np.ones(2), np.ones((2, 2))), 1, "not positive definite"),
        (Energy(np.ones((2, 3)), np.eye(3)), 1, "one energy"),
    ],
)
def test_bad_input_is_an_error_of_one_line(energy, k, says):
    with pytest.raises(ValueError, match=says):
        select_greedy(energy, k)
