"""LESS: the tasks of those training rows whose gradients point where the targets' do.

Source: Xia, Malladi, Gururangan, Arora and Chen (2024), "LESS: Selecting influential data for
targeted instruction tuning", arXiv 2402.04333, definition 3.1 and section 4.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import ArrayLike, as_float64, as_vector


def influence(
    rows: Annotated[ArrayLike, "m d"], targets: Annotated[ArrayLike, "k d"]
) -> Float[np.ndarray, "m k"]:
    """Cosine of each training row's step of Adam and each target's mean gradient, at one checkpoint
    of the warm-up. What is 0 points nowhere: its cosine is 0.

    The sum over checkpoints, each times the mean learning rate of its epoch, is Inf_Adam.

    >>> influence([[3.0, 4.0], [0.0, 0.0]], [[2.0, 0.0]])
    array([[0.6],
           [0. ]])
    """
    x, y = (as_float64(each, name) for each, name in ((rows, "rows"), (targets, "targets")))
    x, y = (
        each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-30) for each in (x, y)
    )
    return x @ y.T


def less(
    influences: Annotated[ArrayLike, "m k"],
    task: Annotated[ArrayLike, "m"],
    examples: Annotated[ArrayLike, "n"],
    *,
    top: float | int = 0.05,
) -> Float[np.ndarray, "n"]:
    """Each task's share of the `top` of all examples by their largest influence on a target.

    The paper trains on the selected rows; here the share of each task among them is its weight. Of
    a task with more examples than rows, each row stands for equally many, and the last row that is
    taken counts for what is still to be had.

    >>> less([[0.9], [0.1], [0.5], [0.2]], [0, 0, 1, 1], [2, 20], top=0.5)
    array([0.09090909, 0.90909091])

    Args:
      influences: of each row on each target.
      task: of each row, its number.
      examples: of each task, how many there are.
    """
    scores, count = as_float64(influences, "influences"), as_vector(examples, "examples")
    number = np.asarray(task)
    if scores.ndim != 2 or 0 in scores.shape or number.shape != (len(scores),):
        raise ValueError(
            f"influences have shape {scores.shape} and tasks {number.shape}: they have to be [m k] "
            "and [m] with m, k >= 1"
        )
    if not 0 < top <= 1:
        raise ValueError(f"top={top} has to lie in (0, 1]")
    each = (count / np.maximum(np.bincount(number, minlength=len(count)), 1))[number]
    order = np.argsort(-scores.max(1), kind="stable")
    before = np.cumsum(each[order]) - each[order]
    taken = np.clip(top * each.sum() - before, 0.0, each[order])
    weights = np.bincount(number[order], taken, len(count))
    return weights / weights.sum()
