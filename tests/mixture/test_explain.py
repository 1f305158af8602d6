import json

import numpy as np
import pytest

from taskpgm.mixture import (
    bootstrap_weights,
    effective_tasks,
    energy_from_affinity,
    explain,
    make_positive_definite,
    order_rows,
    solve_exact,
)
from tests.mixture.matrices import affinity

N = 40


def test_the_columns_are_what_they_say():
    s = affinity(N)
    energy = energy_from_affinity(s, 8.0)
    solution = solve_exact(energy)
    p = solution.weights
    found = explain(s, energy, p, tasks=[f"task{i}" for i in range(N)])
    np.testing.assert_allclose(found.representativeness, s.sum(1) / N)
    np.testing.assert_allclose(found.redundancy, make_positive_definite(s) @ p)
    np.testing.assert_allclose(found.energy, solution.energy)
    np.testing.assert_allclose(found.unary_term + found.pairwise_term, found.energy)
    np.testing.assert_allclose(found.unary_term, -8.0 * found.representativeness @ p)
    np.testing.assert_allclose(found.gap, solution.gap, atol=1e-14)
    kept = p[p > 0]
    np.testing.assert_allclose(found.effective_tasks, np.exp(-(kept * np.log(kept)).sum()))
    # A task in the mixture is at its price; one outside is above it, and that is what keeps it out.
    assert np.abs(found.reduced_cost[p > 0]).max() < 1e-10
    assert (found.reduced_cost[p == 0] > 0).all() and (p == 0).any()
    # Its score lifted by its reduced cost and a little, it enters.
    out = int(np.flatnonzero(p == 0)[0])
    for lift, enters in ((0.999, False), (1.001, True)):
        unary = energy.unary.copy()
        unary[out] += lift * found.reduced_cost[out]
        better = solve_exact(type(energy)(unary, energy.pairwise)).weights
        assert (better[out] > 0) is np.bool_(enters)
    table = found.table()
    json.dumps(table)
    assert table[3]["task"] == "task3" and table[3]["weight"] == p[3]
    assert set(table[0]) == {"task", "representativeness", "redundancy", "weight", "reduced_cost"}


def test_caps_have_a_price_too():
    s = affinity(N)
    energy = energy_from_affinity(s, 8.0)
    solution = solve_exact(energy, 0.04)
    found = explain(s, energy, solution.weights, cap=0.04)
    at_cap = solution.weights >= 0.04
    assert at_cap.any() and (found.reduced_cost[at_cap] < 1e-10).all()
    np.testing.assert_allclose(found.gap, solution.gap, atol=1e-13)


def test_intervals_from_resamples():
    s = affinity(N)
    noise = np.random.default_rng(0).normal(size=(30, N, N)) * 0.1
    resampled = bootstrap_weights(s + noise + noise.swapaxes(1, 2), 8.0)
    assert resampled.weights.shape == (30, N)
    assert (resampled.gap <= 1e-9).all()
    np.testing.assert_allclose(
        resampled.weights[7],
        solve_exact(energy_from_affinity(s + noise[7] + noise[7].T, 8.0)).weights,
        atol=1e-10,
    )
    energy = energy_from_affinity(s, 8.0)
    found = explain(s, energy, solve_exact(energy).weights, resampled=resampled.weights)
    low, high = found.interval
    assert (low <= high).all() and (found.kept >= 0).all() and (found.kept <= 1).all()
    np.testing.assert_array_equal(found.kept, resampled.kept)
    np.testing.assert_array_equal(found.interval, resampled.interval())
    assert {"weight_low", "weight_high", "kept"} <= set(found.table()[0])


def test_resamples_under_caps():
    noise = np.random.default_rng(0).normal(size=(30, N, N)) * 0.1
    matrices = affinity(N) + noise + noise.swapaxes(1, 2)
    assert bootstrap_weights(matrices, 8.0, 0.05).weights.max() <= 0.05 + 1e-13
    with pytest.raises(ValueError, match="b, n, n"):
        bootstrap_weights(matrices[0], 8.0)


def test_effective_tasks_at_the_ends():
    np.testing.assert_allclose(effective_tasks(np.full(7, 1 / 7)), 7)
    np.testing.assert_allclose(effective_tasks(np.eye(3)), [1, 1, 1])


def test_row_order_puts_families_together():
    rng = np.random.default_rng(0)
    family = rng.permutation(np.repeat(np.arange(5), 6))
    s = np.where(family[:, None] == family, 1.0, 0.0) + 0.02 * rng.normal(size=(30, 30))
    order = order_rows((s + s.T) / 2)
    np.testing.assert_array_equal(np.sort(order), np.arange(30))
    assert (np.diff(family[order]) != 0).sum() == 4  # five runs, one a family


def test_row_order_is_a_leaf_order_of_the_reference_dendrogram():
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    s = affinity(25, seed=3)
    distance = -s + 100
    merges = hierarchy.linkage(distance[np.triu_indices(25, 1)], "average")
    place = np.argsort(order_rows(s))
    clusters = {i: [i] for i in range(25)}
    for k, (a, b, *_) in enumerate(merges):
        clusters[25 + k] = clusters[int(a)] + clusters[int(b)]
        places = np.sort(place[clusters[25 + k]])
        assert places[-1] - places[0] == len(places) - 1  # every cluster is one run of rows


@pytest.mark.parametrize("n", [1, 2, 3])
def test_row_order_of_few_rows_and_of_ties(n):
    np.testing.assert_array_equal(np.sort(order_rows(np.ones((n, n)))), np.arange(n))


def test_bad_input_is_an_error():
    s = affinity(N)
    energy = energy_from_affinity(s, 8.0)
    p = np.full(N, 1 / N)
    with pytest.raises(ValueError, match="2 task names"):
        explain(s, energy, p, tasks=["a", "b"])
    with pytest.raises(ValueError, match="weights has 3 entries"):
        explain(s, energy, p[:3])
    with pytest.raises(ValueError, match="the energy has shape"):
        explain(s[:3, :3], energy, p)
