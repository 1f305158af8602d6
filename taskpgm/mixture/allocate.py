"""From proportions to whole numbers of examples."""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.inputs import ArrayLike, as_vector
from taskpgm.mixture.simplex import project_simplex


def allocate(
    weights: Annotated[ArrayLike, "n"],
    budget: float | int,
    sizes: Annotated[ArrayLike, "n"] | None = None,
    max_epochs: float | int = 1.0,
) -> Int[np.ndarray, "n"]:
    """Counts that sum to `budget` exactly, as near to `weights` as whole numbers allow.

    Largest remainder (Hamilton's method), ties to the lower index; never more than
    floor(max_epochs * sizes). Weight above that limit goes to the nearest feasible mixture over the
    tasks that have weight, and to the others only when those are exhausted.

    Args:
      weights: proportions >= 0 with sum 1 to 1e-6, [n].
      budget: examples wanted, >= 0.
      sizes: examples there are of each task, [n]; None for no limit.
      max_epochs: how often an example may be used.
    Returns:
      int64 counts, [n].
    Raises:
      ValueError: weights that are no mixture, or a budget beyond what the limits allow.

    >>> allocate([0.5, 0.5], budget=3)
    array([2, 1])
    >>> allocate([0.8, 0.2], budget=10, sizes=[4, 100])
    array([4, 6])
    """
    p = as_vector(weights, "weights")
    if p.ndim != 1 or (p < -1e-9).any() or abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"weights have to be one mixture: >= 0 with sum 1 (sum {p.sum():.6g})")
    if budget != int(budget) or budget < 0:
        raise ValueError(f"budget={budget} has to be a whole number >= 0")
    budget = int(budget)
    p = np.maximum(p, 0) / np.maximum(p, 0).sum()
    if sizes is None:
        limit = np.full(p.size, budget, np.int64)
    else:
        have = as_vector(sizes, "sizes", p.size)
        if (have < 0).any() or not (np.isfinite(max_epochs) and max_epochs >= 0):
            raise ValueError("sizes and max_epochs have to be >= 0")
        # Rounded first: 0.29 * 100 is 28.999..., and means 29.
        limit = np.minimum(np.floor(np.round(max_epochs * have, 6)), budget).astype(np.int64)
    if limit.sum() < budget:
        raise ValueError(
            f"budget={budget} is more than the {limit.sum()} examples that sizes and "
            f"max_epochs={max_epochs} allow; lower it, or raise max_epochs"
        )
    if budget == 0:
        return np.zeros(p.size, np.int64)
    wanted = _within_limits(p, limit / budget) * budget
    # Rounded to what a float of this size holds for certain, so that ties stay ties: 0.4 and
    # 8.4 - 8 = 0.40000000000000036 are the same remainder, and 3.0000000000000004 has none.
    decimals = int(np.clip(14 - len(str(budget)), 0, 9))
    wanted = np.round(wanted, decimals)
    counts = np.minimum(np.floor(wanted).astype(np.int64), limit)
    while (missing := budget - counts.sum()) != 0:
        remainder = np.round(wanted - counts, decimals)
        remainder = np.where(counts < limit, remainder, -np.inf)
        if missing < 0:
            remainder = np.where(counts > 0, np.round(counts - wanted, decimals), -np.inf)
        order = np.argsort(-remainder, kind="stable")
        chosen = order[np.isfinite(remainder[order])][: abs(missing)]
        counts[chosen] += np.sign(missing)
    return counts


def _within_limits(
    p: Float[np.ndarray, "n"], cap: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """The nearest mixture under the caps with no new task, unless the tasks of p are too small."""
    if (p <= cap).all():
        return p
    chosen = p > 0
    if cap[chosen].sum() >= 1 - 1e-15 * len(p):  # but for rounding
        moved = np.zeros_like(p)
        moved[chosen] = project_simplex(p[chosen], cap[chosen])
        return moved
    rest = 1 - cap[chosen].sum()
    spare = cap[~chosen]
    moved = np.where(chosen, cap, 0)
    if spare.sum() > rest * (1 + 1e-9):
        spare = rest * np.asarray(project_simplex(np.zeros(len(spare)), spare / rest))
    moved[~chosen] = spare
    return moved
