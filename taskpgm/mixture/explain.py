"""A mixture, explained: what each task brings, what keeps it out, what the energy is made of."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.clustering import order_rows
from taskpgm.mixture.energy import Energy, as_energy
from taskpgm.mixture.inputs import ArrayLike, as_symmetric, as_vector
from taskpgm.mixture.qp import Problem, duality_gap
from taskpgm.mixture.simplex import check_caps


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found. Arrays are indexed by task.

    Attributes:
      tasks: names.
      representativeness: (S 1)_i / n, how near the task is to all of them; units of S.
      redundancy: (S~ p)_i, how near it is to what the mixture already holds.
      weights: p_i.
      reduced_cost: what the energy rises by per unit of weight moved to the task from the tasks
        between their bounds: > 0 for a task at zero (how far its score is from entering), < 0 for
        one held at its cap, 0 in between.
      interval: lower and upper end of the weight over resamples, [2, n], or None.
      kept: share of resamples in which the weight is not zero, [n], or None.
      energy, unary_term, pairwise_term: E(p) = unary_term + pairwise_term.
      gap: E(p) - E* is at most this.
      effective_tasks: e^H(p), between 1 and n.
      order: rows by hierarchical clustering of S, so that families stand together.
    """

    tasks: tuple[str, ...]
    representativeness: Float[np.ndarray, "n"]
    redundancy: Float[np.ndarray, "n"]
    weights: Float[np.ndarray, "n"]
    reduced_cost: Float[np.ndarray, "n"]
    interval: Float[np.ndarray, "2 n"] | None
    kept: Float[np.ndarray, "n"] | None
    energy: float
    unary_term: float
    pairwise_term: float
    gap: float
    effective_tasks: float
    order: Int[np.ndarray, "n"]

    def table(self) -> list[dict]:
        """One plain dict a task, in the order of the tasks, ready for JSON."""
        columns = {
            "representativeness": self.representativeness,
            "redundancy": self.redundancy,
            "weight": self.weights,
            "reduced_cost": self.reduced_cost,
        }
        if self.interval is not None:
            columns |= {"weight_low": self.interval[0], "weight_high": self.interval[1]}
        if self.kept is not None:
            columns["kept"] = self.kept
        return [
            {"task": task} | {name: float(column[i]) for name, column in columns.items()}
            for i, task in enumerate(self.tasks)
        ]


def effective_tasks(weights: Annotated[ArrayLike, "*b n"]) -> Float[np.ndarray, "*b"] | float:
    """e^H(p), the number of equally weighted tasks with the same entropy; between 1 and n.

    >>> round(float(effective_tasks([0.5, 0.5, 0.0])), 6)
    2.0
    """
    p = np.asarray(weights, np.float64)
    return np.exp(-np.sum(p * np.log(np.where(p > 0, p, 1.0)), -1))


def explain(
    affinity: Annotated[ArrayLike, "n n"],
    energy: Energy,
    weights: Annotated[ArrayLike, "n"],
    *,
    cap: Annotated[ArrayLike, "n"] | None = None,
    tasks: Sequence[str] | None = None,
    resampled: Annotated[ArrayLike, "b n"] | None = None,
    level: float = 0.95,
) -> Explanation:
    """Everything section 11 of the method asks of a mixture, as data.

    Args:
      affinity: S, [n, n].
      energy: the energy that was minimised.
      weights: the mixture, from whatever method.
      cap: the caps it was found under, if any.
      tasks: names; "0", "1", ... where None.
      resampled: weights of bootstrap resamples, for intervals at `level`.
    Raises:
      ValueError: sizes that do not agree, NaN or infinity.
    """
    s = as_symmetric(affinity, "affinity")
    n = len(s)
    energy = as_energy(energy)
    reward, matrix = np.asarray(energy.unary), np.asarray(energy.pairwise)
    if reward.shape != (n,):
        raise ValueError(f"the energy has shape {reward.shape} where there are {n} tasks")
    p = as_vector(weights, "weights", n)
    names = tuple(str(i) for i in range(n)) if tasks is None else tuple(tasks)
    if len(names) != n:
        raise ValueError(f"{len(names)} task names where there are {n} tasks")
    limit = np.ones(n) if cap is None else np.minimum(np.broadcast_to(cap, (n,)), 1.0)
    check_caps(limit)
    interval = kept = None
    if resampled is not None:
        draws = as_vector(resampled, "resampled", n)
        interval = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        kept = (draws > 0).mean(0)
    gradient = matrix @ p - reward
    unary, pairwise = (float(t) for t in energy.terms(p))
    return Explanation(
        tasks=names,
        representativeness=s.sum(1) / n,
        redundancy=matrix @ p,
        weights=p,
        reduced_cost=gradient - _price(gradient, p, limit),
        interval=interval,
        kept=kept,
        energy=unary + pairwise,
        unary_term=unary,
        pairwise_term=pairwise,
        gap=duality_gap(Problem(reward, matrix, np.zeros(n), limit), gradient, p),
        effective_tasks=float(effective_tasks(p)),
        order=order_rows(s),
    )


def _price(
    gradient: Float[np.ndarray, "n"], p: Float[np.ndarray, "n"], limit: Float[np.ndarray, "n"]
) -> float:
    """The common gradient of the tasks between their bounds: minus the multiplier of sum p = 1."""
    free = (p > 1e-12) & (p < limit - 1e-12)
    if free.any():
        return float(np.sum(gradient[free] * p[free]) / p[free].sum())
    # A vertex: any number between the best task outside and the worst one inside will do.
    return float(gradient[p > 1e-12].max())
