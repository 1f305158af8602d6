"""The finite method behind `solve_exact`: a convex quadratic on the capped simplex.

Every index is at zero, at its cap or free. `exchange` solves the equality-constrained problem on
the free set, moves every index whose sign is wrong and repeats: the primal-dual active-set (block
pivoting) method, a handful of Cholesky factorisations on matrices that come from affinities. Where
it does not settle - nearly singular matrices, vertices - an interior-point run names the sets, and
`descend`, the classical primal active-set method, whose energy falls at every step and which
therefore ends, has the last word.

A tiny multiple of the diagonal, centred on the current mixture, keeps singular matrices
factorisable; re-centring (the proximal-point method) removes what it changes.

Sources: Kunisch and Rendl (2003) and Judice and Pires (1994) for the exchange; Nocedal and Wright,
Numerical Optimization, chapter 16, for the other two; Rockafellar (1976) for re-centring.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from taskpgm.mixture.certificate import duality_gap
from taskpgm.mixture.interior import interior_sets
from taskpgm.mixture.simplex import _project as project

EXCHANGES = 20  # rounds of block exchange before a problem counts as hard
CENTRINGS = 20  # proximal steps at most
TARGET = 1e-10  # gap, relative to max(1, |E|), below which no further proximal step is taken


class Problem(NamedTuple):
    """One quadratic in the form the iterations want."""

    unary: Float[Array, "n"]
    pairwise: Float[Array, "n n"]
    cap: Float[Array, "n"]  # at most 1
    high: Float[Array, "n"]  # the cap, or infinity where it cannot bind
    reg: Float[Array, "n"]  # the diagonal that is added around the centre
    scale: Float[Array, ""]  # size of the terms whose rounding the multipliers carry


def make_problem(unary, pairwise, cap) -> Problem:
    n = len(unary)
    diagonal = jnp.diagonal(pairwise)
    spread = unary.max() - unary.min()
    size = jnp.maximum(jnp.maximum(diagonal.max(), spread), 1e-300)
    reg = 8 * n * jnp.finfo(unary.dtype).eps * (diagonal + 1e-6 * size)
    off_diagonal = jnp.abs(pairwise - jnp.diag(diagonal)).max()
    return Problem(
        unary, pairwise, jnp.minimum(cap, 1.0), jnp.where(cap >= 1, jnp.inf, cap), reg,
        off_diagonal + spread,
    )  # fmt: skip


def solve_free(
    matrix: Float[Array, "n n"],
    reg: Float[Array, "n"],
    free: Bool[Array, "n"],
    right: Float[Array, "n k"],
) -> Float[Array, "n k"]:
    """Solve with the rows and columns in `free`, zero elsewhere; costs what the free set costs.

    Shapes are static, so the free block is gathered into the smallest of a few sizes that holds it.
    """
    n = len(reg)
    sizes = [n]
    while sizes[-1] >= 64:
        sizes.append(sizes[-1] // 2)
    order = jnp.argsort(~free, stable=True)

    def at_size(size):
        def solve():
            take = order[:size]
            live = free[take]
            block = matrix[take][:, take] if size < n else matrix[order][:, order]
            block = jnp.where(live[:, None] & live[None, :], block, 0)
            block = block + jnp.diag(jnp.where(live, reg[take], 1))
            factor = jax.lax.linalg.cholesky(block, symmetrize_input=False)
            found = jax.scipy.linalg.cho_solve((factor, True), right[take] * live[:, None])
            return jnp.zeros_like(right).at[take].set(found)

        return solve

    count = free.sum()
    fits = jnp.array(sizes) >= count
    return jax.lax.switch(fits.sum() - 1, [at_size(size) for size in sizes])


def face(
    problem: Problem, sets: Int[Array, "n"], centre: Float[Array, "n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """The minimiser with the bound indices held and no bounds on the others; and its multipliers.

    Solved for the difference from `centre`, so that nothing large cancels on singular matrices.
    Multipliers are >= 0 at zero and <= 0 at a cap when the point is optimal.
    """
    u, a, _, high, reg, _ = problem
    free = sets == 0
    base = jnp.where(free, centre, jnp.where(sets > 0, high, 0))
    residual = u - a @ base - reg * (base - centre)
    mean = jnp.sum(jnp.where(free, residual, 0)) / jnp.maximum(free.sum(), 1)
    right = jnp.stack([residual - mean, jnp.ones_like(u)], 1)
    y, z = solve_free(a, reg, free, jnp.where(free[:, None], right, 0)).T
    nu = (y.sum() + base.sum() - 1) / z.sum()
    x = base + y - nu * z
    return x, a @ x - u + reg * (x - centre) + (mean + nu)


def slack(problem: Problem, x: Float[Array, "n"]) -> Float[Array, ""]:
    """Multipliers smaller than this are rounding."""
    diagonal = jnp.diagonal(problem.pairwise)
    return 1e-14 * ((diagonal * jnp.clip(x, 0, 1)).max() + problem.scale)


def exchange(problem: Problem, sets, centre, rounds: int):
    """Block exchange until no sign is wrong. Returns (x, sets, settled)."""

    def step(carry):
        _, sets, _, k = carry
        x, g = face(problem, sets, centre)
        tol = slack(problem, x)
        moved_free = jnp.where(x < -1e-14, -1, jnp.where(x > problem.high + 1e-14, 1, 0))
        moved_low = jnp.where(g < -tol, 0, -1)
        moved_high = jnp.where(g > tol, 0, 1)
        new = jnp.where(sets == 0, moved_free, jnp.where(sets < 0, moved_low, moved_high))
        # One index at least stays free: the multiplier of the sum is read from it.
        keep = jnp.argmax(jnp.where(sets == 0, x, -jnp.inf))
        new = jnp.where((new == 0).any(), new, new.at[keep].set(0))
        return x, new, (new == sets).all(), k + 1

    start = (centre, sets, jnp.array(False), 0)
    x, sets, settled, _ = jax.lax.while_loop(lambda c: ~c[2] & (c[3] < rounds), step, start)
    return x, sets, settled


def descend(problem: Problem, x, centre, rounds: int):
    """Primal active set from a feasible `x`: one index at a time, the energy never rises."""
    high = problem.high
    room = jnp.minimum(x, high - x)
    sets = jnp.where(x <= 0, -1, jnp.where(x >= high, 1, 0))
    sets = jnp.where((sets == 0).any(), sets, sets.at[jnp.argmax(room)].set(0))

    def step(carry):
        x, sets, _, k = carry
        y, g = face(problem, sets, centre)
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
        done = ~blocked & (wrong[best] <= slack(problem, x_new))
        fixed = jnp.where(hit, jnp.where(move < 0, -1, 1), sets)
        sets_new = jnp.where(blocked, fixed, sets.at[best].set(jnp.where(done, sets[best], 0)))
        return x_new, sets_new, done, k + 1

    start = (x, sets, jnp.array(False), 0)
    x, sets, done, _ = jax.lax.while_loop(lambda c: ~c[2] & (c[3] < rounds), step, start)
    return x, sets, done


def _solve(unary, pairwise, cap, start):
    problem = make_problem(unary, pairwise, cap)
    n = len(unary)
    centre = project(jnp.full(n, 1 / n), problem.cap)
    start = jnp.where((start > 0) & jnp.isinf(problem.high), 0, start)
    x, sets, settled = exchange(problem, start, centre, EXCHANGES)

    def from_inside(_):
        x, sets = interior_sets(unary, pairwise, problem.cap, centre)
        inside = project(x, problem.cap)
        x, sets, settled = exchange(problem, sets, inside, EXCHANGES)
        return jax.lax.cond(
            settled,
            lambda: (x, sets, inside),
            lambda: (inside, descend(problem, inside, inside, 2)[1], inside),
        )

    x, sets, centre = jax.lax.cond(settled, lambda _: (x, sets, centre), from_inside, 0)

    def measure(x, sets):
        # Beyond its bound, an index stays on it: no weight of 1e-18 is taken for support.
        held = jnp.where(sets < 0, -1, jnp.where(sets > 0, problem.cap + 1, x))
        weights = project(held, problem.cap)
        gradient = pairwise @ weights - unary
        energy = 0.5 * weights @ (gradient - unary)
        return weights, duality_gap(gradient, weights, problem.cap), TARGET * jnp.maximum(
            1, jnp.abs(energy)
        )

    weights, gap, target = measure(x, sets)

    def recentre(carry):
        best, gap, _, x, sets, k = carry
        centre = project(x, problem.cap)
        x, sets, settled = exchange(problem, sets, centre, EXCHANGES)
        x, sets, _ = jax.lax.cond(
            settled,
            lambda: (x, sets, settled),
            lambda: descend(problem, centre, centre, 4 * n + 100),
        )
        weights, new_gap, target = measure(x, sets)
        best = jnp.where(new_gap < gap, weights, best)
        return best, jnp.minimum(gap, new_gap), target, x, sets, k + 1

    def unfinished(carry):
        _, gap, target, _, _, k = carry
        return (gap > target) & (k < CENTRINGS)

    carry = (weights, gap, target, x, sets, 0)
    weights, gap, _, _, sets, _ = jax.lax.while_loop(unfinished, recentre, carry)
    return weights, gap, sets


@custom_vmap
def active_set(
    unary: Float[Array, "n"],
    pairwise: Float[Array, "n n"],
    cap: Float[Array, "n"],
    start: Int[Array, "n"],
) -> tuple[Float[Array, "n"], Float[Array, ""], Int[Array, "n"]]:
    """Minimise 1/2 p'Ap - u'p on {0 <= p <= cap, sum p = 1}, A positive semi-definite.

    `start` guesses where each index ends (-1 at zero, 0 free, 1 at its cap); any guess will do.
    Returns the weights, their duality gap and the sets.

    Under vmap the problems are solved one after the other, each started from the sets of the one
    before: neighbours on a grid of ratios, or resamples of one matrix, share almost all of them, no
    problem waits for the slowest, and each factorises its own free set only.
    """
    return _solve(unary, pairwise, cap, start)


@active_set.def_vmap
def _one_after_another(axis_size, in_batched, unary, pairwise, cap, start):
    operands = (unary, pairwise, cap)
    batched = tuple(x if b else None for x, b in zip(operands, in_batched[:3], strict=True))
    first = start[0] if in_batched[3] else start

    def one(sets, parts):
        filled = [o if p is None else p for o, p in zip(operands, parts, strict=True)]
        weights, gap, sets = active_set(*filled, sets)
        return sets, (weights, gap, sets)

    _, out = jax.lax.scan(one, first, batched, length=axis_size)
    return out, (True, True, True)
