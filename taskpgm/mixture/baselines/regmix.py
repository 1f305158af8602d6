"""RegMix: many small runs on random mixtures, a regression of the loss, the best of many guesses.

Source: Liu et al. (2024), arXiv 2407.01492.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import ArrayLike, as_float64, as_vector

CHUNK = 4096  # simulated mixtures held at once


def dirichlet_mixtures(
    prior: Annotated[ArrayLike, "n"],
    count: int,
    *,
    concentration: float | int = 1.0,
    seed: int | tuple[int, ...] = 0,
) -> Float[np.ndarray, "r n"]:
    """Random mixtures around `prior`: Dirichlet(concentration * n * prior)."""
    p = as_vector(prior, "prior")
    if (p <= 0).any():
        raise ValueError("prior has to be > 0 for every task")
    alpha = concentration * len(p) * p / p.sum()
    return np.random.default_rng(seed).dirichlet(alpha, count)


def regmix(
    mixtures: Annotated[ArrayLike, "r n"],
    losses: Annotated[ArrayLike, "r"],
    *,
    prior: Annotated[ArrayLike, "n"] | None = None,
    simulated: int = 100_000,
    best: int = 128,
    ridge: float = 1e-3,
    seed: int = 0,
) -> Float[np.ndarray, "n"]:
    """The mean of the `best` of `simulated` mixtures by a regressor fitted to measured runs.

    The paper's settings are the defaults: 100,000 simulated mixtures, the mean of the best 128. Its
    regressor is LightGBM; here it is ridge regression on p, p^2 and log p (a loss bends, and each
    weight's first grains matter most), with standardised features.

    >>> runs = dirichlet_mixtures([0.5, 0.5], 50)
    >>> bool(regmix(runs, runs[:, 0], simulated=1000)[0] < 0.1)
    True

    Args:
      mixtures, losses: the runs: what each was trained on, and its target loss.
      prior: where simulated mixtures are drawn around; uniform where None.
    """
    p = as_float64(mixtures, "mixtures")
    y = as_vector(losses, "losses", len(p))
    n = p.shape[1]
    if not 1 <= best <= simulated:
        raise ValueError(f"best={best} has to lie in 1..{simulated}")
    x = _features(p)
    centre, spread = x.mean(0), np.maximum(x.std(0), 1e-12)
    x = (x - centre) / spread
    # In the dual: there are fewer runs than features.
    gram = x @ x.T + ridge * len(p) * np.eye(len(p))
    slope = x.T @ np.linalg.solve(gram, y - y.mean())

    around = np.full(n, 1 / n) if prior is None else as_vector(prior, "prior", n)
    found, found_loss = np.empty((0, n)), np.empty(0)
    for start in range(0, simulated, CHUNK):
        count = min(CHUNK, simulated - start)
        part = dirichlet_mixtures(around, count, seed=(seed, start))
        loss = ((_features(part) - centre) / spread) @ slope
        found, found_loss = np.vstack([found, part]), np.append(found_loss, loss)
        keep = np.argsort(found_loss, kind="stable")[:best]
        found, found_loss = found[keep], found_loss[keep]
    return found.mean(0)


def _features(p: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r 3*n"]:
    return np.hstack([p, p**2, np.log(p + 1e-3 / p.shape[1])])
