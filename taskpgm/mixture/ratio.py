"""The ratio of unary to pairwise term that is predicted to be worth most, on the exact path."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import AnyArray, ArrayLike
from taskpgm.mixture.path import Path
from taskpgm.mixture.worth import PredictedLoss, per_task_mean, read_importance

HALVINGS = 60  # of a stretch of the path: to the last digit of a ratio


class ChosenRatio(NamedTuple):
    """A point of a ratio path.

    Attributes:
      ratio: r.
      weights: the exact mixture there, [n].
      loss: its predicted loss, nats.
      along: predicted loss at each of `path.ratios`, [k], nats.
    """

    ratio: float
    weights: Float[np.ndarray, " n"]
    loss: float
    along: Float[np.ndarray, " k"]


def choose_ratio(
    path: Path, predicted: PredictedLoss, task_weights: Annotated[ArrayLike, "k"] | None = None
) -> ChosenRatio:
    """The point of a ratio path with the least predicted loss: exact, not from a grid.

    Between two breakpoints the mixture is linear in r and the predicted loss convex in it: its
    least value there is at an end, or where its slope changes sign, which bisection finds.

    Args:
      path: of `ratio_path`, for any affinity.
      predicted: the law, for the tasks of that affinity.
      task_weights: as in `PredictedLoss.minimise`.
    Raises:
      ValueError: path and law are of different numbers of tasks.
    """
    n = path.weights.shape[1]
    if predicted.supply.shape[0] != n:
        raise ValueError(
            f"the path is of {n} tasks, the predicted loss of {predicted.supply.shape[0]}"
        )
    w = read_importance(task_weights, predicted.gain.shape[-1])
    along = np.asarray(predicted.per_task(path.weights) @ w)
    lowest = int(np.argmin(along))
    ratio, least = float(path.ratios[lowest]), float(along[lowest])
    # Only where it falls at the left end and rises at the right one is the least value in between.
    start, step = path.weights[:-1], np.diff(path.weights, axis=0)
    falls = _slopes(predicted, w, start, step, np.zeros(len(step))) < 0
    inside = np.flatnonzero(falls & (_slopes(predicted, w, start, step, np.ones(len(step))) > 0))
    if len(inside):
        start, step, low, high = start[inside], step[inside], 0.0 * inside, 0.0 * inside + 1.0
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            falls = _slopes(predicted, w, start, step, middle) < 0
            low, high = np.where(falls, middle, low), np.where(falls, high, middle)
        value = np.asarray(predicted.per_task(start + low[:, None] * step) @ w)
        best = int(np.argmin(value))
        if value[best] < least:
            left, right = path.ratios[inside[best] : inside[best] + 2]
            ratio, least = float(left + low[best] * (right - left)), float(value[best])
    return ChosenRatio(ratio, path.at(ratio), least, along)


def _slopes(
    law: PredictedLoss,
    w: Float[np.ndarray, " t"],
    start: Float[np.ndarray, "s n"],
    step: Float[np.ndarray, "s n"],
    share: Float[np.ndarray, " s"],
) -> Float[np.ndarray, " s"]:
    """Slope of the loss along each of s stretches, `share` of the way through it."""
    with jax.enable_x64(True):
        return np.asarray(_derivative(law, w, start, step, share))


@jax.jit
def _derivative(
    law: PredictedLoss, w: AnyArray, start: AnyArray, step: AnyArray, share: AnyArray
) -> Float[jax.Array, " s"]:
    def loss(share: Float[jax.Array, " s"]) -> Float[jax.Array, " s"]:
        return per_task_mean(law, start + share[:, None] * step) @ w

    return jax.jvp(loss, (share,), (jnp.ones_like(share),))[1]
