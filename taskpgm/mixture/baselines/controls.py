"""Controls: parts of the method alone, and the method on an affinity that says nothing."""

from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.energy import energy_from_affinity
from taskpgm.mixture.inputs import ArrayLike, as_symmetric
from taskpgm.mixture.solve import solve_closed_form, solve_exact


def softmax_rows(
    affinity: Annotated[ArrayLike, "n n"], *, beta: float | int = 1.0
) -> Float[np.ndarray, "n"]:
    """p = softmax(beta * S 1): representativeness alone, no redundancy.

    The published belief propagation comes down to it, and is nearly one-hot at its settings.

    >>> softmax_rows([[0.0, 1.0], [1.0, 0.0]])
    array([0.5, 0.5])
    """
    scores = beta * as_symmetric(affinity, "affinity").sum(-1)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def pure_diversity(
    affinity: Annotated[ArrayLike, "n n"], *, psd: str = "simplex", floor: float | int = 1e-3
) -> Float[np.ndarray, "n"]:
    """w = S~^-1 1 / (1' S~^-1 1), projected on the simplex: the paper's closed form at r = 0.

    >>> pure_diversity([[1.0, 0.0], [0.0, 3.0]], psd="shift")
    array([0.75, 0.25])
    """
    energy = energy_from_affinity(affinity, 0.0, psd=psd, floor=floor)
    return np.asarray(solve_closed_form(energy).weights)


def permuted_affinity(
    affinity: Annotated[ArrayLike, "n n"], *, seed: int = 0
) -> Float[np.ndarray, "n n"]:
    """S with rows and columns permuted alike: the spectrum stays, what it says of tasks goes.

    The permutation leaves no task in its place (where n > 1), or that part would be no control.
    """
    s = as_symmetric(affinity, "affinity")
    n = s.shape[-1]
    # A cycle through all tasks in a random order: uniform over the cyclic permutations.
    order = np.random.default_rng(seed).permutation(n)
    moved = np.empty(n, np.int64)
    moved[order] = np.roll(order, 1)
    return s[np.ix_(moved, moved)]


def permuted(
    affinity: Annotated[ArrayLike, "n n"],
    ratio: float | int,
    cap: Annotated[ArrayLike, "n"] | None = None,
    *,
    psd: str = "simplex",
    floor: float | int = 1e-3,
    seed: int = 0,
) -> Float[np.ndarray, "n"]:
    """The exact mixture of `permuted_affinity`: as concentrated as the method's, on other tasks.

    >>> permuted([[1.0, 0.0], [0.0, 3.0]], 0.0, psd="shift").round(2)
    array([0.25, 0.75])
    """
    moved = permuted_affinity(affinity, seed=seed)
    energy = energy_from_affinity(moved, ratio, psd=psd, floor=floor)
    return np.asarray(solve_exact(energy, cap).weights)
