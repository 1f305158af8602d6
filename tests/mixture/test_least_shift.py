"""psd="simplex": the least shift that convexity on the simplex asks for."""

import os
from pathlib import Path

import numpy as np
import pytest

from taskpgm.mixture import (
    Energy,
    bootstrap_weights,
    effective_tasks,
    energy_from_affinity,
    make_positive_definite,
    ratio_path,
    select_greedy,
    solve_closed_form,
    solve_entropic,
    solve_exact,
)
from tests.mixture.matrices import HARD, affinity, gap, value

N = 40

# r, E, support, effective tasks, largest weight; floor 1e-3, from an interior point at 1e-12.
KNOWN = [
    (0, -2.352416, 101, 72.76, 0.0396),
    (0.25, -1.340755, 129, 89.54, 0.0333),
    (0.5, -0.416165, 157, 116.92, 0.0264),
    (0.75, 0.386744, 208, 157.06, 0.0189),
    (0.9, 0.783352, 265, 201.56, 0.0133),
    (1, 0.998370, 316, 316, 0.0032),
    (1.25, 1.221019, 246, 206.26, 0.0095),
    (2, 1.455277, 182, 130.03, 0.0320),
    (4, 0.362251, 72, 34.47, 0.0939),
    (16, -23.506448, 8, 6.95, 0.2427),
]
SHARED = Path(__file__).parents[3] / "shared" / "data" / "pmi_316.npy"
MATRIX = Path(os.environ.get("TASKPGM_PMI_316", SHARED))


def basis(n):
    """An orthonormal basis of 1'x = 0, by other means than the package's."""
    return np.linalg.svd(np.eye(n) - 1 / n)[0][:, : n - 1]


@pytest.mark.skipif(
    not MATRIX.exists(),
    reason="TASKPGM_PMI_316 does not name a copy of the published matrix, sim_mat.npy",
)
def test_the_known_table_of_the_published_matrix():
    s = np.load(MATRIX)
    path = ratio_path(s, ratio_max=16)
    for ratio, energy, support, effective, largest in KNOWN:
        made = energy_from_affinity(s, ratio)
        found = solve_exact(made)
        assert gap(made.unary, made.pairwise, found.weights) <= 1e-9 * max(1, abs(energy))
        assert round(float(found.energy), 6) == energy
        assert found.support == support
        assert round(float(effective_tasks(found.weights)), 2) == effective
        assert round(float(found.weights.max()), 4) == largest
        np.testing.assert_allclose(path.at(ratio), found.weights, atol=1e-11)
    inside = np.linalg.eigvalsh(basis(316).T @ s @ basis(316))
    assert round(inside[0], 8) == -140.07399073
    expected = 1e-3 * np.abs(inside).max() - inside[0]
    np.testing.assert_allclose(np.diag(made.pairwise), expected, rtol=1e-12)


def test_the_shift_is_the_smallest_that_reaches_the_floor_on_the_subspace():
    s, q = affinity(12), basis(12)
    made = make_positive_definite(s)
    c = np.diag(made - s)
    np.testing.assert_allclose(made, s + c[0] * np.eye(12))
    inside = np.linalg.eigvalsh(q.T @ s @ q)
    np.testing.assert_allclose(c[0], 1e-3 * np.abs(inside).max() - inside[0], rtol=1e-9)
    assert 0 < c[0] < np.diag(make_positive_definite(s, "shift") - s)[0] / 2
    # Enough already: not shifted at all, whatever happens along 1.
    enough = q @ np.diag(np.arange(1.0, 12)) @ q.T - 5
    np.testing.assert_allclose(make_positive_definite(enough), enough, atol=1e-12)


@pytest.mark.parametrize("mean", [-1e4, -3.0, 7.0, 1e4])
def test_a_constant_added_to_the_affinity_changes_no_mixture(mean):
    s = affinity(N)
    for ratio in (0.0, 0.5, 3.0):
        plain = energy_from_affinity(s, ratio)
        moved = energy_from_affinity(s + mean, ratio)
        for solver in (solve_exact, solve_closed_form):
            np.testing.assert_allclose(
                solver(moved).weights, solver(plain).weights, atol=1e-9 * max(1, abs(mean) / 100)
            )


@pytest.mark.parametrize("n", [1, 2, 3, 12, N])
def test_ratio_one_is_exactly_uniform(n):
    for seed in range(5):
        energy = energy_from_affinity(affinity(n, seed), 1.0)
        for found in (solve_exact(energy), solve_closed_form(energy)):
            np.testing.assert_allclose(found.weights, 1 / n, atol=1e-12)
        kept = solve_entropic(energy, np.full(n, 1 / n), 0.1).weights
        np.testing.assert_allclose(kept, 1 / n, atol=1e-12)
    np.testing.assert_allclose(ratio_path(affinity(n), ratio_max=3.0).at(1.0), 1 / n, atol=1e-11)


@pytest.mark.parametrize("name", ["constant rows", "positive definite"])
def test_it_equals_the_papers_shift_where_the_mean_does_not_matter(name):
    """Where 1 is no direction of the least eigenvalue, or where no shift is needed, as for a pooled
    Jensen-Shannon affinity."""
    rng = np.random.default_rng(0)
    if name == "constant rows":
        q = basis(N)
        s = q @ np.diag(np.linspace(-3, 8, N - 1)) @ q.T + 2.0 / N
    else:
        x = np.abs(rng.normal(size=(N, 60)))
        s = x @ x.T / 60 + 0.2 * np.eye(N)
    for ratio in (0.0, 0.5, 2.0, 8.0):
        shifted = energy_from_affinity(s, ratio, psd="shift")
        least = energy_from_affinity(s, ratio)
        np.testing.assert_allclose(least.pairwise, shifted.pairwise, atol=1e-9)
        np.testing.assert_allclose(
            solve_exact(least).weights, solve_exact(shifted).weights, atol=1e-10
        )


@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", HARD)
def test_every_hard_matrix_is_solved_and_certified(name, sign, scale):
    rng = np.random.default_rng(sum(map(ord, name)))
    s = sign * scale * HARD[name](N, rng)
    cap = rng.random(N) * 6 / N
    cap += max(0, 1.01 - cap.sum()) / N
    for ratio in (0.0, 0.7, 3.0):
        energy = energy_from_affinity(s, ratio)
        for limit in (None, cap):
            found = solve_exact(energy, limit)
            p, top = found.weights, np.ones(N) if limit is None else limit
            assert abs(p.sum() - 1) < 1e-12 and (p >= 0).all() and (p <= top + 1e-13).all()
            enough = 1e-9 * max(1, abs(value(energy.unary, energy.pairwise, p)))
            assert gap(energy.unary, energy.pairwise, p, top) <= enough
            assert found.gap <= enough
    path = ratio_path(s, ratio_max=3.0)
    assert (path.gap <= 1e-9 * np.maximum(1, np.abs(path.energy))).all()


def test_bootstrap_selection_and_the_prior_use_it():
    s = affinity(N)
    energy = energy_from_affinity(s, 3.0)
    exact = solve_exact(energy).weights
    assert effective_tasks(exact) < 0.8 * effective_tasks(
        solve_exact(energy_from_affinity(s, 3.0, psd="shift")).weights
    )
    resampled = bootstrap_weights(np.stack([s, s]), 3.0)
    np.testing.assert_allclose(resampled.weights, [exact, exact], atol=1e-10)
    np.testing.assert_allclose(select_greedy(energy, N).weights, exact, atol=1e-10)
    near = solve_entropic(energy, np.full(N, 1 / N), 1e-8)
    assert near.gap <= 1e-9
    np.testing.assert_allclose(near.weights, exact, atol=1e-5)


def test_a_negative_direction_on_the_subspace_is_refused_and_one_along_the_mean_is_not():
    n = 6
    fine = np.eye(n) - 3.0  # least eigenvalue 1 - 3n, along 1
    np.testing.assert_allclose(solve_exact(Energy(np.zeros(n), fine)).weights, 1 / n)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        solve_exact(Energy(np.zeros(n), -fine))
