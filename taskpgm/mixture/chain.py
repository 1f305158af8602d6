"""Batches of problems, solved one after the other, each from where the one before ended.

That is what `vmap` of a solver means here. Factorisations of different free sets do not share work,
so lanes side by side would cost the sum of all of them, run until the slowest is done, and each
lane would pay for the full matrix. Neighbours in a batch, be they ratios on a grid or resamples of
one matrix, share almost all of their sets instead.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Int

from taskpgm.mixture.active_set import Found, exchange, is_enough, measure
from taskpgm.mixture.critical_line import Line, advance, point, start_line
from taskpgm.mixture.faces import Problem
from taskpgm.mixture.hard import certain

STEPS = 48  # breakpoints and exchanges between two neighbours, before a fresh solve is cheaper

Solver = Callable[[Problem, Int[Array, "n"]], Found]


def chained(solver: Solver) -> Solver:
    """`solver` with the vmap of this module."""
    same_matrix = sequential_vmap(lambda problem, start: _same_matrix(solver, problem, start))
    solve = custom_vmap(solver)

    @solve.def_vmap
    def chain(axis_size, in_batched, problem, start):
        of_problem, of_start = in_batched
        first = start[0] if of_start else start
        everywhere = Found(True, True, True, True)
        if of_problem.unary and not (of_problem.pairwise or of_problem.cap):
            return same_matrix(problem, first), everywhere
        pairs = zip(problem, of_problem, strict=True)
        varying = [value if is_batched else None for value, is_batched in pairs]

        def one(sets, own):
            pairs = zip(problem, own, strict=True)
            found = solve(Problem(*(s if o is None else o for s, o in pairs)), sets)
            return jnp.where(is_enough(found), found.sets, 0), found

        _, found = jax.lax.scan(one, first, varying, length=axis_size)
        return found, everywhere

    return solve


exchange_chained = chained(exchange)
certain_chained = chained(certain)


def _same_matrix(solver: Solver, problem: Problem, start: Int[Array, "n"]) -> Found:
    """Problems that differ in `unary` [b, n] (and `scale`) alone: the critical line leads from one
    to the next, at O(n^2) for each breakpoint between them."""
    n = len(start)

    def one(carry, own):
        line, last = carry
        here = problem._replace(unary=own[0], scale=own[1])

        def step(c):
            return advance(here, c[0], last, here.unary - last, 1.0)[0], c[1] + 1

        def under_way(c):
            return (c[0].t < 1) & (c[1] < STEPS)

        begin = line._replace(t=jnp.zeros(())), 0
        moved, _ = jax.lax.while_loop(under_way, step, begin)
        x, _ = point(here, moved, here.unary)
        found = measure(here, x, moved.sets)

        def afresh():
            found = solver(here, line.sets)
            sets = jnp.where(is_enough(found), found.sets, 0)
            return found, start_line(problem.pairwise, sets)

        arrived = (moved.t >= 1) & is_enough(found)
        found, line = jax.lax.cond(arrived, lambda: (found, moved), afresh)
        return (line, here.unary), found

    # There is no line to follow to the first: a tableau of NaN leads nowhere.
    nowhere = Line(jnp.full((n + 1, n + 1), jnp.nan), start, jnp.zeros(()))
    scales = jnp.broadcast_to(problem.scale, problem.unary.shape[:1])
    _, found = jax.lax.scan(one, (nowhere, problem.unary[0]), (problem.unary, scales))
    return found
