"""What a mixture is predicted to be worth: the loss it leaves on every task, from stored scores.

Every single-task model i, scored on task k, is one point of a learning curve of k: after the
examples that model i was trained on, of task i, its loss on k is L_ik. The law adds these up. With
b_k the loss of who was not trained for k, f_k the loss that training does not go below, and
l_ik = (L_ik - f_k) / (b_k - f_k), at most 1, the part of k that model i has left to learn,

    loss_k(p) = f_k + (b_k - f_k) (1 + x_k(p) / 2)^-2 + d_k exp(-4 x_k(p)),
    x_k(p) = pace sum_i h_ik m_i(p_i) / m_i(own run),    h_ik = 2 (l_ik^(-1/2) - 1).

Loss falls as a power of what is learnt, so a little of a task teaches more than its share, and one
run teaches as much as another, however many examples fit into its rows: own run is the median.

b_k is the lower loss of the base and of the median of the other tasks' models, so that neither
form, which every model learns, nor less harm counts as help. d_k, that median less b_k, is what
training on other tasks does to k; a little of k prevents it. m_i is the number of distinct
examples' worth in c drawn ones, N (1 - exp(-c / N)) for a task of N examples, since a repeated
example teaches less (Muennighoff et al. 2023, arXiv 2305.16264, "Scaling data-constrained language
models", equation 5, with one epoch as the scale). x is concave in p, and every term falls with x
and is convex in it, so every task's loss is convex in p: the best mixture is found exactly, with a
certificate.

experiments/results/predict.md holds what this predicts of trained mixtures, and what was tried.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.descent import Pull, Quadratic, allowed, descend
from taskpgm.mixture.inputs import AnyArray, ArrayLike, as_float64, as_mixture, as_vector, is_traced
from taskpgm.mixture.solve import Solution

FLOOR = 0.9  # of the least loss that any single-task model has: training goes no lower than this
LEAST = 0.2  # of what is to be learnt of a task, a single-task run is believed to leave so much
GUARD = 4.0  # harm is prevented by so many times fewer examples than a task is learnt from
POWER = 2.0  # of the learning curve
SEEN = 0.25  # of the budget: what a single-task model was trained on, where that is not known
PULL = 0.1  # nats: strength of the pull to a prior; what trained mixtures were best with


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictedLoss:
    """The law, or the average of the laws of several resamples of the scores. A pytree.

    >>> losses = [[0.5, 2.0], [2.0, 0.5]]  # two tasks that do not help each other
    >>> law = PredictedLoss.from_losses(losses, base=[2.0, 2.0])
    >>> law.minimise().weights.round(6).tolist()
    [0.5, 0.5]

    Attributes:
      floor: f, loss that training does not go below, [b, k], nats; tasks from n on are targets.
      gain: b - f, what there is to be learnt, [b, k], nats.
      harm: d, what training on other tasks alone costs, [b, k], nats.
      rate: what a unit of weight on task i teaches of a task, x above, not negative, [b, n, k].
      supply: weight at which a task has given each of its examples once, [n]; infinity: never.
    """

    floor: Float[AnyArray, "b k"]
    gain: Float[AnyArray, "b k"]
    harm: Float[AnyArray, "b k"]
    rate: Float[AnyArray, "b n k"]
    supply: Float[AnyArray, " n"]

    @classmethod
    def from_losses(
        cls,
        losses: Annotated[ArrayLike, "*b n k"],
        base: Annotated[ArrayLike, "*b k"] | None = None,
        *,
        budget: float | int | None = None,
        sizes: Annotated[ArrayLike, "n"] | None = None,
        seen: Annotated[ArrayLike, "n"] | None = None,
        pace: float | int = 1.0,
    ) -> "PredictedLoss":
        """The law of held-out losses of single-task models; with a batch axis, their average.

        Args:
          losses: L_ik, mean held-out loss of the model of task i on task k, > 0, nats per token.
            Tasks from n on are targets: judged, but not mixed.
          base: the base model's loss on each task; None: the median alone.
          budget: examples that the mixture is going to be trained on.
          sizes: training examples of each task, [n]; with `budget`, repeats then teach less.
          seen: examples, repeats counted, that each single-task model was trained on, [n] or one
            number; their median counts for all. None: a quarter of the budget.
          pace: how much faster than a single-task run the mixture's learns from an example.
        Raises:
          ValueError: wrong shapes, NaN or infinity, losses that are not positive, `sizes` or
            `seen` without `budget`, one task without a base.
        """
        loss, untrained = _read_losses(losses, base)
        n = loss.shape[-2]
        if budget is None and (sizes is not None or seen is not None):
            raise ValueError("sizes and seen count examples: give the budget of the mixture too")
        whole = 1.0 if budget is None else _positive(budget, "budget", ())
        own = SEEN if seen is None else np.median(_positive(seen, "seen", (n,))) / whole
        supply = np.full(n, np.inf) if sizes is None else _positive(sizes, "sizes", (n,)) / whole
        median = _median_of_others(loss, untrained)
        reference = median if untrained is None else np.minimum(untrained, median)
        floor = FLOOR * np.minimum(loss.min(-2), reference)
        left = (loss - floor[:, None]) / (reference - floor)[:, None]
        learnt = _distinct(np.broadcast_to(own, n), np.broadcast_to(supply, n))
        learning = POWER * (np.clip(left, LEAST, 1.0) ** (-1 / POWER) - 1)
        rate = learning * _positive(pace, "pace", ()) / learnt[:, None]
        gain, harm = reference - floor, median - reference
        return cls(floor, gain, harm, rate, np.broadcast_to(supply, n))

    def per_task(self, weights: Annotated[ArrayLike, "*c n"]) -> Float[AnyArray, "*c k"]:
        """Predicted loss on every task of every mixture of a batch, nats; jitted, float64.

        Raises:
          ValueError: wrong shape, NaN or infinity.
        """
        p = as_vector(weights, "weights", self.supply.shape[0])
        with jax.enable_x64(True):
            found = per_task_mean(self, p)
            return found if is_traced(found) else np.asarray(found)

    def loss(
        self,
        weights: Annotated[ArrayLike, "*c n"],
        task_weights: Annotated[ArrayLike, "k"] | None = None,
    ) -> Float[AnyArray, "*c"] | np.floating:
        """The mean of `per_task`, weighted by how much each task matters (equal where None)."""
        return self.per_task(weights) @ read_importance(task_weights, self.gain.shape[-1])

    def minimise(
        self,
        task_weights: Annotated[ArrayLike, "k"] | None = None,
        cap: Annotated[ArrayLike, "n"] | None = None,
        *,
        bounds: Bounds | None = None,
        prior: Annotated[ArrayLike, "n"] | None = None,
        strength: float | int = PULL,
    ) -> Solution:
        """The mixture of least predicted loss, certified; with a prior, pulled towards it.

        Args:
          task_weights: how much each task's loss counts, not negative, scaled to sum 1; equal
            where None.
          cap, bounds: as in `solve_exact`.
          prior: a mixture q; adds strength * KL(p || q) to the loss, so that the minimiser does not
            fall for the law's own errors. A thousandth of q is mixed into p first: a weight may be
            zero. A task without weight in q gets none. None: nothing is added.
          strength: >= 0, nats.
        Returns:
          Solution; `energy` is the value that was minimised, and less than `gap` above its least.
        Raises:
          ValueError: as `solve_exact`, or a prior that is no mixture.
        """
        n = self.supply.shape[0]
        w = read_importance(task_weights, self.gain.shape[-1])
        if not (np.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength={strength} has to be a finite number >= 0")
        pull = None
        if prior is not None and strength > 0:
            pull = Pull(as_mixture(prior, "prior", n), float(strength))
        p, energy, gap = descend(
            lambda p: _quadratic(self, w, p),
            lambda points: np.asarray(self.per_task(points) @ w),
            allowed(cap, bounds, n),
            pull,
        )
        method = "predicted, pulled to the prior" if pull else "predicted"
        return Solution(p, energy, gap, np.count_nonzero(p), method)


@jax.jit
def per_task_mean(law: PredictedLoss, weights: Float[AnyArray, "*c n"]) -> Float[jax.Array, "*c k"]:
    """`PredictedLoss.per_task` without checks, for use under jit."""
    weights = jnp.asarray(weights)
    finite = jnp.where(jnp.isfinite(law.supply), law.supply, 1.0)
    distinct = jnp.where(jnp.isfinite(law.supply), -finite * jnp.expm1(-weights / finite), weights)
    learnt = jnp.einsum("...i,bik->...bk", distinct, law.rate)
    left = law.gain * (1 + learnt / POWER) ** -POWER + law.harm * jnp.exp(-GUARD * learnt)
    return jnp.mean(law.floor + left, axis=-2)


def _quadratic(
    law: PredictedLoss, w: Float[np.ndarray, " k"], p: Float[np.ndarray, " n"]
) -> Quadratic:
    """Loss, slope and curvature at p."""
    law = jax.tree.map(np.asarray, law)
    grown = np.exp(-p / law.supply)  # derivative of the distinct examples' worth
    learnt = np.einsum("i,bik->bk", _distinct(p, np.asarray(law.supply)), law.rate)
    share = w / len(law.gain)
    curve = 1 + learnt / POWER
    left, harm = law.gain * curve**-POWER * share, law.harm * np.exp(-GUARD * learnt) * share
    pull = np.einsum("bk,bik->i", left / curve + GUARD * harm, law.rate)
    steep = law.rate * grown[:, None]
    bent = ((1 + 1 / POWER) * left / curve**2 + GUARD**2 * harm)[:, None]
    curvature = np.einsum("bik,bjk->ij", steep * bent, steep, optimize=True)
    curvature = curvature + np.diag(pull * grown / law.supply)
    value = float(np.sum(law.floor * share + left + harm))
    return Quadratic(value, -pull * grown, 0.5 * (curvature + curvature.T))


def read_importance(
    task_weights: Annotated[ArrayLike, "k"] | None, k: int
) -> Float[np.ndarray, " k"]:
    """Weights of tasks in the objective, scaled to sum 1; equal where None.

    Raises:
      ValueError: wrong shape, NaN, negative, or all zero.
    """
    if task_weights is None:
        return np.full(k, 1.0 / k)
    w = as_vector(task_weights, "task_weights", k)
    if w.ndim != 1 or w.min() < 0 or w.sum() == 0:
        raise ValueError("task_weights must be one vector, not negative and not all zero")
    return w / w.sum()


def _read_losses(
    losses: ArrayLike, base: ArrayLike | None
) -> tuple[Float[np.ndarray, "b n k"], Float[np.ndarray, "b k"] | None]:
    """Both with a batch axis, checked."""
    loss = as_float64(losses, "losses")
    if loss.ndim not in (2, 3) or loss.shape[-1] < loss.shape[-2] or not loss.size:
        raise ValueError(
            f"losses must be [n, k] or [b, n, k], k >= n, a row a model; got shape {loss.shape}"
        )
    loss = loss if loss.ndim == 3 else loss[None]
    _positive(loss, "losses", loss.shape)
    if base is None:
        return loss, None
    untrained = as_vector(base, "base", loss.shape[-1])
    if untrained.ndim > 2 or untrained.ndim == 2 and len(untrained) != len(loss):
        raise ValueError(f"base must be [k], or [b, k] as the losses; got shape {untrained.shape}")
    _positive(untrained, "base", untrained.shape)
    return loss, np.broadcast_to(untrained, loss.shape[:1] + untrained.shape[-1:])


def _median_of_others(
    losses: Float[np.ndarray, "b n k"], base: Float[np.ndarray, "b k"] | None
) -> Float[np.ndarray, "b k"]:
    """Median loss on each task of the models of the other tasks, the base's without any."""
    n, k = losses.shape[-2:]
    if n > 1:
        return np.nanmedian(np.where(np.eye(n, k, dtype=bool), np.nan, losses), axis=-2)
    if base is None:
        raise ValueError("one task alone has no other models to compare with: give base")
    return base


def _positive(value: ArrayLike, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as float64, all entries positive; one number, or an array of that shape."""
    array = as_float64(value, name)
    if array.ndim and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}: it has to be {shape} or one number")
    if array.min() <= 0:
        raise ValueError(f"{name} must be positive; got {array.min()}")
    return array


def _distinct(
    weights: Float[np.ndarray, " n"], supply: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """m: weight in distinct examples' worth, s (1 - exp(-p / s)); p where s is infinite."""
    finite = np.where(np.isfinite(supply), supply, 1.0)
    return np.where(np.isfinite(supply), -finite * np.expm1(-weights / finite), weights)
