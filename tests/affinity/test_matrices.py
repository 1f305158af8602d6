"""PMI and JSD against their definitions in float64."""

import numpy as np
import pytest

from taskpgm.affinity import jensen_shannon, jsd_affinity, pmi


def reference_jsd(p, q):
    """H((p+q)/2) - H(p)/2 - H(q)/2 over the last axis, float64."""

    def plogp(x):
        return np.where(x > 0, x * np.log(np.where(x > 0, x, 1.0)), 0.0)

    return (0.5 * (plogp(p) + plogp(q)) - plogp(0.5 * (p + q))).sum(-1)


def random_log_probs(rng, *shape, scale=2.0):
    logits = rng.normal(size=shape) * scale
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_pmi_is_its_definition():
    rng = np.random.default_rng(0)
    task = np.array([2, 0, 1, 1, 0, 2, 2])
    score = rng.normal(size=(3, 7)) - 3
    got = pmi(score, task)
    for i in range(3):
        for j in range(3):
            on_j = np.mean([score[i, e] - score[j, e] for e in range(7) if task[e] == j])
            on_i = np.mean([score[j, e] - score[i, e] for e in range(7) if task[e] == i])
            assert got[i, j] == pytest.approx(0.5 * (on_j + on_i), abs=1e-12)
    assert (got == got.T).all() and (np.diag(got) == 0).all() and got.dtype == np.float64


def test_pmi_keeps_log_space_where_probabilities_would_saturate():
    score = np.array([[-800.0, -1200.0], [-900.0, -1000.0]])
    assert pmi(score, np.array([0, 1]))[0, 1] == 0.5 * (-1200 + 1000 - 900 + 800)


@pytest.mark.parametrize(
    "score, task, says",
    [
        (np.zeros(3), np.zeros(3, int), r"\[models, examples\]"),
        (np.zeros((2, 3)), np.zeros(2, int), "each of 3 examples"),
        (np.zeros((2, 3)), np.zeros(3), "integers"),
        (np.zeros((2, 3)), np.array([0, 1, 2]), r"0\.\.1"),
        (np.zeros((2, 3)), np.array([1, 1, 1]), "task 0 has no held-out"),
        (np.array([[0.0, np.nan], [0, 0]]), np.array([0, 1]), r"log_likelihood\[0, 1\] is nan"),
        (np.array([[0.0, 0], [-np.inf, 0]]), np.array([0, 1]), r"log_likelihood\[1, 0\] is -inf"),
    ],
)
def test_pmi_refuses(score, task, says):
    with pytest.raises(ValueError, match=says):
        pmi(score, task)


def test_jensen_shannon_is_its_definition():
    rng = np.random.default_rng(1)
    lp = random_log_probs(rng, 5, 6, 11).astype(np.float32)
    p = np.exp(lp.astype(np.float64))
    weights = rng.random(6)
    want = np.einsum("t,ijt->ij", weights / weights.sum(), reference_jsd(p[:, None], p[None]))
    got = jensen_shannon(lp, weights)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        jensen_shannon(lp), reference_jsd(p[:, None], p[None]).mean(-1), rtol=1e-5, atol=1e-8
    )
    assert (got == got.T).all() and (np.diag(got) == 0).all() and got.dtype == np.float64


def test_jensen_shannon_range():
    with np.errstate(divide="ignore"):
        lp = np.log(np.eye(4, dtype=np.float32))[:, None]
    assert (jensen_shannon(lp)[np.triu_indices(4, 1)] == np.log(2.0)).all()
    same = np.repeat(random_log_probs(np.random.default_rng(2), 1, 3, 9), 3, axis=0)
    assert (jensen_shannon(same) == 0).all()
    assert jensen_shannon(same[:1]).tolist() == [[0.0]]


@pytest.mark.parametrize(
    "make, weights, says",
    [
        (lambda lp: lp[0], None, r"\[models, positions, vocabulary\]"),
        (lambda lp: lp[:, :, :0], None, "at least 1"),
        (lambda lp: lp + 1.0, None, r"log_probs\[0, 0\] is no distribution"),
        (lambda lp: np.where(np.arange(5) == 3, np.nan, lp), None, "no distribution"),
        (lambda lp: np.where(np.arange(5) == 3, np.inf, lp), None, "no distribution"),
        (lambda lp: lp, np.ones(3), r"one per position, \[2\]"),
        (lambda lp: lp, np.array([1.0, -1.0]), "not negative"),
        (lambda lp: lp, np.zeros(2), "not all zero"),
        (lambda lp: lp, np.array([1.0, np.nan]), "finite"),
    ],
)
def test_jensen_shannon_refuses(make, weights, says):
    lp = random_log_probs(np.random.default_rng(3), 3, 2, 5)
    with pytest.raises(ValueError, match=says):
        jensen_shannon(make(lp), weights)


def test_affinity_of_pooled_contexts_is_positive_semi_definite():
    rng = np.random.default_rng(4)
    n = 24
    base = rng.normal(size=(1, 8, 13)) * 2
    c = np.stack(
        [
            jensen_shannon(
                (x := base + rng.normal(size=(n, 8, 13)) * 3)
                - np.log(np.exp(x).sum(-1, keepdims=True))
            )
            for _ in range(n)
        ]
    )
    pool = jsd_affinity(c, "pool")
    assert np.linalg.eigvalsh(pool)[0] > -1e-6
    assert (np.diag(pool) == 1).all() and pool.min() >= 0 and pool.max() <= 1
    pair = jsd_affinity(c, "pair")
    assert pair[3, 7] == pytest.approx(1 - 0.5 * (c[3, 3, 7] + c[7, 3, 7]) / np.log(2))
    assert (pair == pair.T).all()


def test_jsd_affinity_refuses():
    with pytest.raises(ValueError, match="contexts must be one of"):
        jsd_affinity(np.zeros((2, 2, 2)), "both")
    with pytest.raises(ValueError, match="one context task per model"):
        jsd_affinity(np.zeros((3, 2, 2)), "pair")
    with pytest.raises(ValueError, match=r"\[contexts, n, n\]"):
        jsd_affinity(np.zeros((2, 2)))
