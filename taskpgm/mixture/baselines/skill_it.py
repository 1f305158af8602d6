"""Skill-It: along one run, weight moves to the tasks that teach what is not yet learnt.

Source: Chen et al. (2023), "Skill-it! A data-driven skills framework for understanding and training
language models", arXiv 2307.14430, algorithm 1.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import ArrayLike, as_float64


def skill_it(
    helps: Annotated[ArrayLike, "n k"],
    losses: Annotated[ArrayLike, "t k"],
    *,
    rate: float | int = 0.2,
    window: int = 3,
) -> Float[np.ndarray, "n"]:
    """The weights after t rounds: p_i ~ exp(rate * sum_j A_ij * sum of the last `window` losses_j).

    Before the first round every task's loss counts as 1. The paper's settings for instruction data
    are a rate of 0.2, a window of 3, and 6 rounds where it fine-tunes.

    Args:
      helps: A, how much training on i (row) lowers the loss of j, a task or a target; what is
        below 0 counts as 0.
      losses: of each j after each round, nats per token, [t, k]; t may be 0.

    >>> skill_it([[1.0, 1.0], [0.0, 1.0]], np.zeros((0, 2)), rate=1).round(2)
    array([0.73, 0.27])
    """
    a, told = np.maximum(as_float64(helps, "helps"), 0.0), as_float64(losses, "losses")
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"helps has shape {a.shape}: it has to be n by k with n, k >= 1")
    if told.ndim != 2 or told.shape[1] != a.shape[1]:
        raise ValueError(f"losses have shape {told.shape}: they have to be [rounds, {a.shape[1]}]")
    if window < 1:
        raise ValueError(f"window={window} has to be at least 1")
    recent = told[-window:].sum(0) if len(told) else np.ones(a.shape[1])
    scores = rate * a @ recent
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
