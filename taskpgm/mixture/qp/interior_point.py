"""A primal-dual interior-point run that says which bounds hold, for problems that are hard.

Mehrotra's predictor-corrector from an infeasible start, with a slack for every bound. Robust for
any positive semi-definite A, vertices and degenerate faces included. Source: Nocedal and Wright,
Numerical Optimization, section 16.6.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from taskpgm.mixture.qp.problem import Problem, cholesky, potrs

ROUNDS = 100
SIGN = np.array([[1.0], [-1.0]])  # of the distance from the lower bounds, and from the upper ones

Bounds = Float[np.ndarray, "2 v"]


def interior_point(problem: Problem) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "v"]]:
    """A nearly optimal point, and the state of every weight and family sum there."""
    n = len(problem.unary)
    fixed = problem.low >= problem.high
    live = ~fixed[:n]
    bound = np.stack([problem.low, problem.high])
    used = np.isfinite(bound) & ~fixed
    used[1, :n] &= problem.high[:n] < 1  # a weight of 1 is never held from above
    system = _System(problem, fixed, np.where(used, bound, 0), used)

    x = np.where(live, 1 / n, problem.low[:n])
    slack = np.where(used, np.maximum(system.distance(x), 0.1 / n), 1.0)
    dual, nu = 1.0 * used, np.zeros(len(system.total))
    for _ in range(ROUNDS):
        if system.factorise(x, slack, dual, nu) < 1e-15 or system.factor is None:
            break
        _, d_slack, d_dual, _, reach = system.newton(-slack * dual)
        reach = min(reach, 1.0)
        mean = float((slack * dual)[used].mean())
        after = float(((slack + reach * d_slack) * (dual + reach * d_dual))[used].mean())
        aim = mean * (max(after, 0.0) / mean) ** 3
        dx, d_slack, d_dual, d_nu, reach = system.newton(aim - slack * dual - d_slack * d_dual)
        t = 0.995 * reach
        if not np.isfinite(dx).all() or t < 1e-12:
            break
        x, slack, dual, nu = x + t * dx, slack + t * d_slack, dual + t * d_dual, nu + t * d_nu
    held = (slack < dual) & used
    return x, np.where(held[0], -1, np.where(held[1], 1, 0))


class _System:
    """Newton's equations for the optimality conditions with slack * dual set to a product."""

    def __init__(
        self, problem: Problem, fixed: Bool[np.ndarray, "v"], bound: Bounds, used: np.ndarray
    ) -> None:
        n = len(problem.unary)
        self.problem, self.live, self.bound, self.used = problem, ~fixed[:n], bound, used
        # Equations: the sum of all weights, and the sums of families with one allowed value.
        self.rows = np.vstack([np.ones((1, n)), problem.rows[fixed[n:]]])
        self.total = np.append(1.0, problem.low[n:][fixed[n:]])
        a, u = problem.centred, problem.unary - problem.pairwise.mean(1)
        size = max(float(a.diagonal().max()), float(np.ptp(u)), 1e-150)
        self.a, self.u = a / size, (u - u.mean()) / size

    def distance(self, x: Float[np.ndarray, "n"]) -> Bounds:
        """From each bound, inwards; 0 where there is none."""
        return np.where(self.used, SIGN * (self.problem.values(x) - self.bound), 0)

    def transposed(self, values: Float[np.ndarray, "v"]) -> Float[np.ndarray, "n"]:
        n = len(self.u)
        return values[:n] + self.problem.rows.T @ values[n:]

    def factorise(
        self, x: Float[np.ndarray, "n"], slack: Bounds, dual: Bounds, nu: Float[np.ndarray, "e"]
    ) -> float:
        """Prepares `newton` at this point; returns how far it is from satisfying all conditions."""
        n, rows, live = len(x), self.problem.rows, self.live
        self.slack, self.dual = slack, dual
        self.slope = self.a @ x - self.u + nu @ self.rows - self.transposed((SIGN * dual).sum(0))
        self.off = np.where(self.used, self.distance(x) - slack, 0)
        self.short = self.total - self.rows @ x
        weight = (dual / slack).sum(0)
        # The last term keeps a singular matrix factorisable; it bends the step, not the conditions.
        matrix = self.a + np.diag(weight[:n] + 1e-13) + rows.T @ (weight[n:, None] * rows)
        self.factor = cholesky(np.where(live[:, None] & live, matrix, np.eye(n)))
        if self.factor is not None:
            self.along = potrs(self.factor, (self.rows * live).T, lower=0)[0]
            self.gram = self.rows @ self.along
        complementarity = (slack * dual)[self.used].mean() if self.used.any() else 0
        infeasible = max(np.abs(self.off).max(initial=0), np.abs(self.short).max())
        return max(complementarity, infeasible, np.abs(self.slope[live]).max(initial=0))

    def newton(self, product: Bounds) -> tuple[np.ndarray, Bounds, Bounds, np.ndarray, float]:
        """The step that adds `product` to slack * dual, and how far it can go (1.005 at most)."""
        pull = self.transposed((SIGN * (product - self.dual * self.off) / self.slack).sum(0))
        y = potrs(self.factor, np.where(self.live, pull - self.slope, 0), lower=0)[0]
        # Least squares: where every family has one allowed sum, the total is no further equation.
        d_nu = np.linalg.lstsq(self.gram, self.rows @ y - self.short, rcond=1e-12)[0]
        dx = y - self.along @ d_nu
        d_slack = np.where(self.used, SIGN * self.problem.values(dx) + self.off, 0)
        d_dual = np.where(self.used, (product - self.dual * d_slack) / self.slack, 0)
        reach = 1 / 0.995
        for value, change in ((self.slack, d_slack), (self.dual, d_dual)):
            falls = self.used & (change < 0)
            reach = float(np.min(-value[falls] / change[falls], initial=reach))
        return dx, d_slack, d_dual, d_nu, reach
