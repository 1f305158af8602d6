"""A mixture, explained: what each task brings, what keeps it out, what the energy is made of."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.bounds import Bounds, as_arrays
from taskpgm.mixture.clustering import order_rows
from taskpgm.mixture.energy import Energy, as_energy
from taskpgm.mixture.inputs import ArrayLike, as_symmetric, as_vector
from taskpgm.mixture.qp import Problem, duality_gap
from taskpgm.mixture.solve import as_cap

AT_BOUND = 1e-12  # a weight or a family's sum this near a bound is held there


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found. Arrays are indexed by task.

    Attributes:
      tasks: names.
      representativeness: (S 1)_i / n, how near the task is to all of them; units of S.
      redundancy: (S~ p)_i, how near it is to what the mixture already holds.
      weights: p_i.
      reduced_cost: what the energy rises by per unit of weight moved to the task from the tasks
        between their bounds: > 0 for a task at zero or its least weight (how far its score is from
        entering), < 0 for one held at its cap, 0 in between. In a family that is held at a bound,
        from the tasks of that family.
      family_cost: the same per unit of weight moved to a family: > 0 where it is held at its least
        sum, < 0 at its largest, [m]; None without families in the bounds.
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
    family_cost: Float[np.ndarray, "m"] | None
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
    bounds: Bounds | None = None,
    tasks: Sequence[str] | None = None,
    resampled: Annotated[ArrayLike, "b n"] | None = None,
    level: float = 0.95,
) -> Explanation:
    """Everything section 11 of the method asks of a mixture, as data.

    Args:
      affinity: S, [n, n].
      energy: the energy that was minimised.
      weights: the mixture, from whatever method.
      cap, bounds: what it was found under, if anything.
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
    problem = Problem(reward, matrix, *as_arrays(bounds, n, as_cap(cap, n)))
    interval = kept = None
    if resampled is not None:
        draws = as_vector(resampled, "resampled", n)
        interval = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        kept = (draws > 0).mean(0)
    gradient = matrix @ p - reward
    unary, pairwise = (float(t) for t in energy.terms(p))
    price, family_cost = _prices(problem, gradient, p)
    return Explanation(
        tasks=names,
        representativeness=s.sum(1) / n,
        redundancy=matrix @ p,
        weights=p,
        reduced_cost=gradient - price,
        interval=interval,
        kept=kept,
        family_cost=family_cost,
        energy=unary + pairwise,
        unary_term=unary,
        pairwise_term=pairwise,
        gap=duality_gap(problem, gradient, p),
        effective_tasks=float(effective_tasks(p)),
        order=order_rows(s),
    )


def _prices(
    problem: Problem, gradient: Float[np.ndarray, "n"], p: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m"] | None]:
    """What weight costs where each task stands, and what each family's sum costs beyond that.

    A family that is held at a bound has a price of its own; all other tasks share one.
    """
    n = len(p)
    low, high = problem.low[:n], problem.high[:n]
    if not len(problem.family):
        return np.full(n, _price(gradient, p, low, high)), None
    sums, least, most = problem.rows @ p, problem.low[n:], problem.high[n:]
    at_least, at_most = sums <= least + AT_BOUND * n, sums >= most - AT_BOUND * n
    held, prices = at_least | at_most, np.full(len(sums), np.nan)
    rest = ~held[problem.family]
    for g in np.flatnonzero(held & (np.bincount(problem.family, minlength=len(sums)) > 0)):
        mine = problem.family == g
        prices[g] = _price(gradient[mine], p[mine], low[mine], high[mine])
    if rest.any():
        common = _price(gradient[rest], p[rest], low[rest], high[rest])
    else:  # then the bounds alone fix the sums, and any price between the two sides will do
        from_below = prices[at_least & ~at_most & ~np.isnan(prices)]
        common = float(from_below.min() if len(from_below) else np.nanmax(prices))
    prices = np.where(np.isnan(prices), common, prices)
    return prices[problem.family], prices - common


def _price(
    gradient: Float[np.ndarray, "k"],
    p: Float[np.ndarray, "k"],
    low: Float[np.ndarray, "k"],
    high: Float[np.ndarray, "k"],
) -> float:
    """The common gradient of the tasks between their bounds: minus the multiplier of their sum."""
    free = (p > low + AT_BOUND) & (p < high - AT_BOUND)
    if free.any():
        return float(np.sum(gradient[free] * p[free]) / p[free].sum())
    # A vertex: any number between the best task below its cap and the worst above its least will
    # do.
    above = p > low + AT_BOUND
    return float(gradient[above].max() if above.any() else gradient.min())
