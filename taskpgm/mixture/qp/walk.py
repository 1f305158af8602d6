"""Following the exact solution while u moves, from face to face: where families have bounds too.

On the face that a solve finds just beyond a breakpoint, weights and multipliers are linear in t,
and the next breakpoint is where the first of them changes its sign: one solve a breakpoint, so
slower than `critical_line`. Degenerate faces do not mislead it: one that ends at once is stepped
over, by twice as much each time, and every point is certified.
"""

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.qp import solve
from taskpgm.mixture.qp.kkt import Face
from taskpgm.mixture.qp.problem import Problem, certify

STEP = 1e-7  # beyond a breakpoint, relative to max(1, t)


def walk(
    problem: Problem, change: Float[np.ndarray, "n"], end: float
) -> list[tuple[float, Float[np.ndarray, "n"]]]:
    """(t, minimiser of 1/2 p'Ap - t change'p) at 0, every breakpoint and `end`."""
    found = solve(problem.with_unary(0 * change))
    points, t, step = [(0.0, found.weights)], 0.0, STEP
    while t < end:
        inside = min(t + step * max(1.0, t), end)
        found = solve(problem.with_unary(inside * change), found.state)
        reach, x, rate = _line(problem, found.state, inside, found.weights, change)
        step = 2 * step if reach < STEP else STEP
        at = min(inside + reach, end)
        there = problem.with_unary(at * change)
        moved = certify(there, x + (at - inside) * rate, found.state)
        if not moved.solved:
            moved = solve(there, found.state)
        t = at
        points.append((t, moved.weights))
    return points


def _line(
    problem: Problem,
    state: np.ndarray,
    t: float,
    near: Float[np.ndarray, "n"],
    change: Float[np.ndarray, "n"],
) -> tuple[float, Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """How far the face of `state` reaches beyond t; the point there at t, and its rate."""
    face = Face(problem.with_unary(t * change), state)
    if face.factor is None or not len(face.free):
        return 0.0, near, 0 * near
    x, multipliers = face.minimise(near)
    face.problem = problem.with_unary((t + 1) * change)
    ahead, others = face.minimise(x)
    rate, turn = ahead - x, others - multipliers
    values, rates = problem.values(x), problem.values(rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (values - problem.low) / -rates
        up = (problem.high - values) / rates
        turns = multipliers / -turn
    noise = 1e-12 * max(float(np.abs(rates).max()), 1e-300)
    reach = np.full(len(values), np.inf)
    free, movable = state == 0, problem.low < problem.high
    reach = np.where(free & (rates < -noise), down, reach)
    reach = np.where(free & (rates > noise), np.minimum(up, reach), reach)
    turning = np.abs(turn) > 1e-12 * max(float(np.abs(turn).max()), 1e-300)
    lost = ~free & movable & turning & (np.sign(turn) == np.where(state < 0, -1, 1))
    reach = np.where(lost, turns, reach)
    return max(float(reach.min()), 0.0), x, rate
