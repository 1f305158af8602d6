"""MixMin: the mixture of models, one a task, that predicts the target data best.

Source: Thudi et al. (2025), "MixMin: finding data mixtures via convex minimization",
arXiv 2502.10510.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import ArrayLike, as_float64, as_vector


def mixmin(
    log_likelihood: Annotated[ArrayLike, "n m"],
    lengths: Annotated[ArrayLike, "m"] | None = None,
    *,
    importance: Annotated[ArrayLike, "m"] | None = None,
    rate: float | int = 1.0,
    steps: int = 100,
) -> Float[np.ndarray, "n"]:
    """min over p of -mean (1/|y|) log sum_i p_i p_i(y|x), by exponentiated gradient from uniform.

    The paper's settings, rate 1 and 100 steps, are the defaults.

    Args:
      log_likelihood: log p_i(y|x) of each model on each target example, the sum over the tokens of
        y, nats, [n, m]. Never leaves log space.
      lengths: |y| in tokens, [m]; 1 where None.
      importance: how much each example counts, [m]; all alike where None.

    >>> mixmin(np.log([[0.5, 0.5], [0.5, 0.5]])).round(6)
    array([0.5, 0.5])
    """
    scores = as_float64(log_likelihood, "log_likelihood")
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"log_likelihood has shape {scores.shape}: it has to be [n, m]")
    n, m = scores.shape
    share = np.ones(m) if importance is None else as_vector(importance, "importance", m)
    if (share < 0).any() or share.sum() <= 0:
        raise ValueError("importance has to be >= 0, and somewhere more")
    share = share / share.sum()
    share = share / (1.0 if lengths is None else as_vector(lengths, "lengths", m))
    log_p = np.full(n, -np.log(n))
    for _ in range(steps):
        joint = log_p[:, None] + scores
        top = joint.max(0)
        evidence = top + np.log(np.exp(joint - top).sum(0))
        # Minus the gradient is p_i(y|x) over the mixture's likelihood; at most 1 / p_i.
        log_p = log_p + rate * np.exp(scores - evidence) @ share
        log_p -= log_p.max()
        log_p -= np.log(np.exp(log_p).sum())
        log_p = np.maximum(log_p, -600)  # so that a task can come back
    return np.exp(log_p)
