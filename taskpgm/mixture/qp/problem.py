"""The quadratic programme of a mixture, a candidate solution, and the certificate between them.

min 1/2 p'Ap - u'p over {low <= p <= high, sum p = 1}, where sums over families of tasks may have
bounds too. A is positive semi-definite on the subspace 1'x = 0.

Tasks and families are treated alike: `values` of a point are its n weights followed by its m family
sums, and `low`, `high` and every state vector have that length. A state says which bound an entry
is held at: -1 the lower, 0 none, 1 the upper.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import get_lapack_funcs

from taskpgm.mixture.energy import centred

# LAPACK by Cholesky: the factor, a solution from it, the inverse from it.
potrf, potrs, potri = get_lapack_funcs(("potrf", "potrs", "potri"), dtype=np.float64)
TARGET = 1e-10  # gap, relative to max(1, |E|), that a solution has to reach
FEASIBLE = 1e-12  # violation of a bound or of the sum that counts as rounding


class Candidate(NamedTuple):
    """A feasible point, what it is worth, and the bounds that it was found on."""

    weights: Float[np.ndarray, "n"]
    energy: float
    gap: float
    state: Int[np.ndarray, "v"]

    @property
    def solved(self) -> bool:
        """Whether the gap is what is asked of a solution; NaN is not."""
        return bool(self.gap <= TARGET * max(1.0, abs(self.energy)))


@dataclasses.dataclass(frozen=True)
class Problem:
    """One quadratic programme.

    Attributes:
      unary, pairwise: u and A.
      low, high: bounds of the n weights and then of the m family sums; infinite where none.
      family: the family of each task, 0..m-1; empty where there are none (m = 0).
    """

    unary: Float[np.ndarray, "n"]
    pairwise: Float[np.ndarray, "n n"]
    low: Float[np.ndarray, "v"]
    high: Float[np.ndarray, "v"]
    family: Int[np.ndarray, "f"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    @functools.cached_property
    def rows(self) -> Float[np.ndarray, "m n"]:
        """One row a family: 1 for its tasks."""
        count = len(self.low) - len(self.unary)
        if not count:
            return np.zeros((0, len(self.unary)))
        return (self.family == np.arange(count)[:, None]).astype(float)

    @functools.cached_property
    def centred(self) -> Float[np.ndarray, "n n"]:
        """A matrix with the same minimiser that is positive definite everywhere, if A is so on
        the subspace 1'x = 0."""
        return np.asarray(centred(self.pairwise))

    @functools.cached_property
    def factor(self) -> Float[np.ndarray, "n n"] | None:
        """Upper Cholesky factor of `centred`; None where that is not positive definite."""
        return cholesky(self.centred)

    @functools.cached_property
    def off_diagonal(self) -> float:
        """The largest absolute entry of A beside its diagonal."""
        sizes = np.abs(self.pairwise)
        np.fill_diagonal(sizes, 0)
        return float(sizes.max())

    def rounding(self, x: Float[np.ndarray, "n"]) -> float:
        """Multipliers at `x` that are smaller than this are rounding."""
        spread = float(self.unary.max() - self.unary.min())
        diagonal = np.abs(self.pairwise.diagonal()) * np.clip(x, 0, 1)
        return 1e-14 * (float(diagonal.max()) + self.off_diagonal + spread)

    def values(self, weights: Float[np.ndarray, "n"]) -> Float[np.ndarray, "v"]:
        """The weights, followed by the family sums."""
        return np.concatenate([weights, self.rows @ weights]) if len(self.family) else weights

    def with_unary(self, unary: Float[np.ndarray, "n"]) -> "Problem":
        """The same problem with another u; what was derived from A is kept."""
        other = Problem(unary, self.pairwise, self.low, self.high, self.family)
        for name in ("rows", "centred", "factor", "off_diagonal"):
            if name in vars(self):
                vars(other)[name] = vars(self)[name]
        return other


def cholesky(matrix: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"] | None:
    """The upper factor (what is below its diagonal is not read); None: not positive definite."""
    factor, failed = potrf(matrix, lower=0, clean=0)
    return factor if failed == 0 and np.isfinite(factor[-1, -1]) else None


def certify(problem: Problem, x: Float[np.ndarray, "n"], state: Int[np.ndarray, "v"]) -> Candidate:
    """The feasible point at `x`, which is feasible up to rounding, with its certificate.

    gap = max over feasible v of grad E(p)'(p - v); by convexity E(p) - E* <= gap. Source: Frank and
    Wolfe (1956).
    """
    n = len(x)
    low, high = problem.low[:n], problem.high[:n]
    free = state[:n] == 0
    p = np.where(free, x, np.where(state[:n] > 0, high, low))
    p = np.clip(p, low, high)
    # What rounding has left over: of a family at its bound to its own tasks, of the total to tasks
    # of other families.
    roomy = free
    if len(problem.family):
        held = (state[n:] != 0) | (problem.low[n:] >= problem.high[n:])
        target = np.where(state[n:] > 0, problem.high[n:], problem.low[n:])
        short = np.where(held, target, 0) - np.where(held, problem.rows @ p, 0)
        share = short / np.maximum(problem.rows @ free, 1)
        p = np.clip(np.where(free, p + share[problem.family], p), low, high)
        roomy = free & ~held[problem.family]
        roomy = roomy if roomy.any() else free
    if roomy.any():
        p = np.clip(np.where(roomy, p + (1 - p.sum()) / roomy.sum(), p), low, high)
    gradient = problem.pairwise @ p - problem.unary
    energy = 0.5 * float(p @ (gradient - problem.unary))
    gap = duality_gap(problem, gradient, p)
    values = problem.values(p)
    off = max(np.max(problem.low - values), np.max(values - problem.high), abs(p.sum() - 1))
    return Candidate(p, energy, gap if off < FEASIBLE else np.inf, state)


def duality_gap(
    problem: Problem, gradient: Float[np.ndarray, "n"], weights: Float[np.ndarray, "n"]
) -> float:
    """max over feasible v of gradient'(weights - v)."""
    # A constant in the gradient changes nothing; without it, nothing large cancels.
    cost = gradient - gradient @ weights
    return max(float(cost @ weights) - least_cost(problem, cost), 0.0)


def least_cost(problem: Problem, cost: Float[np.ndarray, "n"]) -> float:
    """min of cost'v over the feasible set: a linear programme, solved exactly by greedy.

    Each task starts at its lower bound, each family fills up to its own with its cheapest tasks,
    and what is left of the total goes to the cheapest tasks whose families have room.
    """
    n = len(cost)
    low, high = problem.low[:n], np.minimum(problem.high[:n], 1.0)
    value = cost @ low
    if len(problem.family):
        order = np.lexsort((cost, problem.family))
        family, price = problem.family[order], cost[order]
        room = (high - low)[order]
        # Mass of the family below and at the end of each task's own segment.
        end = np.cumsum(room)
        before = end - room
        first = np.flatnonzero(np.diff(family, prepend=-1))
        begin = problem.rows @ low
        offset = np.zeros(len(begin))
        offset[family[first]] = begin[family[first]] - before[first]
        end, before = end + offset[family], before + offset[family]
        least, most = problem.low[n:][family], problem.high[n:][family]
        forced = np.clip(np.minimum(end, least) - before, 0, room)
        value += price @ forced
        room = np.clip(np.minimum(end, most) - np.maximum(before, least), 0, room)
        left = 1 - low.sum() - forced.sum()
    else:
        price, room, left = cost, high - low, 1 - low.sum()
    order = np.argsort(price)
    price, room = price[order], room[order]
    return float(value + price @ np.clip(left - (np.cumsum(room) - room), 0, room))
