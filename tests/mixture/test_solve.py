import itertools
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskpgm.mixture import (
    Energy,
    effective_tasks,
    energy_from_affinity,
    make_positive_definite,
    project_simplex,
    ratio_path,
    solve_closed_form,
    solve_exact,
)
from tests.mixture.matrices import HARD, affinity, gap, value

N, BATCH = 40, 25  # few shapes: each is compiled


def certified(energy, solution, cap=None):
    """The certificate holds by other means than the solver's, and the weights are feasible."""
    p = solution.weights
    limit = np.ones(len(p)) if cap is None else np.broadcast_to(cap, p.shape)
    assert abs(p.sum() - 1) < 1e-12 and (p >= 0).all() and (p <= limit + 1e-13).all()
    enough = 1e-9 * max(1, abs(value(energy.unary, energy.pairwise, p)))
    assert gap(energy.unary, energy.pairwise, p, limit) <= enough
    assert solution.gap <= enough
    rounding = 1e-14 * (np.abs(energy.pairwise).max() + np.abs(energy.unary).max())
    assert abs(solution.energy - value(energy.unary, energy.pairwise, p)) <= rounding
    assert solution.support == (p > 0).sum()
    return True


@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("name", HARD)
def test_exact_on_every_hard_matrix_with_and_without_caps(name, scale):
    rng = np.random.default_rng(sum(map(ord, name)))
    for reward in (0, 0.01, 100):
        a = HARD[name](N, rng) * scale
        energy = Energy(reward * scale * rng.normal(size=N), a)
        certified(energy, solve_exact(energy))
        loose = rng.random(N) * 6 / N
        loose += max(0, 1.01 - loose.sum()) / N
        tight = np.full(N, 1.001 / N)
        sparse = np.where(rng.random(N) < 0.5, 0, 0.2)
        for cap in (loose, tight, sparse) if reward else (loose,):
            certified(energy, solve_exact(energy, cap), cap)


@pytest.mark.parametrize("n", [1, 2])
def test_exact_at_the_smallest_sizes(n):
    energy = Energy(np.arange(n) * 1.0, np.eye(n) + 1)
    solution = solve_exact(energy)
    certified(energy, solution)
    certified(energy, solve_exact(energy, np.full(n, 1 / n)), np.full(n, 1 / n))
    np.testing.assert_allclose(solution.weights, [1.0] if n == 1 else [0, 1], atol=1e-15)


@pytest.mark.slow
def test_exact_at_two_thousand_tasks():
    n = 2000
    x = np.random.default_rng(0).normal(size=(n, n // 2))
    energy = Energy(x @ np.ones(n // 2) / n, x @ x.T / n + 0.05 * np.eye(n))
    solution = solve_exact(energy)
    certified(energy, solution)
    assert 1 < solution.support < n


def minimum_by_enumeration(energy):
    n, best = len(energy.unary), np.inf
    for size in range(1, n + 1):
        for f in itertools.combinations(range(n), size):
            f = list(f)
            a = np.block(
                [
                    [energy.pairwise[np.ix_(f, f)], np.ones((size, 1))],
                    [np.ones((1, size)), np.zeros((1, 1))],
                ]
            )
            p = np.linalg.solve(a, np.append(energy.unary[f], 1))[:-1]
            if (p >= -1e-12).all():
                best = min(best, value(energy.unary[f], energy.pairwise[np.ix_(f, f)], p))
    return best


def test_exact_is_the_best_of_all_faces():
    rng = np.random.default_rng(0)
    for _ in range(10):
        x = rng.normal(size=(6, 6))
        energy = Energy(rng.normal(size=6), x @ x.T + 0.01 * np.eye(6))
        found = solve_exact(energy)
        np.testing.assert_allclose(found.energy, minimum_by_enumeration(energy), atol=1e-12)


def test_duplicated_tasks_are_any_of_the_optima_and_equal_ones_share():
    energy = Energy(np.zeros(6), np.ones((6, 6)))
    assert solve_exact(energy).gap == 0
    np.testing.assert_allclose(solve_exact(energy).weights, 1 / 6)


def test_an_indefinite_matrix_is_refused():
    bad = np.diag(np.append(np.ones(N - 1), -1.0))
    with pytest.raises(ValueError, match="not positive semi-definite"):
        solve_exact(Energy(np.zeros(N), bad))
    # Also where the guilty row is not in the support, and inside a batch.
    reward = np.append(1.0, np.append(np.zeros(N - 2), -9.0))
    with pytest.raises(ValueError, match="not positive semi-definite"):
        solve_exact(Energy(reward, np.stack([np.eye(N), bad])))


def test_caps_of_the_data_are_met():
    energy = energy_from_affinity(affinity(N), 8.0)
    free = solve_exact(energy).weights
    cap = np.full(N, 0.04)
    capped = solve_exact(energy, cap)
    certified(energy, capped, cap)
    assert free.max() > 0.04 and capped.weights.max() <= 0.04
    np.testing.assert_array_equal(solve_exact(energy, 0.04).weights, capped.weights)
    np.testing.assert_array_equal(solve_exact(energy, 1.0).weights, free)


# --- The closed form ----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1.5))
def test_closed_form_identity(seed, ratio):
    """With S~ = S + cI: p = r * uniform + (1 - r) * w, then projected."""
    s = affinity(12, seed)
    made = make_positive_definite(s)
    w = np.linalg.solve(made, np.ones(12))
    w = w / w.sum()
    p = ratio / 12 + (1 - ratio) * w
    if (p < 0).any():
        p = project_simplex(p)
    found = solve_closed_form(energy_from_affinity(s, ratio))
    np.testing.assert_allclose(found.weights, p, atol=1e-9)


@pytest.mark.parametrize("psd", ["simplex", "shift", "clip"])
def test_ratio_one_is_uniform_for_a_shift_of_any_matrix(psd):
    for seed in range(5):
        found = solve_closed_form(energy_from_affinity(affinity(12, seed), 1.0, psd=psd))
        uniform = np.allclose(found.weights, 1 / 12, atol=1e-12)
        assert uniform or psd == "clip"


def test_closed_form_is_exact_while_nothing_is_negative_and_certified_when_it_is_not():
    s = affinity(12)
    for ratio in (0.0, 0.5, 1.0, 3.0, 30.0):
        energy = energy_from_affinity(s, ratio, psd="shift")
        closed, exact = solve_closed_form(energy), solve_exact(energy)
        assert closed.method == "closed form" and exact.method == "exact"
        assert closed.energy - exact.energy <= closed.gap + 1e-12
        if ratio in (0.5, 1.0):
            assert closed.gap < 1e-9
        own = gap(energy.unary, energy.pairwise, closed.weights)
        np.testing.assert_allclose(closed.gap, own, atol=1e-12)
    assert closed.energy > exact.energy + 1e-3  # at 30 it is no optimum


def test_closed_form_of_a_singular_matrix_is_an_error():
    with pytest.raises(ValueError, match="singular"):
        solve_closed_form(Energy(np.zeros(2), np.ones((2, 2))))


# --- Batches and vmap ---------------------------------------------------------------------------


@pytest.mark.slow
def test_batch_axes_and_vmap_over_ratios_agree_with_single_solves():
    s, ratios = affinity(N), np.linspace(0, 30, BATCH)
    single = [solve_exact(energy_from_affinity(s, r)) for r in ratios]
    batch = solve_exact(energy_from_affinity(s, ratios))
    mapped = jax.vmap(lambda r: solve_exact(energy_from_affinity(s, r)))(ratios)  # x64 is off
    mapped = jax.tree.map(np.asarray, mapped)
    for found in (batch, mapped):
        assert found.weights.shape == (BATCH, N) and found.weights.dtype == np.float64
        assert (found.gap <= 1e-9 * np.maximum(1, np.abs(found.energy))).all()
        np.testing.assert_allclose(found.energy, [x.energy for x in single], rtol=1e-5)
    np.testing.assert_allclose(batch.weights, [x.weights for x in single], atol=1e-10)
    np.testing.assert_allclose(mapped.weights, batch.weights, atol=1e-5)
    np.testing.assert_array_equal(batch.support, [x.support for x in single])


def test_a_batch_in_any_order_and_with_caps_is_as_exact():
    rng = np.random.default_rng(3)
    s = affinity(N)
    far = energy_from_affinity(s, rng.permutation(np.linspace(0, 300, BATCH)))
    found = solve_exact(far, 0.1)
    assert (found.weights <= 0.1 + 1e-13).all()
    assert (found.gap <= 1e-9 * np.maximum(1, np.abs(found.energy))).all()
    unrelated = Energy(rng.normal(size=(BATCH, N)) * 50, far.pairwise)
    found = solve_exact(unrelated)
    for i in range(BATCH):
        p, u = found.weights[i], unrelated.unary[i]
        assert gap(u, far.pairwise, p) <= 1e-9 * max(1, abs(found.energy[i]))


def test_a_batch_over_singular_matrices_falls_back_where_it_has_to():
    rng = np.random.default_rng(4)
    v = rng.normal(size=N)
    found = solve_exact(Energy(rng.normal(size=(BATCH, N)), np.outer(v, v)))
    assert (found.gap <= 1e-9 * np.maximum(1, np.abs(found.energy))).all()


@pytest.mark.slow
def test_vmap_over_resampled_matrices_and_ratios_at_once():
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(3, N, N)) * 0.1
    matrices = affinity(N) + noise + noise.swapaxes(1, 2)
    ratios = np.array([0.0, 2.0, 10.0])
    with jax.enable_x64(True):
        over = jax.jit(
            jax.vmap(lambda m: jax.vmap(lambda r: solve_exact(energy_from_affinity(m, r)))(ratios))
        )(matrices)
    for i, j in itertools.product(range(3), range(3)):
        alone = solve_exact(energy_from_affinity(matrices[i], ratios[j]))
        np.testing.assert_allclose(over.weights[i, j], alone.weights, atol=1e-10)


# --- The published matrix -----------------------------------------------------------------------

# r, exact E, support, effective tasks, closed form E, its gap, total variation between the two.
KNOWN = [
    (0, 0.006436, 308, 266.91, 0.006453, 0.0222, 0.002),
    (0.5, 1.116193, 316, 302.17, 1.116193, 0, 0),
    (1, 2.005348, 316, 316, 2.005348, 0, 0),
    (2, 3.136385, 288, 261.99, 3.136663, 0.14, 0.006),
    (4, 4.227680, 225, 189.63, 4.246222, 1.37, 0.042),
    (16, 0.777536, 87, 49.05, 1.379658, 9.25, 0.136),
    (63.2, -82.093370, 9, 7.82, -79.597795, 23, 0.086),
    (158, -306.159002, 6, 4.93, -298.005024, 48.6, 0.141),
]
MATRIX = Path(os.environ.get("TASKPGM_PMI_316", "pmi_316.npy"))


@pytest.mark.skipif(
    not MATRIX.exists(),
    reason="TASKPGM_PMI_316 does not name a copy of the published matrix, sim_mat.npy",
)
def test_the_known_table_of_the_published_matrix():
    s = np.load(MATRIX)
    path = ratio_path(s, ratio_max=158, psd="shift")
    for ratio, energy, support, effective, closed_energy, closed_gap, apart in KNOWN:
        made = energy_from_affinity(s, ratio, psd="shift")
        exact, closed = solve_exact(made), solve_closed_form(made)
        certified(made, exact)
        assert round(float(exact.energy), 6) == energy
        assert exact.support == support
        assert round(float(effective_tasks(exact.weights)), 2) == effective
        assert round(float(closed.energy), 6) == closed_energy
        assert float(f"{closed.gap:.3g}") == pytest.approx(closed_gap, rel=5e-2, abs=1e-9)
        assert round(0.5 * float(np.abs(exact.weights - closed.weights).sum()), 3) == apart
        np.testing.assert_allclose(made.energy(path.at(ratio)), exact.energy, atol=1e-9)
