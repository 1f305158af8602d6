"""The pairwise JSD in float64, and how far from it a kernel may be (kernels/jsd_term.py)."""

import numpy as np


def reference(a, b):
    """JSD over the last axis, float64, of log-probabilities taken as they are; -inf allowed."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    p, q = np.exp(a), np.exp(b)
    with np.errstate(invalid="ignore", divide="ignore"):
        d = np.tanh(0.5 * (a - b))  # (p - q)/(p + q) without cancellation
        low = np.where(np.abs(d) < 1, (1 - d) * np.log1p(-d) + (1 + d) * np.log1p(d), 2 * np.log(2))
    return np.where(p + q > 0, 0.25 * (p + q) * low, 0.0).sum(-1)


def bound(jsd):
    return 2e-6 * jsd + 2e-7 * np.sqrt(jsd) + 1e-13


def normalised(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def assert_within_bound(log_probs, pairs, weights):
    """`pairs` [e p] is the weighted sum over positions, for i < j, of what float64 gives."""
    wide = np.asarray(log_probs, np.float64)
    i, j = np.triu_indices(len(wide), 1)
    for e, w in enumerate(np.asarray(weights, np.float64)):
        for k in range(len(i)):
            want = reference(wide[i[k]], wide[j[k]])
            assert abs(pairs[e, k] - w @ want) <= w @ bound(want), (i[k], j[k], e)


def extreme(rng, t, v):
    """Exact zeros, 1e-30, one-hot, disjoint, uniform and equal distributions."""
    one_hot = np.full((t, v), -np.inf)
    one_hot[:, 0] = 0.0
    other = np.roll(one_hot, 1, axis=-1)
    tiny = np.full((t, v), np.log(1e-30))
    tiny[:, 1] = np.log1p(-(v - 1) * 1e-30)
    holes = rng.normal(size=(t, v))
    holes[:, ::3] = -np.inf
    uniform = np.full((t, v), -np.log(v))
    return np.stack([one_hot, other, tiny, normalised(holes), uniform, one_hot, tiny])
