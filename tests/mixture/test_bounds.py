"""Smallest and largest weights of tasks and of families."""

import numpy as np
import pytest
from scipy.optimize import linprog

from taskpgm.mixture import Bounds, Energy, bootstrap_weights, energy_from_affinity, solve_exact
from tests.mixture.matrices import HARD, affinity

N = 24
FAMILY = np.repeat(np.arange(4), [9, 8, 4, 3])


def lp_gap(energy, p, bounds):
    """The certificate by a linear programme of another solver over the same feasible set."""
    g = energy.pairwise @ p - energy.unary
    g = g - g @ p
    size = max(float(np.abs(g).max()), 1e-30)
    low = np.broadcast_to(0.0 if bounds.low is None else bounds.low, (N,))
    high = np.broadcast_to(1.0 if bounds.high is None else bounds.high, (N,))
    rows = (FAMILY == np.arange(4)[:, None]).astype(float)
    above, below = [], []
    if bounds.family_high is not None:
        above, below = [rows], [np.broadcast_to(bounds.family_high, (4,))]
    if bounds.family_low is not None:
        above, below = [*above, -rows], [*below, -np.broadcast_to(bounds.family_low, (4,))]
    best = linprog(
        g / size,
        A_ub=np.vstack(above) if above else None,
        b_ub=np.concatenate(below) if below else None,
        A_eq=np.ones((1, N)),
        b_eq=[1.0],
        bounds=list(zip(low, high, strict=True)),
    )
    assert best.status == 0
    return -best.fun * size


def assert_certified(energy, bounds, found):
    p = found.weights
    assert abs(p.sum() - 1) < 1e-12
    assert (p >= (0 if bounds.low is None else np.asarray(bounds.low)) - 1e-13).all()
    assert (p <= (1 if bounds.high is None else np.asarray(bounds.high)) + 1e-13).all()
    sums = np.bincount(FAMILY, p)
    assert (
        sums >= (0 if bounds.family_low is None else np.asarray(bounds.family_low)) - 1e-12
    ).all()
    assert (
        sums <= (1 if bounds.family_high is None else np.asarray(bounds.family_high)) + 1e-12
    ).all()
    assert found.gap <= 1e-9 * max(1, abs(found.energy))
    own = lp_gap(energy, p, bounds)
    np.testing.assert_allclose(own, found.gap, atol=1e-8 * max(1.0, np.abs(energy.pairwise).max()))


CASES = {
    "least": Bounds(low=0.01),
    "least and largest": Bounds(low=0.02, high=0.1),
    "family at most": Bounds(family=FAMILY, family_high=[0.2, 0.5, 0.3, 0.4]),
    "family at least": Bounds(family=FAMILY, family_low=[0.1, 0.1, 0.3, 0.2]),
    "family equal": Bounds(family=FAMILY, family_low=0.25, family_high=0.25),
    "all": Bounds(
        low=np.linspace(0, 0.02, N),
        high=0.12,
        family=FAMILY,
        family_low=[0.1, 0, 0.2, 0.1],
        family_high=[0.3, 0.35, 0.4, 0.3],
    ),
    "one point": Bounds(low=np.full(N, 1 / N), family=FAMILY, family_high=0.5),
}


@pytest.mark.parametrize("psd", ["simplex", "shift"])
@pytest.mark.parametrize("name", CASES)
def test_solutions_are_certified_over_the_same_set_by_another_solver(name, psd):
    for ratio in (0.0, 0.5, 3.0, 30.0):
        energy = energy_from_affinity(affinity(N), ratio, psd=psd)
        assert_certified(energy, CASES[name], solve_exact(energy, bounds=CASES[name]))


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("case", CASES)
def test_every_hard_matrix_under_bounds(name, case):
    rng = np.random.default_rng(sum(map(ord, name)))
    a = HARD[name](N, rng)
    for reward in (0.0, 0.01, 1.0, 100.0):
        energy = Energy(reward * rng.normal(size=N), a)
        assert_certified(energy, CASES[case], solve_exact(energy, bounds=CASES[case]))


def test_bounds_that_do_not_bind_change_nothing_and_those_that_do_hold_exactly():
    energy = energy_from_affinity(affinity(N), 3.0)
    free = solve_exact(energy).weights
    sums = np.bincount(FAMILY, free)
    wide = Bounds(low=0.0, high=1.0, family=FAMILY, family_low=sums - 0.01, family_high=sums + 0.01)
    np.testing.assert_allclose(solve_exact(energy, bounds=wide).weights, free, atol=1e-10)
    g = int(sums.argmax())
    top = np.ones(4)
    top[g] = sums[g] / 2
    held = solve_exact(energy, bounds=Bounds(family=FAMILY, family_high=top))
    np.testing.assert_allclose(np.bincount(FAMILY, held.weights)[g], sums[g] / 2, atol=1e-12)
    assert held.energy > energy.energy(free)
    i = int(free.argmax())
    capped = solve_exact(energy, cap=free[i] / 2, bounds=Bounds(low=0.01))
    np.testing.assert_allclose(capped.weights.max(), free[i] / 2)
    np.testing.assert_allclose(capped.weights.min(), 0.01)


def test_one_family_of_two_by_hand():
    energy = Energy(np.array([2.0, 1.0, 0.0, 0.0]), np.eye(4))
    bounds = Bounds(family=[0, 0, 1, 1], family_high=[0.5, 1.0])
    np.testing.assert_allclose(
        solve_exact(energy, bounds=bounds).weights, [0.5, 0, 0.25, 0.25], atol=1e-14
    )


def test_batches_and_resamples_under_bounds():
    s = affinity(N)
    bounds = CASES["all"]
    batch = solve_exact(energy_from_affinity(s, np.linspace(0, 8, 9)), bounds=bounds)
    for i, ratio in enumerate(np.linspace(0, 8, 9)):
        alone = solve_exact(energy_from_affinity(s, ratio), bounds=bounds)
        np.testing.assert_allclose(batch.weights[i], alone.weights, atol=1e-10)
    resampled = bootstrap_weights(np.stack([s, 1.1 * s]), 2.0, bounds=bounds)
    assert (resampled.gap <= 1e-9).all() and resampled.weights.max() <= 0.12 + 1e-13


@pytest.mark.parametrize(
    "bounds, says",
    [
        (Bounds(low=0.05), "infeasible bounds: the lower ones sum to 1.2"),
        (Bounds(high=0.04), "infeasible caps: the upper bounds sum to 0.96"),
        (Bounds(low=0.03, high=0.02), "infeasible bounds: task 0 has low 0.03 above high 0.02"),
        (Bounds(high=np.full(3, 0.5)), "high has shape"),
        (Bounds(low=np.nan), "low has a NaN"),
        (Bounds(family_high=0.5), "need `family`"),
        (Bounds(family=[0, 1]), "24 whole numbers"),
        (Bounds(family=FAMILY, family_high=0.2), "infeasible caps: the upper bounds sum to 0.8"),
        (Bounds(family=FAMILY, family_low=0.3), "the lower ones sum to 1.2"),
        (Bounds(family=FAMILY, family_low=0.3, family_high=0.2), "family 0 needs at least 0.3"),
        (Bounds(low=0.1, family=FAMILY, family_high=0.2), "family 0 needs at least 0.9"),
        (Bounds(family=FAMILY, family_high=[0.5, 0.5]), "family_high has shape"),
    ],
)
def test_bounds_that_no_mixture_meets_are_an_error_of_one_line(bounds, says):
    with pytest.raises(ValueError, match=says) as error:
        solve_exact(energy_from_affinity(affinity(N), 1.0), bounds=bounds)
    assert "\n" not in str(error.value)
