"""Every mixture of the unary/pairwise ablation at once: the ratio path."""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.bounds import Bounds, as_arrays
from taskpgm.mixture.energy import make_positive_definite, relevance
from taskpgm.mixture.inputs import ArrayLike, as_float64, as_symmetric
from taskpgm.mixture.qp import Problem, duality_gap, solve
from taskpgm.mixture.qp.critical_line import CriticalLine
from taskpgm.mixture.qp.walk import walk
from taskpgm.mixture.solve import as_cap

SMALLEST = 1e-12  # weights below are the rounding of a task that is on its way in or out


@dataclasses.dataclass(frozen=True)
class Path:
    """The exact mixture as a function of the ratio r: linear between `ratios`.

    Attributes:
      ratios: 0, every breakpoint in increasing order, and r_max, [k].
      weights: the exact mixture at each, [k, n].
      energy: E at each, [k].
      gap: certificate of each, [k].
    """

    ratios: Float[np.ndarray, "k"]
    weights: Float[np.ndarray, "k n"]
    energy: Float[np.ndarray, "k"]
    gap: Float[np.ndarray, "k"]

    @property
    def support(self) -> Int[np.ndarray, "k"]:
        """Tasks with weight at each of `ratios`."""
        return (self.weights > 0).sum(1)

    def at(self, ratio: Annotated[ArrayLike, "*b"]) -> Float[np.ndarray, "*b n"]:
        """The exact mixture at any ratio in [0, r_max].

        Raises:
          ValueError: a ratio outside of the path.
        """
        r = as_float64(ratio, "ratio")
        last = self.ratios[-1]
        if (r < 0).any() or (r > last).any():
            raise ValueError(f"ratio={ratio} is outside of this path, which spans 0 to {last:g}")
        if len(self.ratios) == 1:
            return np.broadcast_to(self.weights[0], r.shape + self.weights[0].shape).copy()
        right = np.clip(np.searchsorted(self.ratios, r, side="left"), 1, len(self.ratios) - 1)
        low, high = self.ratios[right - 1], self.ratios[right]
        share = ((r - low) / (high - low))[..., None]
        return (1 - share) * self.weights[right - 1] + share * self.weights[right]


def ratio_path(
    affinity: Annotated[ArrayLike, "n n"],
    *,
    ratio_max: float | int,
    psd: str = "simplex",
    floor: float | int = 1e-3,
    judged: Annotated[ArrayLike, "n m"] | None = None,
    importance: Annotated[ArrayLike, "m"] | None = None,
    cap: Annotated[ArrayLike, "n"] | None = None,
    bounds: Bounds | None = None,
) -> Path:
    """The exact mixture for every ratio from 0 to `ratio_max`, by the critical-line method.

    Where families have bounds, from one exact solution to the next (`qp.walk`): the same points, at
    a solve for each breakpoint.

    Args:
      affinity, psd, floor, judged, importance: as in `energy_from_affinity`.
      ratio_max: where the path ends, >= 0.
      cap, bounds: as in `solve_exact`.
    Raises:
      ValueError: as `energy_from_affinity` and `solve_exact`; RuntimeError: never on a finite
        matrix, but said rather than returned should the path fail to reach its end.

    >>> path = ratio_path([[1.0, 0.0], [0.0, 0.0]], ratio_max=4.0, psd="shift")
    >>> path.ratios.round(3)
    array([0.   , 2.002, 4.   ])
    >>> path.at(1.0)
    array([0.5, 0.5])
    """
    end = as_float64(ratio_max, "ratio_max")
    if end.ndim or end < 0:
        raise ValueError(f"ratio_max={ratio_max} has to be one number >= 0")
    s = as_symmetric(affinity, "affinity")
    if s.ndim != 2:
        raise ValueError(f"affinity has shape {s.shape}: a path is of one matrix")
    n = len(s)
    unary = np.asarray(relevance(s, judged, importance))
    pairwise = np.asarray(make_positive_definite(s, psd, floor))
    low, high, family = as_arrays(bounds, n, as_cap(cap, n))
    problem = Problem(np.zeros(n), pairwise, low, high, family)
    if len(family):
        found = walk(problem, unary, float(end))
    else:
        found = _critical_line(problem, unary, float(end))
    ratios, weights = np.array([r for r, _ in found]), np.vstack([p for _, p in found])
    rewards = ratios[:, None] * unary
    gradients = weights @ pairwise - rewards
    energy = 0.5 * np.sum(weights * (gradients - rewards), 1)
    gap = [duality_gap(problem, g, p) for g, p in zip(gradients, weights, strict=True)]
    return Path(ratios, weights, energy, np.array(gap))


def _critical_line(
    problem: Problem, unary: Float[np.ndarray, "n"], end: float
) -> list[tuple[float, Float[np.ndarray, "n"]]]:
    """Breakpoints and their mixtures, where only tasks have bounds."""
    n = len(unary)
    first = solve(problem)
    start, low, high = first.weights, problem.low[:n], problem.high[:n]
    # A weight at its bound at r = 0 is held there; if it is about to leave, the first step sees it.
    state = np.where(start > low, np.where((start < high) | (high >= 1), 0, 1), -1)
    if (state != 0).all():  # the sum needs one that is free
        state[np.argmax(np.minimum(start - low, high - start))] = 0
    line = CriticalLine(problem, state, unary)
    found, turns = [(0.0, start)], 0
    while line.t < end:
        before = line.t
        line.advance(end)
        # Steps of rounding size belong to the breakpoint that they leave.
        if line.t > before * (1 + 1e-12) + 1e-14:
            x = line.weights()
            x = np.clip(np.where(x > SMALLEST, x, 0), low, high)
            free = (line.state == 0) & (x > 0)
            found.append((line.t, np.where(free, x + (1 - x.sum()) / max(free.sum(), 1), x)))
            turns = 0
        turns += 1
        if turns > 8 * n + 64:
            raise RuntimeError(f"the path stopped at ratio {line.t:g}: report this matrix")
    return found
