"""The finite method behind `solve_exact`: block exchange of active sets.

Every index is at zero, at its cap or free. `exchange` solves the equality-constrained problem on
the free set, moves every index whose sign is wrong and repeats: the primal-dual active-set (block
pivoting) method, a handful of factorisations on matrices that come from affinities. Where it does
not settle, or A is singular, `certain` turns to the slower method of `hard`, which always ends.

Sources: Kunisch and Rendl (2003), "An infeasible active set method for quadratic problems with
simple bounds"; Judice and Pires (1994).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from taskpgm.mixture.certificate import duality_gap
from taskpgm.mixture.faces import Problem, face, rounding, solve_free_quickly

EXCHANGES = 20  # rounds of exchange before a problem counts as hard
TARGET = 1e-10  # gap, relative to max(1, |E|), that a solution has to reach


class Found(NamedTuple):
    """A feasible point, its certificate, and the sets it was found on (-1, 0, 1)."""

    weights: Float[Array, "n"]
    energy: Float[Array, ""]
    gap: Float[Array, ""]
    sets: Int[Array, "n"]


def is_enough(found: Found) -> Bool[Array, "*b"]:
    """Whether the gap is what is asked of a solution; NaN is not."""
    xp = jnp if isinstance(found.gap, jax.Array) else np
    return found.gap <= TARGET * xp.maximum(1, xp.abs(found.energy))


def measure(problem: Problem, x: Float[Array, "n"], sets: Int[Array, "n"]) -> Found:
    """The feasible weights at `x`, which is so up to rounding, and what they are worth."""
    free = sets == 0
    inside = jnp.where(free, x, jnp.where(sets > 0, problem.cap, 0))
    inside = jnp.clip(inside, 0, problem.cap)
    share = jnp.where(free, (1 - inside.sum()) / jnp.maximum(free.sum(), 1), 0)
    weights = jnp.clip(inside + share, 0, problem.cap)
    gradient = problem.pairwise @ weights - problem.unary
    energy = 0.5 * weights @ (gradient - problem.unary)
    gap = duality_gap(gradient, weights, problem.cap)
    # A sum that is off by more than rounding: the point was not feasible.
    gap = jnp.where(jnp.abs(weights.sum() - 1) < 1e-12, gap, jnp.inf)
    return Found(weights, energy, gap, sets)


def exchange(problem: Problem, start: Int[Array, "n"]) -> Found:
    """Minimise 1/2 p'Ap - u'p on {0 <= p <= cap, sum p = 1} for a definite A.

    Args:
      start: a guess where each index ends; any guess will do.
    Returns:
      The solution if `is_enough` says so; else the exchanges did not settle.
    """

    def step(carry):
        last, sets, _, k = carry
        near = jnp.clip(last, 0, problem.cap)
        x, g = face(problem, sets, near, near, solve_free_quickly)
        tol = rounding(problem, x)
        moved_free = jnp.where(x < -1e-14, -1, jnp.where(x > problem.high + 1e-14, 1, 0))
        moved_low = jnp.where(g < -tol, 0, -1)
        moved_high = jnp.where(g > tol, 0, 1)
        new = jnp.where(sets == 0, moved_free, jnp.where(sets < 0, moved_low, moved_high))
        # One index at least stays free: the multiplier of the sum is read from it.
        keep = jnp.argmax(jnp.where(sets == 0, x, -jnp.inf))
        new = jnp.where((new == 0).any(), new, new.at[keep].set(0))
        # The second time around the same face is a step of iterative refinement.
        settled = (new == sets).all() & (k > 0)
        return x, new, settled | ~jnp.isfinite(x[keep]), k + 1

    sets = jnp.where((start > 0) & jnp.isinf(problem.high), 0, start)
    first = (jnp.full_like(problem.unary, 1 / len(sets)), sets, jnp.array(False), 0)
    x, sets, *_ = jax.lax.while_loop(lambda c: ~c[2] & (c[3] < EXCHANGES), step, first)
    # Without a factor of the whole of A, a small free set could hide that A is not definite.
    definite = jnp.isfinite(problem.factor[-1, -1])
    return measure(problem, jnp.where(definite, x, jnp.nan), sets)
