"""Resampled affinities from stored scores."""

import numpy as np
import pytest

from taskpgm import affinity
from taskpgm.affinity.matrices import symmetric
from taskpgm.affinity.scores import Scores


def scores(contexts="pool", m=(40, 1, 9)):
    """Made-up scores of three models; tasks from the third on are targets."""
    rng = np.random.default_rng(0)

    def divergence(k):
        values = np.random.default_rng(k).random((m[k], 3)) * 0.6
        return symmetric(values, 3)

    count = sum(m)
    return Scores(
        log_likelihood=rng.normal(size=(3, count)) - 20,
        base=None,
        tokens=rng.integers(1, 9, count),
        task=np.repeat(range(len(m)), m),
        contexts=contexts,
        divergence=divergence,
    )


def test_pmi_resamples_scatter_about_the_estimate():
    s = scores()
    got = affinity.resample_pmi(s, resamples=4000, seed=1)
    want = affinity.pmi(affinity.likelihoods(s), s.task)
    assert got.shape == (4000, 3, 3) and got.dtype == np.float64
    np.testing.assert_allclose(got.mean(0), want, atol=0.05)
    assert (got == got.transpose(0, 2, 1)).all() and (np.diagonal(got, 0, 1, 2) == 0).all()
    # The standard error of the difference of means over tasks 0 and 2, by hand.
    per_token = affinity.likelihoods(s)
    parts = [(per_token[2] - per_token[0])[s.task == k] for k in (0, 2)]
    error = 0.5 * np.sqrt(sum(x.var() / len(x) for x in parts))
    assert got[:, 0, 2].std() == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize("contexts", ["pool", "pair"])
def test_jsd_resamples_scatter_about_the_estimate(contexts):
    s = scores(contexts)
    got = affinity.resample_jsd(s, resamples=4000, seed=1)
    want = affinity.jsd_affinity(s.mean_divergence(), contexts)
    np.testing.assert_allclose(got.mean(0), want, atol=5e-3)
    assert (np.diagonal(got, 0, 1, 2) == 1).all() and got.min() >= 0 and got.max() <= 1
    assert got.std(0)[0, 2] > 0.001


def test_the_seed_decides():
    a, b, c = (affinity.resample_pmi(scores(), resamples=5, seed=x) for x in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


def test_intervals():
    samples = np.arange(101.0)[:, None, None] * np.ones((1, 2, 2))
    low, high = affinity.intervals(samples, 0.9)
    np.testing.assert_allclose([low, high], [np.full((2, 2), 5), np.full((2, 2), 95)])
    with pytest.raises(ValueError, match="level"):
        affinity.intervals(samples, 95.0)


def test_normalize():
    s = scores()
    assert (affinity.likelihoods(s, "sequence") == s.log_likelihood).all()
    with pytest.raises(ValueError, match="normalize must be one of"):
        affinity.likelihoods(s, "word")
