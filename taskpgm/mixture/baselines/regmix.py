"""RegMix: many small runs on random mixtures, a regression of the loss, the best of many guesses.

Source: Liu et al. (2024), arXiv 2407.01492.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import ArrayLike, as_float64, as_vector

CHUNK = 4096  # simulated mixtures held at once
STRENGTHS = np.logspace(-1, np.log10(5), 15)  # the paper's: from one task alone to the prior


def dirichlet_mixtures(
    prior: Annotated[ArrayLike, "n"],
    count: int,
    *,
    strengths: Annotated[ArrayLike, "k"] = STRENGTHS,
    least: float = 2e-4,
    seed: int | tuple[int, ...] = 0,
) -> Float[np.ndarray, "r n"]:
    """Random mixtures around `prior`: Dirichlet(strength * prior), a strength for each drawn.

    Shares below `least` become 0, as in the authors' code; they take the square root of the natural
    shares as the prior.
    """
    p = as_vector(prior, "prior")
    if (p <= 0).any():
        raise ValueError("prior has to be > 0 for every task")
    p, rng = p / p.sum(), np.random.default_rng(seed)
    drawn = rng.choice(as_vector(strengths, "strengths"), count)
    found = np.stack([rng.dirichlet(strength * p) for strength in drawn])
    found = np.where(found < least, 0.0, found)
    return found / found.sum(1, keepdims=True)


def regmix(
    mixtures: Annotated[ArrayLike, "r n"],
    losses: Annotated[ArrayLike, "r"],
    *,
    prior: Annotated[ArrayLike, "n"] | None = None,
    regressor: str = "lightgbm",
    simulated: int = 100_000,
    best: int = 128,
    seed: int = 0,
) -> Float[np.ndarray, "n"]:
    """The mean of the `best` of `simulated` mixtures by a regressor fitted to measured runs.

    The paper's settings are the defaults: LightGBM, 100,000 simulated mixtures, the mean of the
    best 128.

    >>> runs = dirichlet_mixtures([0.5, 0.5], 50)
    >>> bool(regmix(runs, runs[:, 0], regressor="ridge", simulated=1000)[0] < 0.1)
    True

    Args:
      mixtures, losses: the runs: what each was trained on, and its target loss.
      prior: where simulated mixtures are drawn around; uniform where None.
      regressor: "lightgbm", the paper's, of the package of that name: 1000 trees, learning rate
        0.01 (without the paper's early stopping on further runs); or "ridge": ridge regression on
        p, p^2 and log p (a loss bends, and each weight's first grains matter most), standardised.

    Raises:
      ImportError: lightgbm is not installed.
    """
    p = as_float64(mixtures, "mixtures")
    y = as_vector(losses, "losses", len(p))
    n = p.shape[1]
    if not 1 <= best <= simulated:
        raise ValueError(f"best={best} has to lie in 1..{simulated}")
    if regressor not in REGRESSORS:
        raise ValueError(f"regressor={regressor!r} is none of {', '.join(REGRESSORS)}")
    predict = REGRESSORS[regressor](p, y)
    around = np.full(n, 1 / n) if prior is None else as_vector(prior, "prior", n)
    found, found_loss = np.empty((0, n)), np.empty(0)
    for start in range(0, simulated, CHUNK):
        count = min(CHUNK, simulated - start)
        part = dirichlet_mixtures(around, count, seed=(seed, start))
        found, found_loss = np.vstack([found, part]), np.append(found_loss, predict(part))
        keep = np.argsort(found_loss, kind="stable")[:best]
        found, found_loss = found[keep], found_loss[keep]
    return found.mean(0)


# --- Regressors ----------------------------------------------------------------------------------
Predict = Callable[[Float[np.ndarray, "r n"]], Float[np.ndarray, "r"]]


def check_regressor(regressor: str) -> None:
    """Raises ImportError where the regressor's package is not installed.

    >>> check_regressor("ridge")  # numpy alone
    """
    if regressor == "lightgbm" and importlib.util.find_spec("lightgbm") is None:
        raise ImportError(
            "RegMix's own regressor needs lightgbm: pip install 'taskpgm[regmix]', or take "
            "regressor=ridge"
        )


def fit_lightgbm(p: Float[np.ndarray, "r n"], y: Float[np.ndarray, "r"]) -> Predict:
    check_regressor("lightgbm")
    lightgbm = importlib.import_module("lightgbm")
    settings = {"objective": "regression", "learning_rate": 1e-2, "seed": 42}
    quiet = {"verbosity": -1, "deterministic": True, "num_threads": 1}
    # Fewer runs than a leaf of theirs holds by default would leave every tree a stump.
    leaf = {"min_data_in_leaf": max(1, min(20, len(p) // 10))}
    data = lightgbm.Dataset(p, y)
    return lightgbm.train(settings | quiet | leaf, data, num_boost_round=1000).predict


def fit_ridge(p: Float[np.ndarray, "r n"], y: Float[np.ndarray, "r"]) -> Predict:
    x = _features(p)
    centre, spread = x.mean(0), np.maximum(x.std(0), 1e-12)
    x = (x - centre) / spread
    # In the dual: there are fewer runs than features.
    gram = x @ x.T + RIDGE * len(p) * np.eye(len(p))
    slope = x.T @ np.linalg.solve(gram, y - y.mean())
    return lambda part: ((_features(part) - centre) / spread) @ slope


def _features(p: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r 3*n"]:
    return np.hstack([p, p**2, np.log(p + 1e-3 / p.shape[1])])


RIDGE = 1e-3
REGRESSORS: dict[str, Callable[[np.ndarray, np.ndarray], Predict]] = {
    "lightgbm": fit_lightgbm,
    "ridge": fit_ridge,
}
