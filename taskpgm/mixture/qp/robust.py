"""For the problems on which block pivoting does not settle: singular matrices, degenerate faces.

An interior-point run names the bounds that hold and pivoting corrects them. A tiny multiple of the
diagonal, centred on the current mixture, keeps singular matrices factorisable; centring it again
(the proximal-point method) removes what it changes.

Source: Rockafellar (1976), "Monotone operators and the proximal point algorithm".
"""

import numpy as np

from taskpgm.mixture.qp.interior_point import interior_point
from taskpgm.mixture.qp.pivoting import pivot
from taskpgm.mixture.qp.problem import Candidate, Problem, certify, cholesky

CENTRINGS = 30
ROUNDS = 60  # of pivoting, per centring


def solve_any(problem: Problem) -> Candidate:
    """The best candidate found for any positive semi-definite A.

    Raises:
      ValueError: A has a negative eigenvalue on the subspace 1'x = 0.
    """
    diagonal = np.maximum(problem.centred.diagonal(), 0)
    spread = float(problem.unary.max() - problem.unary.min())
    size = max(float(diagonal.max()), spread, 1e-150)
    epsilon = np.finfo(np.float64).eps
    reg = 8 * len(diagonal) * epsilon * (diagonal + 1e-6 * size)
    reg = reg + 4 * epsilon * float(np.abs(problem.pairwise).max())  # rounding of the centring
    if cholesky(problem.centred + np.diag(reg)) is None:
        raise ValueError("pairwise is not positive semi-definite: make it so first, see psd=")
    near, state = interior_point(problem)
    # The point as it is, and with what is about to vanish at zero.
    inside = np.where(np.arange(len(state)) < len(near), 0, state)
    best = min((certify(problem, near, s) for s in (inside, state)), key=lambda found: found.gap)
    for _ in range(CENTRINGS):
        if best.solved:
            break
        found = pivot(problem, state, rounds=ROUNDS, near=near, reg=reg)
        if found is None:
            break
        near, state = found.weights, found.state
        best = found if found.gap < best.gap else best
    if not np.isfinite(best.gap):
        raise RuntimeError("no feasible mixture was found: report this matrix")
    return best
