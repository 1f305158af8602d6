"""Smallest and largest weights of tasks and of families."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy.optimize import linprog

from taskpgm.mixture import (
    Bounds,
    Energy,
    bootstrap_weights,
    energy_from_affinity,
    explain,
    ratio_path,
    select_greedy,
    solve_entropic,
    solve_exact,
)
from taskpgm.mixture.bounds import as_arrays
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


CONVEX = [*((name, "simplex") for name in CASES), ("all", "shift")]


@pytest.mark.parametrize(("name", "psd"), CONVEX)
def test_solutions_are_certified_over_the_same_set_by_another_solver(name, psd):
    for ratio in (0.0, 0.5, 3.0, 30.0):
        energy = energy_from_affinity(affinity(N), ratio, psd=psd)
        assert_certified(energy, CASES[name], solve_exact(energy, bounds=CASES[name]))


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("case", CASES)
def test_every_hard_matrix_under_bounds(name, case):
    rng = np.random.default_rng(sum(map(ord, name)))
    a = HARD[name](N, rng)
    for reward in (0.0, 1.0, 100.0):
        energy = Energy(reward * rng.normal(size=N), a)
        assert_certified(energy, CASES[case], solve_exact(energy, bounds=CASES[case]))


@pytest.mark.parametrize("name", ["rank one", "rank three", "duplicated rows"])
def test_families_with_one_allowed_sum_under_singular_matrices(name):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        a = HARD[name](N, rng)
        energy = Energy(rng.normal(size=N), a)
        for case in ("family equal", "one point"):
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


@pytest.mark.parametrize(("name", "psd"), CONVEX)
def test_the_whole_path_under_bounds_is_exact_at_and_between_its_breakpoints(name, psd):
    s, bounds = affinity(N), CASES[name]
    path = ratio_path(s, ratio_max=20.0, psd=psd, bounds=bounds)
    assert path.ratios[0] == 0 and path.ratios[-1] == 20 and (np.diff(path.ratios) > 0).all()
    middles = (path.ratios[1:] + path.ratios[:-1]) / 2
    some = np.concatenate([path.ratios[1::6], middles[::6], path.ratios[-2:]])
    for ratio in [0.0, 1.0, 7.0, *some]:
        energy = energy_from_affinity(s, ratio, psd=psd)
        p = path.at(ratio)
        found = solve_exact(energy, bounds=bounds)
        assert energy.energy(p) - found.energy <= 1e-9 * max(1, abs(found.energy))
    assert (path.gap <= 1e-9 * np.maximum(1, np.abs(path.energy))).all()


def test_caps_hold_along_the_path():
    s = affinity(N)
    path = ratio_path(s, ratio_max=20.0, cap=np.linspace(0.05, 0.2, N))
    assert (path.weights <= np.linspace(0.05, 0.2, N) + 1e-12).all()
    exact = solve_exact(energy_from_affinity(s, 13.0), np.linspace(0.05, 0.2, N)).weights
    np.testing.assert_allclose(path.at(13.0), exact, atol=1e-9)


@functools.cache
def feasible(name):
    """Mixtures that meet the bounds: the exact ones of other energies."""
    rng = np.random.default_rng(4)
    others = [Energy(rng.normal(size=N), np.eye(N)) for _ in range(10)]
    return [solve_exact(other, bounds=CASES[name]).weights for other in others]


@pytest.mark.parametrize("tau", [1e2, 1.0, 1e-4])
@pytest.mark.parametrize("name", CASES)
def test_the_entropic_mixture_under_bounds_beats_all_others(name, tau):
    bounds = CASES[name]
    prior = np.random.default_rng(3).dirichlet(np.full(N, 2.0))
    for ratio in (0.0, 3.0):
        energy = energy_from_affinity(affinity(N), ratio)
        found = solve_entropic(energy, prior, tau, bounds=bounds)

        def value(p, energy=energy):
            live = p > 0
            return energy.energy(p) + tau * (p[live] * np.log(p[live] / prior[live])).sum()

        p = found.weights
        assert abs(p.sum() - 1) < 1e-12 and found.gap <= 1e-8 * max(1, abs(found.energy))
        assert (p >= as_arrays(bounds, N)[0][:N] - 1e-12).all()
        np.testing.assert_allclose(value(p), found.energy, atol=1e-9)
        sums, least = np.bincount(FAMILY, p), 0 if bounds.family_low is None else bounds.family_low
        assert (sums >= np.asarray(least) - 1e-11).all()
        for q in feasible(name):
            for step in (1e-3, 0.1, 1.0):
                assert value(p + step * (q - p)) >= found.energy - 1e-9


def test_a_prior_that_meets_the_bounds_is_the_hot_end():
    prior = np.full(N, 1 / N)
    energy = energy_from_affinity(affinity(N), 3.0)
    wide = Bounds(family=FAMILY, family_low=np.bincount(FAMILY) / N - 0.01)
    hot = solve_entropic(energy, prior, 1e6, bounds=wide).weights
    np.testing.assert_allclose(hot, prior, atol=1e-5)
    exact = solve_exact(energy, bounds=CASES["all"]).weights
    cold = solve_entropic(energy, prior, 1e-7, bounds=CASES["all"]).weights
    np.testing.assert_allclose(cold, exact, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_selection_meets_the_bounds_and_is_certified(name):
    bounds = CASES[name]
    required = int((np.broadcast_to(0 if bounds.low is None else bounds.low, N) > 0).sum())
    for k in {max(required, 9), N - 3, N}:
        if k < required:
            continue
        energy = energy_from_affinity(affinity(N), 3.0)
        found = select_greedy(energy, k, bounds=bounds)
        p = found.weights
        assert len(set(found.order.tolist())) == k and set(np.flatnonzero(p)) <= set(found.order)
        sums = np.bincount(FAMILY, p, 4)
        least = 0 if bounds.family_low is None else np.asarray(bounds.family_low)
        most = 1 if bounds.family_high is None else np.asarray(bounds.family_high)
        assert (sums >= least - 1e-12).all() and (sums <= most + 1e-12).all()
        assert found.gap <= 1e-9 * max(1, abs(found.energy))


def test_a_selection_without_room_is_refused_and_with_just_enough_it_is_found():
    energy = energy_from_affinity(affinity(N), 3.0)
    with pytest.raises(ValueError, match="no 4 tasks can meet"):
        select_greedy(energy, 4, 0.2)
    assert (select_greedy(energy, 5, 0.2).weights[select_greedy(energy, 5, 0.2).order] > 0.19).all()
    with pytest.raises(ValueError, match="24 tasks have a least weight"):
        select_greedy(energy, 5, bounds=CASES["least"])
    tight = Bounds(family=FAMILY, family_low=[0.25] * 4)
    families = FAMILY[select_greedy(energy, 4, bounds=tight).order]
    assert sorted(families) == [0, 1, 2, 3]
    # The only four tasks that can: in every family the one with room.
    high = np.where(np.isin(np.arange(N), [8, 12, 18, 22]), 1.0, 0.1)
    only = Bounds(high=high, family=FAMILY, family_low=[0.25] * 4)
    chosen = select_greedy(energy, 4, bounds=only)
    assert sorted(chosen.order) == [8, 12, 18, 22] and chosen.guarantee == 0


def test_reduced_costs_at_lower_and_upper_bounds_and_of_families():
    s, bounds = affinity(N), CASES["all"]
    energy = energy_from_affinity(s, 5.0)
    p = solve_exact(energy, bounds=bounds).weights
    told = explain(s, energy, p, bounds=bounds)
    low, high = np.linspace(0, 0.02, N), 0.12
    assert (told.reduced_cost[p <= low + 1e-13] >= -1e-9).all()
    assert (told.reduced_cost[p >= high - 1e-13] <= 1e-9).all()
    between = (p > low + 1e-9) & (p < high - 1e-9)
    assert between.any() and np.abs(told.reduced_cost[between]).max() < 1e-8
    np.testing.assert_allclose(told.gap, 0, atol=1e-10)
    # A family's price is what a little more of its bound would change the energy by.
    assert told.family_cost is not None
    sums = np.bincount(FAMILY, p, 4)
    held = np.flatnonzero(np.abs(sums - np.array(bounds.family_low)) < 1e-10)
    assert len(held)
    for g in held:
        more = np.array(bounds.family_low, float)
        more[g] += 1e-5
        raised = dataclasses.replace(bounds, family_low=more)
        change = (solve_exact(energy, bounds=raised).energy - energy.energy(p)) / 1e-5
        np.testing.assert_allclose(change, told.family_cost[g], rtol=1e-2, atol=1e-6)


def test_names_in_messages():
    bounds = Bounds(low=[0.6, 0.6], high=1.0, tasks=["a", "b"])
    with pytest.raises(ValueError, match="lower ones sum to 1.2"):
        solve_exact(energy_from_affinity(np.eye(2), 1.0), bounds=bounds)
    with pytest.raises(ValueError, match="task b has low 0.6 above high 0.5"):
        solve_exact(
            energy_from_affinity(np.eye(2), 1.0),
            cap=[1.0, 0.5],
            bounds=Bounds(low=[0.0, 0.6], tasks=["a", "b"]),
        )
