"""Intervals cover the true value as often as they claim; and odd comparisons."""

import numpy as np
import pytest
from scipy.stats import t

from taskpgm.evaluation import compare_runs
from taskpgm.evaluation.comparison import MOST_SEEDS, seeds_needed, widening


def runs(values, names="abcdefgh"):
    """Arrays [s, n] as what `compare_runs` takes."""
    return {
        name: [{f"t{j}": float(x) for j, x in enumerate(row)} for row in np.atleast_2d(each)]
        for name, each in zip(names, values, strict=False)
    }


def simulated(random, seeds, tasks, over_seeds, over_tasks, noise, difference):
    """Two runs whose loss differs by `difference`, and by seed, by task and by both."""
    shift = difference + over_seeds * random.normal(size=(seeds, 1))
    shift = shift + over_tasks * random.normal(size=(1, tasks))
    shift = shift + noise * random.normal(size=(seeds, tasks))
    other = 2.0 + random.normal(size=(seeds, tasks))
    return runs([other + shift, other])


@pytest.mark.parametrize(
    ("seeds", "tasks", "over_seeds", "over_tasks", "noise"),
    [
        (3, 20, 0.1, 0.02, 0.02),  # seeds decide
        (3, 20, 0.01, 0.3, 0.02),  # tasks decide
        (3, 20, 0.1, 0.3, 0.1),
        (5, 12, 0.1, 0.3, 0.0),
        (2, 30, 0.1, 0.1, 0.1),
        (8, 26, 0.1, 0.1, 0.3),
    ],
)
def test_a_95_percent_interval_holds_the_truth_that_often(
    seeds, tasks, over_seeds, over_tasks, noise, monkeypatch
):
    monkeypatch.setattr("taskpgm.evaluation.comparison.DRAWS", 800)
    monkeypatch.setattr("taskpgm.evaluation.comparison.seeds_needed", lambda _: None)
    random, held, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        given = simulated(random, seeds, tasks, over_seeds, over_tasks, noise, difference=0.05)
        (pair,) = compare_runs(given).pairs
        sign = 1 if pair.first == "a" else -1
        held += pair.low <= sign * 0.05 <= pair.high
    assert 0.92 <= held / trials  # 3 standard errors below 0.95 are 0.912


def test_the_interval_is_that_of_student_where_only_seeds_differ():
    shift = np.array([0.1, 0.3, 0.2, 0.4, 0.0, 0.25])
    other = np.full((6, 10), 2.0)
    (pair,) = compare_runs(runs([other, other + shift[:, None]])).pairs
    half = t.ppf(0.975, 5) * shift.std(ddof=1) / np.sqrt(6)
    assert pair.difference == pytest.approx(-shift.mean())
    assert (pair.high - pair.low) / 2 == pytest.approx(half, rel=0.1)
    assert widening(10_000) == pytest.approx(1.0, abs=1e-3)


def test_seeds_are_paired():
    """Noise that both runs share does not blur their difference."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(4, 1)) + random.normal(size=(1, 9))
    found = compare_runs(runs([1.0 + noise, 1.01 + noise]))
    (pair,) = found.pairs
    assert (pair.low, pair.high) == pytest.approx((-0.01, -0.01))
    assert (pair.wins, pair.ties) == (9, 0)
    assert found.best == {"a": 1.0, "b": 0.0}
    assert found.seeds_needed == 2


def test_equal_runs_tie():
    found = compare_runs(runs([np.ones((3, 4)), np.ones((3, 4)), 1.5 * np.ones((3, 4))]))
    assert found.ranked == ["a", "b", "c"]
    assert found.best == {"a": 0.5, "b": 0.5, "c": 0.0}
    tie = found.pairs[0]
    assert (tie.difference, tie.low, tie.high, tie.wins, tie.ties) == (0, 0, 0, 0, 4)
    assert found.seeds_needed is None  # no number of seeds tells equals apart


def test_all_pairs_the_better_one_first():
    found = compare_runs(runs([[[3.0, 3.1]] * 2, [[1.0, 1.1]] * 2, [[2.0, 2.1]] * 2]))
    assert found.ranked == ["b", "c", "a"]
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("b", "c"),
        ("b", "a"),
        ("c", "a"),
    ]
    assert all(pair.difference < 0 for pair in found.pairs)


def test_one_seed_does_not_say_who_is_best():
    found = compare_runs(runs([[[1.0, 1.2, 1.4]], [[1.1, 1.4, 1.4]]]))
    assert (found.best, found.seeds_needed, found.seeds) == (None, None, 1)
    (pair,) = found.pairs
    assert pair.low < pair.difference < pair.high  # over tasks alone
    assert (pair.wins, pair.ties) == (2, 1)


def test_one_task():
    found = compare_runs(runs([[[1.0], [1.1], [1.2]], [[2.0], [2.2], [2.1]]]))
    (pair,) = found.pairs
    assert found.parts == 1 and pair.low < pair.difference < pair.high < 0
    (pair,) = compare_runs(runs([[[1.0]], [[2.0]]])).pairs
    assert (pair.difference, pair.low, pair.high) == (-1.0, None, None)


@pytest.mark.parametrize("gone", [None, float("nan"), float("inf"), "absent"])
def test_a_run_that_lacks_a_loss_is_left_out(gone):
    given = runs([[[1.0, 2.0]] * 2, [[1.1, 2.1]] * 2, [[1.2, 2.2]] * 2])
    given["b"][1]["t1"] = gone
    if gone == "absent":
        del given["b"][1]["t1"]
    found = compare_runs(given)
    assert (found.ranked, found.left_out) == (["a", "c"], ["b"])
    assert len(found.pairs) == 1


def test_as_many_seeds_count_as_all_have():
    given = runs([[[1.0, 2.0]] * 3, [[1.1, 2.1]] * 2])
    assert compare_runs(given).seeds == 2


def test_nothing_and_one_run_are_no_comparison():
    assert compare_runs({}).ranked == []
    found = compare_runs(runs([[[1.0, 2.0]] * 2]))
    assert (found.ranked, found.pairs, found.best) == (["a"], [], {"a": 1.0})
    assert compare_runs({"a": []}).left_out == ["a"]


def test_every_family_counts_once():
    given = runs([[[1.0, 1.0, 1.0, 5.0]] * 2, [[1.5, 1.5, 1.5, 4.0]] * 2])
    groups = {"t0": "x", "t1": "x", "t2": "x", "t3": "y"}
    assert compare_runs(given).ranked == ["a", "b"]
    found = compare_runs(given, groups)
    assert found.ranked == ["b", "a"] and found.parts == 2
    (pair,) = found.pairs
    assert (pair.difference, pair.wins) == (pytest.approx(-0.25), 1)


@pytest.mark.parametrize(("mean", "deviation"), [(0.1, 0.1), (0.05, 0.1), (0.02, 0.1)])
def test_as_many_seeds_as_it_says_see_the_difference(mean, deviation):
    random = np.random.default_rng(2)
    sample = random.normal(size=6)
    sample = mean + deviation * (sample - sample.mean()) / sample.std(ddof=1)
    n = seeds_needed(sample)
    drawn = mean + deviation * random.normal(size=(4000, n))
    scores = drawn.mean(1) / (drawn.std(1, ddof=1) / np.sqrt(n))
    assert (scores > t.ppf(0.975, n - 1)).mean() == pytest.approx(0.8, abs=0.04)


def test_very_many_seeds_are_many():
    assert seeds_needed(np.array([1.0, -0.999])) == MOST_SEEDS
    assert seeds_needed(np.array([0.0, 0.0])) is None
    assert seeds_needed(np.array([0.5])) is None
