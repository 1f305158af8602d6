"""The quadratic programme behind every exact mixture: `solve(problem)` gives a certified candidate.

- `problem`: what is solved, and the certificate.
- `kkt`: the linear algebra of one face.
- `pivoting`: the fast method.
- `interior_point`, `robust`: the method for singular and degenerate problems.
- `critical_line`: following the solution while u moves.
- `warm_start`: batches of problems, each from the solution of the one before.
"""

import numpy as np
from jaxtyping import Int

from taskpgm.mixture.qp.pivoting import pivot
from taskpgm.mixture.qp.problem import Candidate, Problem, certify, duality_gap, least_cost
from taskpgm.mixture.qp.robust import solve_any

ROUNDS = 25  # factorisations after which a problem counts as hard

__all__ = ["Candidate", "Problem", "certify", "duality_gap", "least_cost", "solve"]


def solve(problem: Problem, state: Int[np.ndarray, "v"] | None = None) -> Candidate:
    """The minimiser of `problem` with its certificate, gap <= 1e-10 * max(1, |E|).

    Args:
      state: a guess of the bounds that hold, as from the solution of a similar problem.
    Raises:
      ValueError: the pairwise matrix is not positive semi-definite on the subspace 1'x = 0.
    """
    if problem.factor is not None:
        state = np.zeros(len(problem.low), np.int64) if state is None else state
        found = pivot(problem, state, rounds=ROUNDS)
        if found is not None and found.solved:
            return found
    return solve_any(problem)
