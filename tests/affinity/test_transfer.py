"""Directed transfer: families of twins are found, whatever the reference."""

import numpy as np
import pytest

from taskpgm import affinity

FAMILY = np.array([0, 0, 0, 1, 1, 2])  # twins, a pair, and a task of its own
N = len(FAMILY)
EXAMPLES = 40


def suite(teaches=0.8, harm=0.0, noise=0.1, seed=0):
    """Scores of a made-up suite: a model gains 2 nats on its own task, `teaches` of it on twins,
    and loses `harm` nats on all others. Returns log-likelihoods [n, m], tasks, and the base's."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(N), EXAMPLES)
    base = -4.0 + rng.normal(size=len(task))  # hard and easy examples, the same for all models
    twins = FAMILY[:, None] == FAMILY[task]
    own = np.arange(N)[:, None] == task
    gain = np.where(own, 2.0, np.where(twins, 2.0 * teaches, -harm))
    return base + gain + noise * rng.normal(size=gain.shape), task, base


def by_task(values, task):
    return np.array([values[task == k].mean() for k in range(N)])


def planted(teaches):
    twins = FAMILY[:, None] == FAMILY
    return np.where(np.eye(N, dtype=bool), 1.0, np.where(twins, teaches, 0.0))


@pytest.mark.parametrize("harm", [0.0, 1.5])
def test_the_planted_families_are_recovered_against_the_base(harm):
    scores, task, base = suite(harm=harm)
    got = affinity.transfer(scores, task, by_task(base, task))
    twins = FAMILY[:, None] == FAMILY
    np.testing.assert_allclose(got[twins], planted(0.8)[twins], atol=0.05)
    np.testing.assert_allclose(got[~twins], -harm / 2, atol=0.05)
    np.testing.assert_allclose(np.diagonal(got), 1, atol=1e-12)


def test_rows_help_columns():
    scores, task, base = suite(teaches=0.0)
    scores[0, task == 5] += 1.0  # model 0 is half as good on task 5 as its own model
    got = affinity.transfer(scores, task, by_task(base, task))
    assert got[0, 5] == pytest.approx(0.5, abs=0.05) and got[5, 0] == pytest.approx(0, abs=0.05)


def test_the_median_takes_out_what_every_model_learns():
    scores, task, base = suite(teaches=0.5)
    form = scores + 10.0  # all models alike are far better than the base
    against_base = affinity.transfer(form, task, by_task(base, task))
    against_median = affinity.transfer(form, task)
    apart = FAMILY[:, None] != FAMILY
    assert against_base[apart].min() > 0.8
    assert abs(against_median[apart]).max() < 0.1


def test_the_better_reference_does_not_take_less_harm_for_help():
    scores, task, base = suite(harm=1.0)
    scores[5, task != 5] += 0.9  # a model that harms others less
    apart = FAMILY[:, None] != FAMILY
    assert affinity.transfer(scores, task)[5, 3:5].min() > 0.2
    assert affinity.measure_transfer(scores, task, base).share[apart].max() < 0.05


def test_a_task_that_learnt_nothing_is_named_and_left_out():
    scores, task, base = suite()
    scores[:, task == 3] = base[task == 3] + 0.1 * np.random.default_rng(1).normal(size=(N, 40))
    scores[3, task == 3] = base[task == 3] - 0.05
    found = affinity.measure_transfer(scores, task, base)
    assert found.nothing_learnt([f"task{k}" for k in range(N)]) == ["task3"]
    assert (found.share[:, 3] == 0).all() and np.isfinite(found.share).all()
    assert (np.diagonal(found.share)[found.learnt] == 1).all()


def test_standard_errors_are_those_of_paired_differences():
    scores, task, base = suite(noise=0.5)
    found = affinity.measure_transfer(scores, task, base)
    mine = task == 4
    by_hand = (scores[4] - base)[mine].std() / np.sqrt(mine.sum())
    assert found.error[4, 4] == pytest.approx(by_hand, rel=0.2)
    assert found.gain[4, 4] == pytest.approx((scores[4] - base)[mine].mean(), abs=0.05)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = planted(0.8)
    held = []
    for seed in range(20):
        scores, task, base = suite(noise=0.8, seed=seed)
        found = affinity.measure_transfer(scores, task, base)
        inside = (found.low <= truth) & (truth <= found.high)
        off = ~np.eye(N, dtype=bool)
        held.append(inside[off].mean())
        assert (found.low <= found.share + 1e-12).all() and (
            found.share <= found.high + 1e-12
        ).all()
        assert (found.low[~off] == 1).all() and (found.high[~off] == 1).all()
    assert 0.85 < np.mean(held) <= 1


def test_losses_over_tokens_are_those_of_an_evaluation():
    scores, task, _ = suite()
    tokens = np.random.default_rng(2).integers(1, 9, len(task))
    got = affinity.mean_losses(scores, task, tokens)
    mine = task == 2
    np.testing.assert_allclose(got[1, 2], -scores[1, mine].sum() / tokens[mine].sum())
    drawn = affinity.resample_losses(scores, task, tokens, resamples=2000, seed=3)
    np.testing.assert_allclose(drawn.mean(0), got, rtol=0.02)
    assert drawn.std(0).min() > 0


def test_a_target_is_measured_by_its_best_teacher():
    scores, task, base = suite(teaches=0.5)
    # Task 5 loses its model: it is now a target, which model 4 teaches half of what it can be.
    scores[4, task == 5] += 1.5
    scores[0, task == 5] += 0.75
    found = affinity.measure_transfer(scores[:5], task, base)
    assert found.share.shape == (5, 6) and found.learnt.all()
    np.testing.assert_allclose(found.share[[4, 0, 1], 5], [1, 0.5, 0], atol=0.05)
    S, unary = affinity.transfer_affinity(found.share)
    assert S.shape == (5, 5) and unary.shape == (5,)


def test_resamples_are_decided_by_the_seed():
    scores, task, _ = suite()
    one, same, other = (affinity.resample_losses(scores, task, seed=s) for s in (0, 0, 1))
    assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize("importance", [None, np.arange(N) / 15])
def test_as_an_affinity_it_is_the_energy_of_effective_shares(importance):
    scores, task, base = suite(harm=1.0)
    share = affinity.transfer(scores, task, by_task(base, task))
    S, unary = affinity.transfer_affinity(share, importance)
    assert np.linalg.eigvalsh(S).min() > -1e-12 and (S == S.T).all()
    w = np.full(N, 1 / N) if importance is None else importance
    rng, r = np.random.default_rng(0), 1.3
    energies = []
    for p in rng.dirichlet(np.ones(N), 5):
        effective = p @ np.maximum(share, 0)
        by_shares = 0.5 * (w * (effective - r / N) ** 2).sum()
        energies.append(0.5 * p @ S @ p - r / N * unary @ p - by_shares)
    np.testing.assert_allclose(energies, energies[0], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, t, b: (s[0], t, b), "models, examples"),
        (lambda s, t, b: (s, t[:-1], b), "one per example"),
        (lambda s, t, b: (s, t * 1.0, b), "integers"),
        (lambda s, t, b: (s, t - 1, b), "count from 0"),
        (lambda s, t, b: (np.where(s == s[0, 0], np.nan, s), t, b), r"log_likelihood\[0, 0\]"),
        (lambda s, t, b: (s, np.where(t == 2, 1, t), b), "task 2 has no held-out"),
        (lambda s, t, b: (s, t, b[:3]), "one log-likelihood per task"),
        (lambda s, t, b: (s, t, b * np.inf), r"reference\[0\]"),
        (lambda s, t, b: (s[:1], t * 0, None), "give the base"),
    ],
)
def test_bad_input_is_named(change, said):
    scores, task, base = suite()
    with pytest.raises(ValueError, match=said):
        affinity.transfer(*change(scores, task, by_task(base, task)))
