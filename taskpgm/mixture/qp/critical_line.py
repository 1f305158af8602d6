"""Following the exact solution while the unary potential moves: the critical-line method.

Along u(t) = u + t du the minimiser of 1/2 p'Ap - u(t)'p over {low <= p <= high, sum p = 1} is
piecewise linear in t: between breakpoints the state (at the lower bound, free, at the upper one)
does not change. A tableau of the optimality conditions, solved for the free weights, gives point
and direction by one product each, and at a breakpoint one index changes sides by one rank-one
update, O(n^2). A is positive definite on the subspace 1'x = 0.

Where several bounds are met at once, the index of lowest number with a wrong sign is exchanged
until none is left: Murty's rule, which cannot cycle on the positive definite problem that the
directions solve.

Sources: Markowitz (1956); Best (1996) for the parametric active-set view; Murty (1974).
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import get_blas_funcs

from taskpgm.mixture.qp.problem import Problem, cholesky, potri

(ger,) = get_blas_funcs(("ger",), dtype=np.float64)  # a rank-one update
REFRESH = 24  # exchanges between two looks at the accuracy of the tableau
DRIFT = 1e-10  # error of a weight above which the tableau is made afresh


class CriticalLine:
    """A solution that moves with u; families are not supported.

    Attributes:
      problem: its bounds and its matrix; its `unary` is u at t = 0.
      change: du.
      state: -1 at the lower bound, 0 free, 1 at the upper one.
      t: how far along the line.
      table: the tableau of [[A, 1], [1', 0]] solved for the free weights and the multiplier of the
        sum: it takes (u, 1) at free places and weights at held ones to the reverse.
      given, found: what the tableau takes and what it gives, at t = 0 and as a rate; carried from
        exchange to exchange, so that no product with the tableau is needed on the way.
    """

    def __init__(
        self, problem: Problem, state: Int[np.ndarray, "n"], change: Float[np.ndarray, "n"]
    ) -> None:
        self.state = np.asarray(state).copy()
        n = len(self.state)
        self.low, self.high = problem.low[:n], problem.high[:n]
        self.movable, self.capped = self.low < self.high, bool((self.high < 1).any())
        # BLAS hands larger updates to threads, and waiting for those takes longer than the update.
        self.block = max(8000 // (n + 1), 1)
        self.aim(problem, change, renew=True)

    def aim(self, problem: Problem, change: Float[np.ndarray, "n"], renew: bool = False) -> None:
        """Starts at t = 0 of another line over the same matrix and bounds."""
        self.problem, self.change, self.t = problem, change, 0.0
        # `centred` moves u by a constant of the problem.
        self.unary = problem.unary - problem.pairwise.mean(1)
        self.count, self.noise = 0, 1e-12 * float(np.abs(change).max())
        self._refresh(renew)

    def weights(self) -> Float[np.ndarray, "n"]:
        """At t."""
        found = self.found[:-1, 0] + self.t * self.found[:-1, 1]
        return np.where(self.state == 0, found, self.given[:-1, 0])

    def advance(self, end: float) -> None:
        """One exchange if a sign is wrong at t; else on to the next breakpoint, or to `end`."""
        t, state, low = self.t, self.state, self.low
        rate = self.found[:-1, 1]
        value = self.found[:-1, 0] + t * rate
        free = state == 0
        # Distance from the bound ahead, and the rate at which it shrinks: of a free weight from its
        # bounds, of a held one's multiplier from 0. Both in units of their own rounding.
        x = np.where(free, value, self.given[:-1, 0])
        weight_noise = 1e-12 * float(np.abs(rate[free]).max())
        price_noise = 100 * self.problem.rounding(x)
        ahead = np.where(free, x - low, value - self.unary - t * self.change)
        speed = np.where(free, -rate, self.change - rate)
        if self.capped:
            rising = free & (rate > weight_noise) & (self.high < 1)
            ahead = np.where(rising, self.high - x, ahead)
            speed = np.where(rising, rate, speed)
            ahead, speed = np.where(state > 0, -ahead, ahead), np.where(state > 0, -speed, speed)
        shrinks = (speed > np.where(free, weight_noise, self.noise)) & self.movable
        if np.count_nonzero(free) == 1:  # the sum alone says where it is
            shrinks &= ~free
        wrong = shrinks & (ahead <= np.where(free, 1e-11, price_noise))
        if wrong.any():
            self._exchange(int(np.argmax(wrong)))
            return
        left = np.full(len(state), np.inf)
        np.divide(ahead, speed, out=left, where=shrinks)
        k = int(np.argmin(left))
        if t + left[k] >= end:
            self.t = end
            return
        self.t = t + max(float(left[k]), 0.0)
        self._exchange(k)

    def _exchange(self, k: int) -> None:
        """Index `k` changes sides: a principal pivot of the tableau."""
        if self.state[k]:
            side, given = 0, (self.unary[k], self.change[k])
        else:
            side = 1 if self.found[k, 1] > 0 else -1
            given = (self.high[k] if side > 0 else self.low[k], 0.0)
        table = self.table
        column, row, pivot = table[:, k] / table[k, k], table[k].copy(), table[k, k]
        for start in range(0, len(table), self.block):
            part = slice(start, start + self.block)
            ger(-1.0, column, row[part], a=table[:, part], overwrite_a=1)
        table[:, k], table[k], table[k, k] = column, -row / pivot, 1 / pivot
        # The same point, with given and found of k swapped; then what is given changes.
        difference = np.array(given) - self.found[k]
        self.found[k] = self.given[k]
        self.found += table[:, k, None] * difference
        self.given[k] = given
        self.state[k] = side
        self.count += 1
        if self.count % REFRESH == 0:
            self._refresh()

    def _refresh(self, renew: bool = False) -> None:
        """What the tableau gives, afresh; and the tableau too, if it is no longer accurate."""
        free = np.append(self.state == 0, True)
        held = np.append(np.where(self.state > 0, self.high, self.low), 0)
        asked = np.stack([np.append(self.unary, 1.0), np.append(self.change, 0.0)], 1)
        self.given = np.where(free[:, None], asked, np.stack([held, 0 * held], 1))
        if renew:
            self.table = np.asfortranarray(self._tableau())
        self.found = self.table @ self.given
        x = np.where(free[:, None], self.found, self.given)[:-1]
        residual = self.given[:-1] - self.problem.centred @ x - self.found[-1]
        residual = np.append(np.where(free[:-1, None], residual, 0), [[0.0, 0.0]], 0)
        correction = self.table @ residual
        self.found += correction
        off = np.abs(correction[:-1][free[:-1]]).max(0)
        if not renew and not off[0] + self.t * off[1] < DRIFT:
            self._refresh(renew=True)

    def _tableau(self) -> Float[np.ndarray, "m m"]:
        """The tableau of the present state, afresh; O(n^3)."""
        matrix, some = self.problem.centred, np.flatnonzero(self.state == 0)
        n = len(matrix)
        factor = cholesky(matrix.take(some, 0).take(some, 1))
        assert factor is not None, "a principal block of a positive definite matrix has a factor"
        half, _ = potri(factor, lower=0)
        inverse = np.triu(half) + np.triu(half, 1).T
        z = inverse.sum(1)
        inner = np.zeros((n + 1, n + 1))
        inner[np.ix_(some, some)] = inverse - np.outer(z, z / z.sum())
        inner[some, n] = inner[n, some] = z / z.sum()
        inner[n, n] = -1 / z.sum()
        whole = np.ones((n + 1, n + 1))
        whole[:n, :n], whole[n, n] = matrix, 0
        solved = np.append(self.state == 0, True)
        right = inner @ whole
        return np.where(
            solved[:, None],
            np.where(solved, inner, -right),
            np.where(solved, right.T, whole - whole @ right),
        )
