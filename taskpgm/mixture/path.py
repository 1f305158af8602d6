"""Every mixture of the unary/pairwise ablation at once: the ratio path."""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.energy import make_positive_definite, relevance
from taskpgm.mixture.inputs import ArrayLike, as_float64, as_symmetric
from taskpgm.mixture.qp import Problem, solve
from taskpgm.mixture.qp.critical_line import CriticalLine

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
) -> Path:
    """The exact mixture for every ratio from 0 to `ratio_max`, by the critical-line method.

    Args:
      affinity, psd, floor, judged, importance: as in `energy_from_affinity`.
      ratio_max: where the path ends, >= 0.
    Raises:
      ValueError: as `energy_from_affinity`; RuntimeError: never on a finite matrix, but said
        rather than returned should the path fail to reach its end.

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
    problem = Problem(np.zeros(n), pairwise, np.zeros(n), np.ones(n))
    start = solve(problem).weights
    # A weight that is zero at r = 0 is held there; if it is about to enter, the first step sees it.
    line = CriticalLine(problem, np.where(start > 0, 0, -1), unary)
    ratios, points, turns = [0.0], [start], 0
    while line.t < end:
        before = line.t
        line.advance(float(end))
        # Steps of rounding size belong to the breakpoint that they leave.
        if line.t > before * (1 + 1e-12) + 1e-14:
            x = line.weights()
            x = np.where(x > SMALLEST, x, 0)
            ratios.append(line.t)
            points.append(x / x.sum())
            turns = 0
        turns += 1
        if turns > 8 * n + 64:
            raise RuntimeError(f"the path stopped at ratio {line.t:g}: report this matrix")
    weights = np.vstack(points)
    rewards = np.array(ratios)[:, None] * unary
    gradients = weights @ pairwise - rewards
    energy = 0.5 * np.sum(weights * (gradients - rewards), 1)
    gradients -= np.sum(weights * gradients, 1, keepdims=True)
    gap = np.sum(weights * gradients, 1) - gradients.min(1)
    return Path(np.array(ratios), weights, energy, np.maximum(gap, 0.0))
