"""Targets (tasks that are judged but not mixed) enter columns and pools, not the simplex."""

import numpy as np
import pytest

from taskpgm import affinity, mixture
from taskpgm.affinity.matrices import symmetric
from taskpgm.affinity.scores import Scores

N, TARGETS, EACH = 4, 2, 6


def scores(targets=TARGETS, contexts="pool", seed=0):
    """Made-up scores of four models, each the best on its own task."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(N + targets), EACH)
    values = rng.normal(size=(N, len(task))) - 20
    values[task[task < N], np.flatnonzero(task < N)] += 8
    return Scores(
        log_likelihood=values,
        base=None,
        tokens=rng.integers(1, 9, len(task)),
        task=task,
        contexts=contexts,
        divergence=lambda k: symmetric(
            0.6 * np.random.default_rng([seed, k]).random((EACH, N * (N - 1) // 2)), N
        ),
    )


def test_pmi_relevance_is_its_definition():
    s = scores()
    got, values = affinity.pmi_relevance(s), affinity.likelihoods(s)
    assert got.shape == (N, TARGETS)
    for t in range(TARGETS):
        mean = values[:, s.task == N + t].mean(1)
        np.testing.assert_allclose(got[:, t], mean - mean.max(), rtol=1e-12)


def test_a_target_like_a_task_finds_that_task_most_relevant():
    s = scores()
    values = s.log_likelihood.copy()
    values[:, s.task == N] = values[:, s.task == 2]
    s = Scores(values, None, s.tokens, s.task, "pool", s.divergence)
    got = affinity.pmi_relevance(s, "sequence")[:, 0]
    assert got.argmax() == 2 and got[2] == 0
    # Of the mixtures that reward relevance more and more, the last is that task alone.
    own = s.task < N
    matrix = affinity.pmi(s.log_likelihood[:, own], s.task[own])
    energy = mixture.energy_from_affinity(matrix, 1e3, judged=got[:, None])
    assert mixture.solve_exact(energy).weights[2] == pytest.approx(1.0)


def test_jsd_relevance_is_its_definition():
    s = scores()
    got = affinity.jsd_relevance(s)
    for t in range(TARGETS):
        contexts = 1 - s.divergence(N + t).mean(0) / np.log(2)
        np.testing.assert_allclose(got[:, t], contexts.mean(1), rtol=1e-12)
    assert 0 <= got.min() and got.max() <= 1


def test_targets_join_the_pool_of_contexts():
    s = scores()
    pool = affinity.jsd_affinity(s.mean_divergence())
    each = [1 - s.divergence(k).mean(0) / np.log(2) for k in range(N + TARGETS)]
    np.testing.assert_allclose(pool, np.mean(each, 0), rtol=1e-12)
    drawn = affinity.resample_jsd(s, resamples=4000)
    np.testing.assert_allclose(drawn.mean(0), pool, atol=5e-3)


def test_pmi_compares_mixed_tasks_alone():
    """Targets have no models of their own, so that resamples are the same without them."""
    s = scores()
    own = s.task < N
    few = Scores(s.log_likelihood[:, own], None, s.tokens[own], s.task[own], "pool", s.divergence)
    np.testing.assert_array_equal(affinity.resample_pmi(s), affinity.resample_pmi(few))


def test_refusals():
    with pytest.raises(ValueError, match="all 4 tasks of these scores are mixed"):
        affinity.pmi_relevance(scores(targets=0))
    with pytest.raises(ValueError, match="all 4 tasks of these scores are mixed"):
        affinity.jsd_relevance(scores(targets=0))
    with pytest.raises(ValueError, match="needs affinity.contexts='pool'; these .* 'pair'"):
        affinity.jsd_relevance(scores(contexts="pair"))
