"""Two variants from the public code of the paper's authors, solved exactly.

Source: the repository ParthPratim/task-mixtures of Chanda et al., arXiv 2507.12612: the clustered
optimisation and the graph-Laplacian optimisation, written anew from their formulas.
"""

import warnings
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2

from taskpgm.mixture.energy import Energy, energy_from_affinity
from taskpgm.mixture.inputs import ArrayLike, as_float64, as_symmetric
from taskpgm.mixture.solve import solve_exact


def clustered(
    affinity: Annotated[ArrayLike, "n n"],
    embeddings: Annotated[ArrayLike, "n d"],
    *,
    clusters: int = 10,
    beta: float | int = 0.25,
    lam: float | int = 1.25,
    seed: int = 0,
) -> Float[np.ndarray, "n"]:
    """k-means over task embeddings, then the paper's energy within each cluster.

    A cluster of m tasks gets m/n of the mixture, shared within by the minimiser of lam/2 p'S~p -
    beta (S 1)'p over its own block of S (the paper's shift). Their settings: 10 or 32 clusters,
    beta = 0.25, lam = 1.25. (Their code multiplies by beta twice; the formula, once, is kept here.)

    >>> clustered(np.eye(4), [[0.0], [0.1], [9.0], [9.1]], clusters=2)
    array([0.25, 0.25, 0.25, 0.25])
    """
    s, x = as_symmetric(affinity, "affinity"), as_float64(embeddings, "embeddings")
    n = len(s)
    if x.ndim != 2 or len(x) != n:
        raise ValueError(f"embeddings have shape {x.shape}: they have to be [n, d] with n = {n}")
    if not 1 <= clusters <= n:
        raise ValueError(f"clusters={clusters} has to lie in 1..{n}, the number of tasks")
    label = _kmeans(x, clusters, seed)
    weights = np.zeros(n)
    for cluster in np.unique(label):
        own = np.flatnonzero(label == cluster)
        block = s[np.ix_(own, own)]
        energy = energy_from_affinity(block, len(own) * beta / lam, psd="shift")
        weights[own] = solve_exact(energy).weights * len(own) / n
    return weights


def _kmeans(x: Float[np.ndarray, "n d"], clusters: int, seed: int) -> Int[np.ndarray, "n"]:
    """The best of 10 runs of k-means, each from points drawn as k-means++ does."""
    rng = np.random.default_rng(seed)
    best, least = np.zeros(len(x), np.int32), np.inf
    for _ in range(10):
        chosen = [int(rng.integers(len(x)))]
        while len(chosen) < clusters:
            distance = np.square(x[:, None] - x[chosen]).sum(-1).min(1)
            total = distance.sum()
            share = distance / total if total > 0 else np.full(len(x), 1 / len(x))
            chosen.append(int(rng.choice(len(x), p=share)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of clusters that end empty: they have no tasks
            centre, label = kmeans2(x, x[chosen], iter=100, minit="matrix")
        spread = float(np.square(x - centre[label]).sum())
        if spread < least:
            best, least = label, spread
    return best


def graph_laplacian(
    affinity: Annotated[ArrayLike, "n n"], ratio: float | int, *, epsilon: float = 1e-4
) -> Float[np.ndarray, "n"]:
    """min of 1/2 p'(D - S + epsilon I) p - (r/n) (S 1)'p on the simplex, D = diag(S 1).

    D - S is positive semi-definite for S >= 0; an affinity with negative entries (PMI) becomes
    exp(S / std(S)) first, as in their closed form. Their setting: epsilon = 1e-4.

    >>> graph_laplacian(np.eye(3), 1.0)
    array([0.33333333, 0.33333333, 0.33333333])
    """
    s = as_symmetric(affinity, "affinity")
    if (s < 0).any():
        s = np.exp((s - s.max()) / s.std())
    rows = s.sum(1)
    laplacian = np.diag(rows) - s + epsilon * np.eye(len(s))
    return np.asarray(solve_exact(Energy(ratio * rows / len(s), laplacian)).weights)
