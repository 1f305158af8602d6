"""The method for the problems on which exchanging does not settle: singular matrices, vertices.

An interior-point run names the sets, and `descend`, the classical primal active-set method, whose
energy falls at every step and which therefore ends, has the last word. A tiny multiple of the
diagonal, centred on the current mixture, keeps singular matrices factorisable; re-centring (the
proximal-point method) removes what it changes.

Sources: Nocedal and Wright, Numerical Optimization, chapter 16; Rockafellar (1976), "Monotone
operators and the proximal point algorithm".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from taskpgm.mixture.active_set import Found, exchange, is_enough, measure
from taskpgm.mixture.faces import Problem, face, regularised, rounding
from taskpgm.mixture.interior import interior_sets
from taskpgm.mixture.simplex import _project

CENTRINGS = 20  # proximal steps at most


def certain(problem: Problem, start: Int[Array, "n"]) -> Found:
    """By exchange, or where that is not enough by `persevere`."""
    found = exchange(problem, start)
    return jax.lax.cond(is_enough(found), lambda: found, lambda: persevere(problem))


def persevere(problem: Problem) -> Found:
    """The solution for any positive semi-definite A; NaN weights if A is not."""
    problem = regularised(problem)
    inside, sets = interior_sets(problem.unary, problem.pairwise, problem.cap)

    def recentre(carry):
        best, x, sets, k = carry
        # Pushed beyond their bounds, so that descending starts on the face that was found.
        held = jnp.where(sets < 0, -1, jnp.where(sets > 0, problem.cap + 1, x))
        x, sets = descend(problem, _project(held, problem.cap))
        new = measure(problem, x, sets)
        better = new.gap < best.gap
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)
        return best, x, sets, k + 1

    none = Found(jnp.full_like(inside, jnp.nan), jnp.nan, jnp.inf, sets)
    # A truly negative eigenvalue leaves the regularised matrix without a factor too.
    definite = jnp.isfinite(problem.factor[-1, -1])
    start = (none, inside, sets, jnp.where(definite, 0, CENTRINGS))
    best, *_ = jax.lax.while_loop(lambda c: ~is_enough(c[0]) & (c[3] < CENTRINGS), recentre, start)
    return best


def descend(problem: Problem, x: Float[Array, "n"]) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """Primal active set from a feasible `x`, the centre of the regulariser: (minimiser, sets).

    One index at a time is released or bound; the energy never rises.
    """
    centre, high = x, problem.high
    sets = jnp.where(x <= 0, -1, jnp.where(x >= high, 1, 0))
    roomiest = jnp.argmax(jnp.minimum(x, high - x))
    sets = jnp.where((sets == 0).any(), sets, sets.at[roomiest].set(0))

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
        # Where all free indices are blocked at once, one stays free, at its bound.
        fixed = jnp.where((fixed == 0).any(), fixed, fixed.at[jnp.argmax(hit)].set(0))
        released = sets.at[best].set(jnp.where(done, sets[best], 0))
        return x_new, jnp.where(blocked, fixed, released), done, k + 1

    rounds = 4 * len(x) + 100
    start = (x, sets, jnp.array(False), 0)
    x, sets, *_ = jax.lax.while_loop(lambda c: ~c[2] & (c[3] < rounds), step, start)
    return x, sets
