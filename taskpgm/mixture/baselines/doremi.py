"""DoReMi: tasks on which a proxy model lags behind a reference gain weight.

Source: Xie et al. (2023), arXiv 2305.10429, algorithm 1.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import ArrayLike, as_float64, as_vector


def doremi(
    excess: Annotated[ArrayLike, "s n"], *, rate: float | int = 1.0, smoothing: float = 1e-3
) -> Float[np.ndarray, "n"]:
    """The mean over steps of w <- (1 - smoothing) w e^(rate * excess) / sum + smoothing / n.

    Starts from uniform; the paper's settings are the defaults. A proxy that trains on the weights
    as they move calls `doremi_update` itself after each step.

    Args:
      excess: `excess_loss` of each task at each step of the proxy, [s, n].

    >>> doremi([[0.0, 0.0], [0.0, 0.0]])
    array([0.5, 0.5])
    """
    steps = as_float64(excess, "excess")
    if steps.ndim != 2 or 0 in steps.shape:
        raise ValueError(f"excess has shape {steps.shape}: it has to be [steps, n]")
    weights, total = np.full(steps.shape[1], 1 / steps.shape[1]), np.zeros(steps.shape[1])
    for step in steps:
        weights = doremi_update(weights, step, rate=rate, smoothing=smoothing)
        total += weights
    return total / len(steps)


def excess_loss(
    proxy: Annotated[ArrayLike, "t"],
    reference: Annotated[ArrayLike, "t"],
    task: Annotated[ArrayLike, "t"],
    n: int,
) -> Float[np.ndarray, "n"]:
    """Mean of max(proxy - reference, 0) over each task's tokens, nats; 0 for an absent task.

    Args:
      proxy, reference: loss of each token under the two models.
      task: the task of each token, 0..n-1.
    """
    excess = np.maximum(as_vector(proxy, "proxy") - as_vector(reference, "reference"), 0)
    task = np.asarray(task)
    total, count = np.bincount(task, excess, n), np.bincount(task, minlength=n)
    return total / np.maximum(count, 1)


def doremi_update(
    weights: Annotated[ArrayLike, "n"],
    excess: Annotated[ArrayLike, "n"],
    *,
    rate: float | int = 1.0,
    smoothing: float = 1e-3,
) -> Float[np.ndarray, "n"]:
    """w * exp(rate * excess), normalised, then (1 - smoothing) w + smoothing / n."""
    w = as_vector(weights, "weights")
    scores = rate * as_vector(excess, "excess", len(w))
    w = w * np.exp(scores - scores.max())
    return (1 - smoothing) * w / w.sum() + smoothing / len(w)
