"""Block pivoting: solve on the free set, move every entry whose sign is wrong, repeat.

The primal-dual active-set method: a handful of factorisations where A is definite. When moving all
wrong entries at once no longer helps, one at a time is moved (Murty's rule), which cannot cycle.

Sources: Kunisch and Rendl (2003), "An infeasible active set method for quadratic problems with
simple bounds"; Judice and Pires (1994); Murty (1974).
"""

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.qp.kkt import Face
from taskpgm.mixture.qp.problem import Candidate, Problem, certify

PATIENCE = 3  # rounds of moving all wrong entries without fewer of them, before one is moved alone


def pivot(
    problem: Problem,
    state: Int[np.ndarray, "v"],
    *,
    rounds: int,
    near: Float[np.ndarray, "n"] | None = None,
    reg: Float[np.ndarray, "n"] | None = None,
) -> Candidate | None:
    """The minimiser of `problem`, regularised by `reg` around `near`, certified without it.

    Args:
      state: a guess of the bounds that hold; any guess will do.
      rounds: factorisations at most.
    Returns:
      The last candidate, solved or not; None where the matrix of a face was not definite.
    """
    n = len(problem.unary)
    low, high = problem.low, problem.high
    fixed = low >= high
    state = np.where(fixed, -1, np.where(np.isinf(np.where(state > 0, high, low)), 0, state))
    x = near = np.full(n, 1 / n) if near is None else near
    fewest, patience = len(state) + 1, PATIENCE
    for _ in range(rounds):
        if not (state[:n] == 0).any():  # the multiplier of the sum is read off a free weight
            room = np.where(fixed[:n], -1.0, np.minimum(x - low[:n], high[:n] - x))
            state[np.argmax(room)] = 0
        face = Face(problem, state, reg)
        if face.factor is None:
            return None
        x, multipliers = face.minimise(np.clip(x, low[:n], high[:n]), near)
        values, tolerance = problem.values(x), problem.rounding(x)
        new = np.where(values < low - 1e-14, -1, np.where(values > high + 1e-14, 1, 0))
        new = np.where(state < 0, np.where(multipliers < -tolerance, 0, -1), new)
        new = np.where(state > 0, np.where(multipliers > tolerance, 0, 1), new)
        wrong = np.flatnonzero((new != state) & ~fixed)
        if not len(wrong):
            x, _ = face.minimise(x, near)
            break
        if len(wrong) < fewest:
            fewest, patience = len(wrong), PATIENCE
        else:
            patience -= 1
        if patience < 0:
            wrong = wrong[-1:]
        state[wrong] = new[wrong]
    return certify(problem, x, state)
