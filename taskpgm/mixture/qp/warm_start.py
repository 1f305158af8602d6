"""Batches of problems, one after the other, each from the solution of the one before.

Neighbours in a batch, be they ratios on a grid or resamples of one matrix, share almost all of
their bounds. Over the same matrix the critical line leads from one to the next at O(n^2) for each
breakpoint between them; over another matrix the state of the last is where pivoting starts.
"""

import numpy as np

from taskpgm.mixture.qp import solve
from taskpgm.mixture.qp.critical_line import CriticalLine
from taskpgm.mixture.qp.problem import Candidate, Problem, certify

STEPS = 48  # breakpoints and exchanges between two neighbours, before a fresh solve is cheaper


class WarmStart:
    """Solves problems that resemble each other, in the order in which they come."""

    def __init__(self) -> None:
        self.last: tuple[Problem, Candidate] | None = None
        self.line: CriticalLine | None = None

    def solve(self, problem: Problem) -> Candidate:
        """As `qp.solve`."""
        found = None
        if self.last is not None:
            last, candidate = self.last
            if _differ_in_unary_alone(last, problem):
                problem = last.with_unary(problem.unary)
                found = self._follow(last, candidate, problem)
            else:
                self.line = None
        if found is None:
            found = solve(problem, self.last[1].state if self.last else None)
            self.line = None
        self.last = problem, found
        return found

    def _follow(self, last: Problem, start: Candidate, problem: Problem) -> Candidate | None:
        """Along the critical line from `start`; None where that does not end in a solution."""
        if len(problem.family) or problem.factor is None or (start.state != 0).all():
            return None
        if self.line is None:
            self.line = CriticalLine(last, start.state, problem.unary - last.unary)
        else:
            self.line.aim(last, problem.unary - last.unary)
        for _ in range(STEPS):
            if self.line.t >= 1:
                found = certify(problem, self.line.weights(), self.line.state.copy())
                return found if found.solved else None
            self.line.advance(1.0)
        return None


def _differ_in_unary_alone(a: Problem, b: Problem) -> bool:
    same = a.pairwise is b.pairwise or np.shares_memory(a.pairwise, b.pairwise)
    bounds = np.array_equal(a.low, b.low) and np.array_equal(a.high, b.high)
    return same and bounds and np.array_equal(a.family, b.family)
