"""Batches of problems, solved one after the other, each from where the one before ended.

That is what `vmap` of the solver means here. Factorisations of different free sets do not share
work, so lanes side by side would cost the sum of all of them, run until the slowest is done, and
each lane would pay for the full matrix. Neighbours in a batch, be they ratios on a grid or
resamples of one matrix, share almost all of their sets instead.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float, Int

from taskpgm.mixture.active_set import active_set, measure
from taskpgm.mixture.critical_line import Line, advance, point, start_line
from taskpgm.mixture.faces import Problem

STEPS = 48  # breakpoints and exchanges between two neighbours, before a fresh solve is cheaper


@custom_vmap
def solve_problem(
    problem: Problem, start: Int[Array, "n"]
) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """`active_set`, and under vmap a chain of them."""
    return active_set(problem, start)


@solve_problem.def_vmap
def _chain(axis_size, in_batched, problem, start):
    of_problem, of_start = in_batched
    first = start[0] if of_start else start
    if of_problem.unary and not (of_problem.pairwise or of_problem.cap):
        return _same_matrix(problem, first), (True, True)
    varying = _only(problem, of_problem)

    def one(sets, own):
        weights, sets = solve_problem(_filled(problem, own), sets)
        return sets, (weights, sets)

    _, out = jax.lax.scan(one, first, varying, length=axis_size)
    return out, (True, True)


def _only(problem: Problem, batched: Problem) -> Problem:
    """The batched fields; None for those that all problems share."""
    pairs = zip(problem, batched, strict=True)
    return Problem(*(value if is_batched else None for value, is_batched in pairs))


def _filled(problem: Problem, own: Problem) -> Problem:
    return Problem(*(s if o is None else o for s, o in zip(problem, own, strict=True)))


@sequential_vmap
def _same_matrix(
    problem: Problem, start: Int[Array, "n"]
) -> tuple[Float[Array, "b n"], Int[Array, "b n"]]:
    """Problems that differ in `unary` (and `scale`) alone: the critical line leads from one to the
    next, at O(n^2) for each breakpoint between them."""

    def at(unary, scale) -> Problem:
        return problem._replace(unary=unary, scale=scale)

    # There is no line to follow to the first: a tableau of NaN leads nowhere.
    n = len(start)
    nowhere = Line(jnp.full((n + 1, n + 1), jnp.nan), start, jnp.zeros(()))

    def one(carry, own):
        line, last, sets = carry
        here = at(*own)
        change = here.unary - last

        def more(c):
            return (c[0].t < 1) & (c[1] < STEPS)

        def step(c):
            return advance(here, c[0], last, change, 1.0)[0], c[1] + 1

        moved, _ = jax.lax.while_loop(more, step, (line._replace(t=jnp.zeros(())), 0))
        x, _ = point(here, moved, here.unary)
        weights, excess = measure(here, x, moved.sets)

        def afresh():
            weights, new = active_set(here, sets)
            return weights, new, start_line(problem.pairwise, new)

        arrived = (moved.t >= 1) & (excess <= 1)
        weights, sets, line = jax.lax.cond(arrived, lambda: (weights, moved.sets, moved), afresh)
        return (line, here.unary, sets), (weights, sets)

    scales = jnp.broadcast_to(problem.scale, problem.unary.shape[:1])
    carry = nowhere, problem.unary[0], start
    _, out = jax.lax.scan(one, carry, (problem.unary, scales))
    return out
