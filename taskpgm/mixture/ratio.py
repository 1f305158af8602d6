"""The ratio of unary to pairwise term that is predicted to be worth most, on the exact path."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
    if len(along) > 1:
        with jax.enable_x64(True):
            share, value = map(np.asarray, _least_between(predicted, w, path.weights))
        stretch = int(np.argmin(value))
        if value[stretch] < least:
            low, high = path.ratios[stretch : stretch + 2]
            ratio, least = float(low + share[stretch] * (high - low)), float(value[stretch])
    return ChosenRatio(ratio, path.at(ratio), least, along)


@jax.jit
def _least_between(
    law: PredictedLoss, w: Float[AnyArray, " t"], points: Float[AnyArray, "k n"]
) -> tuple[Float[Array, " stretches"], Float[Array, " stretches"]]:
    """For each stretch between two points: where its least loss is, a share in [0, 1], and that."""
    start, step = points[:-1], points[1:] - points[:-1]

    def loss(share):
        return per_task_mean(law, start + share[:, None] * step) @ w

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        falls = jax.jvp(loss, (middle,), (jnp.ones_like(middle),))[1] < 0
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    whole = jnp.zeros(len(step)), jnp.ones(len(step))
    share = jax.lax.fori_loop(0, HALVINGS, halve, whole)[0]
    return share, loss(share)
