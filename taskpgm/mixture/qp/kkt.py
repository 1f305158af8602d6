"""The linear algebra of one face: some weights and family sums held at bounds, the others free."""

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.qp.problem import Problem, cholesky, potrs


class Face:
    """min 1/2 p'Ap - u'p + 1/2 (p - centre)' diag(reg) (p - centre) with entries held by `state`.

    Factors the free block once; `minimise` can be called again, each time with another starting
    point (a step of iterative refinement) or another centre.

    Attributes:
      factor: of the free block; None where that is not positive definite.
    """

    def __init__(
        self,
        problem: Problem,
        state: Int[np.ndarray, "v"],
        reg: Float[np.ndarray, "n"] | None = None,
    ) -> None:
        n = len(problem.unary)
        self.problem, self.reg = problem, reg
        self.free = np.flatnonzero(state[:n] == 0)
        self.at = np.where(state > 0, problem.high, problem.low)  # where held entries are
        self.held = np.flatnonzero(state[n:])  # families
        if len(self.free) == n and reg is None:
            self.factor = problem.factor
        else:
            block = problem.centred.take(self.free, 0).take(self.free, 1)
            self.factor = cholesky(block if reg is None else block + np.diag(reg[self.free]))
        if self.factor is not None:
            ones = np.ones((1, len(self.free)))
            self.rows = np.vstack([ones, problem.rows[self.held][:, self.free]])
            self.along = potrs(self.factor, self.rows.T, lower=0)[0]
            self.gram = self.rows @ self.along

    def minimise(
        self, near: Float[np.ndarray, "n"], centre: Float[np.ndarray, "n"] | None = None
    ) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "v"]]:
        """The minimiser on the face, and its multipliers.

        What is solved for is the difference from `near`: the nearer, the smaller the rounding.
        Multipliers are >= 0 for entries at their lower bound and <= 0 at the upper one if the point
        is optimal, and 0 for free ones.
        """
        problem, free, n = self.problem, self.free, len(near)
        x = self.at[:n].copy()
        x[free] = near[free]
        x[free] += (1 - x.sum()) / len(free)
        centre = near if centre is None else centre

        def slope(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
            gradient = problem.pairwise @ x - problem.unary
            return gradient if self.reg is None else gradient + self.reg * (x - centre)

        residual = slope(x)[free]
        residual -= residual.mean()
        move = -potrs(self.factor, residual, lower=0)[0]
        short = self.rows @ move
        short[1:] -= (self.at[n:] - problem.rows @ x)[self.held] if len(self.held) else 0
        if len(self.gram) == 1:
            price = short / self.gram[0, 0]
        else:  # families whose tasks are all held make it singular
            price = np.linalg.lstsq(self.gram, short, rcond=1e-12)[0]
        x[free] += move - self.along @ price

        multipliers = np.zeros(len(self.at))
        gradient = slope(x)
        if len(self.held):
            multipliers[n + self.held] = -price[1:]
            gradient += problem.rows[self.held].T @ price[1:]
        gradient -= gradient[free].mean()
        gradient[free] = 0
        multipliers[:n] = gradient
        return x, multipliers
