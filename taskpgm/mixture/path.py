"""Every mixture of the unary/pairwise ablation at once: the ratio path, with all its kinks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from taskpgm.mixture.certificate import duality_gap
from taskpgm.mixture.critical_line import Line, advance, point, start_line
from taskpgm.mixture.energy import Energy, make_positive_definite
from taskpgm.mixture.faces import Problem, make_problem
from taskpgm.mixture.floats import in_float64, read_array, read_symmetric
from taskpgm.mixture.solve import solve_exact

CHUNK = 64  # kinks between two looks at the tableau's accuracy
SMALLEST = 1e-12  # weights below are the rounding of a task that is on its way in or out
DRIFT = 1e-9  # error of a weight before refinement, above which the tableau is made afresh


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
    def support(self) -> np.ndarray:
        """Tasks with weight at each of `ratios`, int [k]."""
        return (self.weights > 0).sum(1)

    def at(self, ratio: Float[np.ndarray, "*b"] | float) -> Float[np.ndarray, "*b n"]:
        """The exact mixture at any ratio in [0, r_max].

        Raises:
          ValueError: a ratio outside of the path.
        """
        r = read_array(ratio, "ratio")
        last = self.ratios[-1]
        if (r < 0).any() or (r > last).any():
            raise ValueError(f"ratio={ratio} is outside of this path, which spans 0 to {last:g}")
        if len(self.ratios) == 1:
            return np.broadcast_to(self.weights[0], r.shape + self.weights[0].shape).copy()
        right = np.clip(np.searchsorted(self.ratios, r, side="left"), 1, len(self.ratios) - 1)
        low, high = self.ratios[right - 1], self.ratios[right]
        share = ((r - low) / (high - low))[..., None]
        return (1 - share) * self.weights[right - 1] + share * self.weights[right]


@in_float64
def ratio_path(
    affinity: Float[np.ndarray, "n n"],
    *,
    ratio_max: float,
    psd: str = "shift",
    floor: float = 1e-3,
) -> Path:
    """The exact mixture for every ratio from 0 to `ratio_max`, by the critical-line method.

    Args:
      affinity, psd, floor: as in `energy_from_affinity`.
      ratio_max: where the path ends, >= 0.
    Raises:
      ValueError: as `energy_from_affinity`; RuntimeError: never on a finite matrix, but said
        rather than returned should the path fail to reach its end.
    """
    end = read_array(ratio_max, "ratio_max")
    if end.ndim or end < 0:
        raise ValueError(f"ratio_max={ratio_max} has to be one number >= 0")
    s = read_symmetric(affinity, "affinity")
    if s.ndim != 2:
        raise ValueError(f"affinity has shape {s.shape}: a path is of one matrix")
    means = s.sum(1) / len(s)
    pairwise = make_positive_definite(s, psd, floor)
    start = solve_exact(Energy(np.zeros_like(means), pairwise)).weights
    problem, line = _begin(means, pairwise, start)
    ratios, points = [0.0], [start]
    while float(line.t) < end:
        line, found, at, weights, drift = _follow(problem, line, means, end)
        found = int(found)
        if not found:
            raise RuntimeError(f"the path stopped at ratio {float(line.t):g}: report this matrix")
        ratios.extend(np.asarray(at)[:found].tolist())
        points.append(np.asarray(weights)[:found])
        if not drift < DRIFT:
            line = _renew(pairwise, line)
    weights = np.vstack(points)
    energy, gap = _certify(means, pairwise, np.array(ratios), weights)
    return Path(np.array(ratios), weights, np.asarray(energy), np.asarray(gap))


@jax.jit
def _begin(means, pairwise, start):
    # A weight that is zero at r = 0 is held there; if it is about to enter, the first step sees it.
    line = start_line(pairwise, jnp.where(start > 0, 0, -1))
    return make_problem(means, pairwise, jnp.full(len(means), 2.0)), line


@jax.jit
def _renew(pairwise, line: Line) -> Line:
    return start_line(pairwise, line.sets)._replace(t=line.t)


@jax.jit
def _follow(problem: Problem, line: Line, means, end):
    """Up to CHUNK kinks further: (line, how many, their ratios, their weights, largest drift)."""
    n = len(means)

    def step(carry):
        line, found, at, weights, drift, k = carry
        new, moved = advance(problem, line, 0 * means, means, end)
        # Steps of rounding size belong to the breakpoint that they leave.
        fresh = moved & (new.t > line.t * (1 + 1e-12) + 1e-14)

        def record():
            x, off = point(problem, new, new.t * means)
            x = jnp.where(x > SMALLEST, x, 0)
            kept = at.at[found].set(new.t), weights.at[found].set(x / x.sum())
            return found + 1, *kept, jnp.maximum(drift, off)

        return new, *jax.lax.cond(fresh, record, lambda: (found, at, weights, drift)), k + 1

    def unfinished(carry):
        line, found, *_, k = carry
        return (line.t < end) & (found < CHUNK) & (k < CHUNK * 8 + 8 * n)

    start = (line, 0, jnp.zeros(CHUNK), jnp.zeros((CHUNK, n)), jnp.zeros(()), 0)
    *out, _ = jax.lax.while_loop(unfinished, step, start)
    return out


@jax.jit
def _certify(means, pairwise, ratios, weights):
    def one(ratio, p):
        gradient = pairwise @ p - ratio * means
        return 0.5 * p @ (gradient - ratio * means), duality_gap(gradient, p, jnp.ones_like(p))

    return jax.vmap(one)(ratios, weights)
