"""DoReMi: weight to the tasks on which a small model still has the most to gain.

Source: Xie et al. (2023), arXiv 2305.10429, algorithm 1.
"""

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import as_float64, as_vector


def excess_loss(
    proxy: Float[np.ndarray, "t"], reference: Float[np.ndarray, "t"], task: np.ndarray, n: int
) -> Float[np.ndarray, "n"]:
    """Mean of max(proxy - reference, 0) over each task's tokens, nats; 0 for an absent task.

    Args:
      proxy, reference: loss of each token under the two models, [t].
      task: the task of each token, int [t].
    """
    excess = np.maximum(as_vector(proxy, "proxy") - as_vector(reference, "reference"), 0)
    task = np.asarray(task)
    total, count = np.bincount(task, excess, n), np.bincount(task, minlength=n)
    return total / np.maximum(count, 1)


def doremi_update(
    weights: Float[np.ndarray, "n"],
    excess: Float[np.ndarray, "n"],
    *,
    rate: float = 1.0,
    smoothing: float = 1e-3,
) -> Float[np.ndarray, "n"]:
    """w * exp(rate * excess), normalised, then (1 - smoothing) w + smoothing / n."""
    w = as_vector(weights, "weights")
    scores = rate * as_vector(excess, "excess", len(w))
    w = w * np.exp(scores - scores.max())
    return (1 - smoothing) * w / w.sum() + smoothing / len(w)


def doremi_average(steps: Float[np.ndarray, "s n"]) -> Float[np.ndarray, "n"]:
    """What DoReMi returns: the mean of the weights over the proxy's steps."""
    return as_float64(steps, "steps").mean(0)
