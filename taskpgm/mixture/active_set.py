"""The finite method behind `solve_exact`: a convex quadratic on the capped simplex.

Every index is at zero, at its cap or free. `exchange` solves the equality-constrained problem on
the free set, moves every index whose sign is wrong and repeats: the primal-dual active-set (block
pivoting) method, a handful of factorisations on matrices that come from affinities. Where it does
not settle - singular matrices, vertices - an interior-point run names the sets, and `descend`, the
classical primal active-set method, whose energy falls at every step and which therefore ends, has
the last word. There a tiny multiple of the diagonal, centred on the current mixture, keeps singular
matrices factorisable; re-centring (the proximal-point method) removes what it changes.

Sources: Kunisch and Rendl (2003) and Judice and Pires (1994) for the exchange; Nocedal and Wright,
Numerical Optimization, chapter 16, for the other two; Rockafellar (1976) for re-centring.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from taskpgm.mixture.certificate import duality_gap
from taskpgm.mixture.faces import (
    Problem,
    face,
    regularised,
    rounding,
    solve_free_quickly,
)
from taskpgm.mixture.interior import interior_sets
from taskpgm.mixture.simplex import _project as project

EXCHANGES = 20  # rounds of block exchange before a problem counts as hard
CENTRINGS = 20  # proximal steps at most
TARGET = 1e-10  # gap, relative to max(1, |E|), that a solution has to reach


def exchange(problem: Problem, sets, near):
    """Block exchange until no sign is wrong. Returns (x, sets, settled)."""

    def step(carry):
        last, sets, _, k = carry
        x, g = face(problem, sets, near, jnp.clip(last, 0, problem.cap), solve_free_quickly)
        tol = rounding(problem, x)
        moved_free = jnp.where(x < -1e-14, -1, jnp.where(x > problem.high + 1e-14, 1, 0))
        moved_low = jnp.where(g < -tol, 0, -1)
        moved_high = jnp.where(g > tol, 0, 1)
        new = jnp.where(sets == 0, moved_free, jnp.where(sets < 0, moved_low, moved_high))
        # One index at least stays free: the multiplier of the sum is read from it.
        keep = jnp.argmax(jnp.where(sets == 0, x, -jnp.inf))
        new = jnp.where((new == 0).any(), new, new.at[keep].set(0))
        # A matrix that cannot be factorised gives NaN, which no comparison above sees.
        return x, new, (new == sets).all(), jnp.where(jnp.isfinite(x[keep]), k + 1, EXCHANGES + 1)

    start = (near, sets, jnp.array(False), 0)
    x, sets, settled, k = jax.lax.while_loop(lambda c: ~c[2] & (c[3] < EXCHANGES), step, start)
    return x, sets, settled & (k <= EXCHANGES)


def descend(problem: Problem, x, centre, rounds: int):
    """Primal active set from a feasible `x`: one index at a time, the energy never rises."""
    high = problem.high
    room = jnp.minimum(x, high - x)
    sets = jnp.where(x <= 0, -1, jnp.where(x >= high, 1, 0))
    sets = jnp.where((sets == 0).any(), sets, sets.at[jnp.argmax(room)].set(0))

    def step(carry):
        x, sets, _, k = carry
        y, g = face(problem, sets, centre, x)
        move = y - x
        to_low = jnp.where(y < -1e-14, x / jnp.maximum(-move, 1e-300), jnp.inf)
        to_high = jnp.where(y > high + 1e-14, (high - x) / jnp.maximum(move, 1e-300), jnp.inf)
        reach = jnp.where(sets == 0, jnp.minimum(to_low, to_high), jnp.inf)
        first = reach.min()
        blocked = first < 1
        hit = blocked & (reach <= first)
        x_new = jnp.where(blocked, x + first * move, y)
        x_new = jnp.clip(jnp.where(hit, jnp.where(move < 0, 0, high), x_new), 0, high)
        # On the minimiser of its face: release the index that gains most.
        wrong = jnp.where(sets < 0, -g, jnp.where(sets > 0, g, 0))
        best = jnp.argmax(wrong)
        done = ~blocked & (wrong[best] <= rounding(problem, x_new))
        fixed = jnp.where(hit, jnp.where(move < 0, -1, 1), sets)
        # Where all free indices are blocked at once, the last stays free, at its bound.
        fixed = jnp.where((fixed == 0).any(), fixed, fixed.at[jnp.argmax(hit)].set(0))
        sets_new = jnp.where(blocked, fixed, sets.at[best].set(jnp.where(done, sets[best], 0)))
        return x_new, sets_new, done, k + 1

    start = (x, sets, jnp.array(False), 0)
    x, sets, done, _ = jax.lax.while_loop(lambda c: ~c[2] & (c[3] < rounds), step, start)
    return x, sets, done


def measure(problem: Problem, x, sets):
    """Feasible weights at `x`, and their gap in units of what is asked for: <= 1 is enough."""
    free = sets == 0
    bound = jnp.where(sets > 0, problem.cap, 0)
    inside = jnp.clip(jnp.where(free, x, bound), 0, problem.cap)
    share = jnp.where(free, (1 - inside.sum()) / jnp.maximum(free.sum(), 1), 0)
    weights = jnp.clip(inside + share, 0, problem.cap)
    gradient = problem.pairwise @ weights - problem.unary
    energy = 0.5 * weights @ (gradient - problem.unary)
    gap = duality_gap(gradient, weights, problem.cap)
    # Rounding is what the sum may be off by; a point that is off by more is not feasible.
    gap = jnp.where(jnp.abs(weights.sum() - 1) < 1e-12, gap, jnp.inf)
    return weights, gap / (TARGET * jnp.maximum(1, jnp.abs(energy)))


def _hard(problem: Problem):
    """A problem on which exchanging alone did not settle, or not exactly enough."""
    problem = regularised(problem)
    inside, sets = interior_sets(problem.unary, problem.pairwise, problem.cap)
    rounds = 4 * len(inside) + 100

    def recentre(carry):
        best, excess, centre, sets, k = carry
        # Its bounds held, so that descending starts on the face that was found.
        start = jnp.where(sets < 0, -1, jnp.where(sets > 0, problem.cap + 1, centre))
        start = project(start, problem.cap)
        x, sets, _ = descend(problem, start, start, rounds)
        weights, new_excess = measure(problem, x, sets)
        better = new_excess < excess
        return (
            jnp.where(better, weights, best), jnp.where(better, new_excess, excess), x, sets, k + 1
        )  # fmt: skip

    # A matrix with a truly negative eigenvalue has no factor even so, and NaN for an answer.
    definite = jnp.isfinite(problem.factor[-1, -1])
    none = jnp.full_like(inside, jnp.nan), jnp.inf
    start = (*none, inside, sets, jnp.where(definite, 0, CENTRINGS))
    best, _, _, sets, _ = jax.lax.while_loop(
        lambda c: (c[1] > 1) & (c[4] < CENTRINGS), recentre, start
    )
    return best, sets


def active_set(
    problem: Problem, start: Int[Array, "n"]
) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """Minimise 1/2 p'Ap - u'p on {0 <= p <= cap, sum p = 1}, A positive semi-definite.

    `start` guesses where each index ends (-1 at zero, 0 free, 1 at its cap); any guess will do.
    Returns the weights and the sets; NaN where A is not positive semi-definite.
    """
    n = len(start)
    near = jnp.full(n, 1 / n)
    start = jnp.where((start > 0) & jnp.isinf(problem.high), 0, start)
    x, sets, settled = exchange(problem, start, near)
    weights, excess = measure(problem, x, sets)
    # Without a factor of the whole of A, a small free set could hide that A is not definite.
    definite = jnp.isfinite(problem.factor[-1, -1])
    return jax.lax.cond(
        settled & definite & (excess <= 1), lambda: (weights, sets), lambda: _hard(problem)
    )
