import jax
import numpy as np
import pytest

from taskpgm.mixture import Energy, energy_from_affinity, solve_entropic, solve_exact
from tests.mixture.matrices import affinity, value

N = 40


def objective(energy, prior, tau, p):
    live = p > 0
    kl = (p[live] * np.log(p[live] / prior[live])).sum()
    return value(energy.unary, energy.pairwise, p) + tau * kl


def problem(ratio):
    prior = np.random.default_rng(0).dirichlet(np.full(N, 2.0))
    return energy_from_affinity(affinity(N), ratio), prior


@pytest.mark.parametrize("ratio", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("tau", [1e3, 1.0, 1e-2, 1e-5])
def test_certified_and_a_fixed_point(ratio, tau):
    energy, prior = problem(ratio)
    found = solve_entropic(energy, prior, tau)
    p = found.weights
    assert found.gap <= 1e-9 * max(1, abs(found.energy))
    np.testing.assert_allclose(found.energy, objective(energy, prior, tau, p), atol=1e-10)
    # p is proportional to prior * exp(-grad E / tau); dividing by tau blows rounding up.
    log_p = np.log(prior) - energy.gradient(p) / tau
    fixed = np.exp(log_p - log_p.max())
    np.testing.assert_allclose(p, fixed / fixed.sum(), atol=1e-8 / min(tau, 1))


def test_every_task_is_kept_and_the_ends_are_the_prior_and_the_exact_solution():
    energy, prior = problem(3.0)
    assert (solve_entropic(energy, prior, 0.3).weights > 0).all()
    np.testing.assert_allclose(solve_entropic(energy, prior, 1e6).weights, prior, atol=1e-5)
    exact = solve_exact(energy)
    near = solve_entropic(energy, prior, 1e-8)
    np.testing.assert_allclose(near.weights, exact.weights, atol=1e-5)
    assert near.energy >= exact.energy - 1e-12


@pytest.mark.parametrize("tau", [10.0, 0.3, 1e-3])
def test_caps(tau):
    energy, prior = problem(20.0)
    rng = np.random.default_rng(1)
    cap = rng.random(N) * 3 / N
    cap += max(0, 1.02 - cap.sum()) / N
    found = solve_entropic(energy, prior, tau, cap)
    p = found.weights
    assert abs(p.sum() - 1) < 1e-12 and (p <= cap + 1e-15).all()
    assert found.gap <= 1e-9 * max(1, abs(found.energy))
    # No feasible mixture does better: not by the certificate alone.
    best = objective(energy, prior, tau, p)
    for _ in range(200):
        q = np.minimum(rng.dirichlet(np.ones(N)), cap)
        q += (cap - q) * (1 - q.sum()) / (cap - q).sum()
        for step in (1e-3, 0.1, 1.0):
            assert objective(energy, prior, tau, p + step * (q - p)) >= best - 1e-12


def test_a_task_without_prior_stays_at_zero_and_singular_matrices_are_fine():
    prior = np.array([0.5, 0.5, 0.0])
    found = solve_entropic(Energy(np.array([0.0, 1.0, 9.0]), np.ones((3, 3))), prior, 0.5)
    assert found.weights[2] == 0 and found.gap < 1e-12
    np.testing.assert_allclose(found.weights[1] / found.weights[0], np.exp(2.0))


def test_vmap_over_ratios():
    ratios = np.array([0.0, 3.0])
    batch, prior = problem(ratios)
    with jax.enable_x64(True):
        found = jax.vmap(lambda u: solve_entropic(Energy(u, batch.pairwise), prior, 0.3))(
            batch.unary
        )
    for i, ratio in enumerate(ratios):
        alone = solve_entropic(problem(ratio)[0], prior, 0.3)
        np.testing.assert_allclose(found.weights[i], alone.weights, atol=1e-12)


@pytest.mark.parametrize(
    "prior, tau, cap, says",
    [
        (np.ones(N), 1.0, None, "prior has to be a mixture"),
        (np.full(N, 1 / N), 0.0, None, "tau=0"),
        (np.full(N, 1 / N), np.nan, None, "finite"),
        (np.full(N - 1, 1 / N), 1.0, None, "39 entries"),
        (np.full(N, 1 / N), 1.0, 0.001, "infeasible caps"),
        (np.eye(N)[0], 1.0, 0.5, "infeasible caps"),
    ],
)
def test_bad_input_is_an_error_of_one_line(prior, tau, cap, says):
    energy, _ = problem(3.0)
    with pytest.raises(ValueError, match=says):
        solve_entropic(energy, prior, tau, cap)
