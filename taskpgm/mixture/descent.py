"""Newton's method for a smooth convex function of a mixture, exact and certified.

Every step minimises a quadratic model over all allowed mixtures exactly (`qp`), and is shortened
until the function falls. The certificate is the one of Frank and Wolfe (1956): the function lies
above its tangent, so f(p) - f* <= max over allowed v of grad f(p)'(p - v).
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.bounds import Bounds, as_arrays
from taskpgm.mixture.inputs import ArrayLike
from taskpgm.mixture.qp import Problem, duality_gap, solve
from taskpgm.mixture.solve import as_cap

STEPS = 100  # a dozen is usual
TARGET = 1e-9  # gap, relative to max(1, |f|), at which a minimum counts as found
SHORTEST = 40  # halvings of a step
SMOOTH = 1e-3  # of the prior, mixed into a mixture before its divergence is taken

Point = Float[np.ndarray, " n"]


class Quadratic(NamedTuple):
    """A function near a point: its value, slope and curvature there."""

    value: float
    slope: Float[np.ndarray, " n"]
    curvature: Float[np.ndarray, "n n"]


class Limits(NamedTuple):
    """The allowed mixtures, as `bounds.as_arrays` has them."""

    low: Float[np.ndarray, " v"]
    high: Float[np.ndarray, " v"]
    family: Int[np.ndarray, " f"]


def allowed(cap: Annotated[ArrayLike, "n"] | None, bounds: Bounds | None, n: int) -> Limits:
    """What caps and bounds allow together.

    Raises:
      ValueError: of another size, or no mixture meets them.
    """
    return Limits(*as_arrays(bounds, n, as_cap(cap, n)))


class Pull:
    """strength * KL(p' || prior) as a function of p, where p' is p with some of the prior in it.

    Of p itself the slope would be infinite where a weight is zero, and bounds may hold it there.
    """

    def __init__(self, prior: Point, strength: float):
        self.prior, self.strength = prior, strength
        self.live = prior > 0

    def _mixed(self, p: Float[np.ndarray, "*c n"]) -> Float[np.ndarray, "*c n"]:
        return np.where(self.live, (p + SMOOTH * self.prior) / (1 + SMOOTH), 1.0)

    def _logs(self, mixed: Float[np.ndarray, "*c n"]) -> Float[np.ndarray, "*c n"]:
        return np.log(mixed / np.where(self.live, self.prior, 1.0))

    def value(self, p: Float[np.ndarray, "*c n"]) -> Float[np.ndarray, "*c"]:
        mixed = self._mixed(p)
        return np.asarray(self.strength * np.sum(mixed * self._logs(mixed), -1))

    def added(self, to: Quadratic, p: Point) -> Quadratic:
        mixed, strength = self._mixed(p), self.strength / (1 + SMOOTH)
        slope = np.where(self.live, strength * (1.0 + self._logs(mixed)), 0.0)
        bent = np.where(self.live, strength / (1 + SMOOTH) / mixed, 0.0)
        value = to.value + float(self.value(p))
        return Quadratic(value, to.slope + slope, to.curvature + np.diag(bent))


def descend(
    near: Callable[[Point], Quadratic],
    values: Callable[[Float[np.ndarray, "m n"]], Float[np.ndarray, " m"]],
    limits: Limits,
    pull: Pull | None = None,
) -> tuple[Point, float, float]:
    """The minimiser, the least value and the gap of a convex function, and of a pull beside it.

    Args:
      near: the function at a point; its curvature is positive semi-definite.
      values: the function at many points.
      limits: of `allowed`.
      pull: added to the function.
    """
    low, high, family = limits
    n = len(high) - (int(family.max()) + 1 if len(family) else 0)
    start = np.full(n, 1.0 / n)
    if pull is not None:
        start = pull.prior
        high = np.append(np.where(pull.live, high[:n], 0.0), high[n:])
    p, _, _, state = solve(Problem(start, np.eye(n), low, high, family))
    best, least_gap, least = p, np.inf, np.inf
    for _ in range(STEPS):
        model = near(p) if pull is None else pull.added(near(p), p)
        problem = Problem(model.curvature @ p - model.slope, model.curvature, low, high, family)
        gap = duality_gap(problem, model.slope, p)
        # Near the optimum values differ by rounding alone, and the gap goes on falling.
        stalled = gap >= least_gap
        if not stalled:
            best, least_gap, least = p, gap, model.value
        if gap <= TARGET * max(1.0, abs(model.value)):
            break
        found = solve(problem, state)
        state, step = found.state, found.weights - p
        tried = p + 0.5 ** np.arange(SHORTEST)[:, None] * step
        each = values(tried) + (0.0 if pull is None else pull.value(tried))
        rounding = 8 * np.finfo(np.float64).eps * abs(model.value)
        if each.min() >= model.value - rounding and stalled:
            break
        p = tried[np.argmax(each <= each.min() + rounding)]
    return best, least, least_gap
