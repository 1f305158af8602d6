"""Matrices and checks that the tests of this folder share."""

import numpy as np


def with_condition(n, condition, rng):
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    a = (q * np.geomspace(1, 1 / condition, n)) @ q.T
    return (a + a.T) / 2


def affinity(n, seed=0):
    """Indefinite, with families, like a PMI matrix: zero diagonal, mostly negative entries."""
    rng = np.random.default_rng(seed)
    family = rng.integers(0, max(2, n // 5), n)
    near = np.where(family[:, None] == family, 0.5, -1.5)
    noise = rng.normal(size=(n, n)) * 0.3
    s = near + (noise + noise.T) / 2 - rng.gamma(2.0, 0.3, n)[:, None]
    s = (s + s.T) / 2
    np.fill_diagonal(s, 0)
    return s


def _lowrank(n, rng):
    x = rng.normal(size=(n, 3))
    return x @ x.T


def _duplicated(n, rng):
    x = np.repeat(rng.normal(size=(-(-n // 3), n)), 3, 0)[:n]
    return x @ x.T / n


def _rank_one(n, rng):
    v = rng.normal(size=n)
    return np.outer(v, v)


def _rank_one_positive(n, rng):
    v = np.abs(rng.normal(size=n))
    return np.outer(v, v)


HARD = {
    "condition 1e4": lambda n, rng: with_condition(n, 1e4, rng),
    "condition 1e12": lambda n, rng: with_condition(n, 1e12, rng),
    "diagonal 1e12": lambda n, rng: np.diag(np.geomspace(1, 1e-12, n)),
    "rank one": _rank_one,
    "rank one, positive": _rank_one_positive,
    "rank three": _lowrank,
    "all equal": lambda n, rng: np.ones((n, n)),
    "zero": lambda n, rng: np.zeros((n, n)),
    "identity": lambda n, rng: np.eye(n),
    "duplicated rows": _duplicated,
}


def gap(unary, pairwise, p, cap=None):
    """The certificate, in other words than the package's: a linear programme over the vertices."""
    cap = np.ones(len(p)) if cap is None else np.minimum(cap, 1)
    g = pairwise @ p - unary
    g = g - g @ p
    left, best = 1.0, 0.0
    for i in sorted(range(len(p)), key=lambda i: g[i]):
        take = min(left, cap[i])
        best, left = best + take * g[i], left - take
    return -best


def value(unary, pairwise, p):
    return 0.5 * p @ pairwise @ p - unary @ p
