"""The entropic mixture under lower bounds and bounds of families: an interior-point method.

min 1/2 p'Ap - u'p + tau * KL(p || q) over low <= p <= high, sum p = 1, and bounds of family sums.
The divergence is its own barrier against zero; every other bound gets a slack and a multiplier.
Steps are those of a primal-dual method from an infeasible start, scaled by sqrt p so that vanishing
weights do no harm. Source: Nocedal and Wright, Numerical Optimization, section 19.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from taskpgm.mixture.qp.problem import cholesky, potrs

ROUNDS = 200
SHRINK = 0.3  # of temperature and of complementarity, per round
REACH = 0.99  # of the way to the nearest bound that a step may go
TINY = 1e-8  # weight that may shrink as fast as it likes
SMALLEST = 1e-300  # weight that has a logarithm
HALVINGS = 200  # of a bisection in log space: to the last digit

Vector = Float[np.ndarray, "n"]


class BoundArrays(NamedTuple):
    """Bounds as `bounds.as_arrays` has them: of n weights, then of m family sums."""

    low: Float[np.ndarray, "v"]
    high: Float[np.ndarray, "v"]
    family: Int[np.ndarray, "f"]

    @property
    def size(self) -> int:
        """n."""
        return len(self.low) - (int(self.family.max()) + 1 if len(self.family) else 0)

    @property
    def only_caps(self) -> bool:
        """Whether nothing but upper bounds of tasks can bind."""
        return not len(self.family) and not (self.low > 0).any()

    def meets(self, p: Vector) -> bool:
        """Whether p, which keeps its caps, keeps all bounds but for rounding."""
        values = np.append(p, self.sums(p))
        return bool((values >= self.low - 1e-14).all() and (values <= self.high + 1e-14).all())

    def sums(self, p: Vector) -> Float[np.ndarray, "m"]:
        """The family sums."""
        if not len(self.family):
            return np.zeros(0)
        return np.bincount(self.family, p, len(self.low) - len(p))


def interior(
    unary: Vector,
    pairwise: Float[np.ndarray, "n n"],
    log_q: Vector,
    live: Bool[np.ndarray, "n"],
    tau: float,
    limits: BoundArrays,
) -> Vector:
    """The minimiser, within rounding of the bounds that hold."""
    n = len(unary)
    low, high = limits.low, limits.high
    fixed = np.where(live & (low[:n] < high[:n]), 0.0, low[:n])
    some = np.flatnonzero(live & (low[:n] < high[:n]))
    if not len(some):
        return fixed
    a, u = pairwise[np.ix_(some, some)], (unary - pairwise @ fixed)[some]
    rows = np.zeros((len(low) - n, n))
    if len(rows):
        rows[limits.family, np.arange(n)] = 1.0
    inside, spent = rows[:, some], rows @ fixed
    least, most = low[n:] - spent, high[n:] - spent
    even = (high[n:] - low[n:] < 1e-14) & (inside.sum(1) > 0)
    # Equations and inequalities: e x = total and g x >= bound.
    e = np.vstack([np.ones((1, len(some))), inside[even]])
    total = np.append(1 - fixed.sum(), most[even])
    one = np.eye(len(some))
    below, above = low[some] > 0, high[some] < 1
    lower, upper = np.isfinite(least) & ~even, np.isfinite(most) & ~even
    g = np.vstack([one[below], -one[above], inside[lower], -inside[upper]])
    bound = np.concatenate([low[some][below], -high[some][above], least[lower], -most[upper]])

    x = np.exp(log_q[some] - log_q[some].max())
    x = np.maximum(x / x.sum() * total[0], 1e-30)
    hottest = max(float(a.diagonal().max()), float(np.ptp(u)), tau)
    slack = np.maximum(g @ x - bound, 0.1 / n)
    heat, aim = hottest, 0.1 * hottest / n
    dual, nu = aim / slack, np.zeros(len(e))
    for _ in range(ROUNDS):
        heat, aim = max(heat * SHRINK, tau), max(aim * SHRINK, 1e-17 * hottest)
        slope = a @ x - u + heat * (np.log(x) - log_q[some]) + e.T @ nu - g.T @ dual
        short, off = total - e @ x, g @ x - bound - slack
        # Newton's equations, scaled by 1 / sqrt of the diagonal.
        weight = dual / slack
        root = np.sqrt(x)
        matrix = root[:, None] * (a + (g.T * weight) @ g) * root + heat * np.eye(len(x))
        factor = cholesky(matrix)
        if factor is None:
            break
        right = -slope + g.T @ ((aim - dual * slack - dual * off) / slack)
        solved = potrs(factor, np.column_stack([root * right, (root * e).T]), lower=0)[0]
        y, along = root * solved[:, 0], root[:, None] * solved[:, 1:]
        d_nu = np.linalg.lstsq(e @ along, e @ y - short, rcond=1e-14)[0]
        dx = y - along @ d_nu
        d_slack = g @ dx + off
        d_dual = (aim - dual * slack - dual * d_slack) / slack
        t = 1.0
        # A weight that vanishes holds nobody up: what it takes from the sum, the next round mends.
        dx = np.where(x < TINY, np.maximum(dx, -REACH * x), dx)
        for value, change in ((x, dx), (slack, d_slack), (dual, d_dual)):
            falls = change < 0
            t = float(np.min(-REACH * value[falls] / change[falls], initial=t))
        x, nu = np.maximum(x + t * dx, SMALLEST), nu + t * d_nu
        slack, dual = slack + t * d_slack, dual + t * d_dual
        small = np.abs(slope * x).sum() <= 1e-15 * hottest and np.abs(short).max() < 1e-15
        if t > 0.9 and heat == tau and small and (slack * dual).sum() <= 1e-14 * hottest:
            break
    p = fixed
    p[some] = x
    return _feasible(p, some, limits)


def _feasible(p: Vector, some: Int[np.ndarray, "k"], limits: BoundArrays) -> Vector:
    """`p` without what rounding has left over of bounds and sum."""
    n = len(p)
    p = np.clip(p, limits.low[:n], limits.high[:n])
    free = np.zeros(n)
    free[some] = p[some]
    if len(limits.family):
        sums, mine = limits.sums(p), limits.sums(free)
        wanted = np.clip(sums, limits.low[n:], limits.high[n:])
        p = p + (free * ((wanted - sums) / np.maximum(mine, 1e-300))[limits.family])
        roomy = (wanted > limits.low[n:]) & (wanted < limits.high[n:])
        free = np.where(roomy[limits.family], free, 0.0) if roomy.any() else free
    return p + free * ((1 - p.sum()) / max(float(free.sum()), 1e-300))


def closest(log_a: Vector, limits: BoundArrays) -> Vector:
    """The mixture within `limits` that minimises KL(p || a), a = exp(log_a), not normalised.

    s a clipped to the bounds of the tasks; s is that of the family's bound where that binds, and
    else one for all.
    """
    n, m = len(log_a), len(limits.low) - len(log_a)
    low, high = limits.low[:n], limits.high[:n]
    family = limits.family if m else np.zeros(n, np.int64)
    seen = np.isfinite(log_a)
    log_a = np.where(seen, log_a - log_a[seen].max(), -np.inf)
    widest = 800.0 - float(log_a[seen].min())

    def weights(log_s: Float[np.ndarray, "g"]) -> Vector:
        with np.errstate(over="ignore"):
            return np.clip(np.exp(np.minimum(log_s[family] + log_a, 700.0)), low, high)

    def level(reaches: Float[np.ndarray, "g"]) -> Float[np.ndarray, "g"]:
        """log s at which each family's sum reaches a value."""
        down, up = np.full(len(reaches), -800.0), np.full(len(reaches), widest)
        for _ in range(HALVINGS):
            middle = 0.5 * (down + up)
            under = np.bincount(family, weights(middle), len(reaches)) < reaches
            down, up = np.where(under, middle, down), np.where(under, up, middle)
        return up

    if not m:
        return weights(level(np.ones(1)))
    least = np.where(np.isfinite(limits.low[n:]), level(limits.low[n:]), -800.0)
    most = np.where(np.isfinite(limits.high[n:]), level(limits.high[n:]), widest)
    most = np.maximum(least, most)
    down, up = -800.0, widest
    for _ in range(HALVINGS):
        middle = 0.5 * (down + up)
        if weights(np.clip(np.full(m, middle), least, most)).sum() < 1:
            down = middle
        else:
            up = middle
    return weights(np.clip(np.full(m, up), least, most))
