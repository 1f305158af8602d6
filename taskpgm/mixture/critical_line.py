"""Following the exact solution while the unary potential moves: the critical-line method.

Along u(t) = u + t du the minimiser of 1/2 p'Ap - u(t)'p on the capped simplex is piecewise linear
in t: between breakpoints the sets (at zero, free, at the cap) do not change. A tableau of the
optimality conditions, solved for the free weights, gives point and direction by one product, and
at a breakpoint one index changes sides by one rank-one update, O(n^2). A is positive definite.

Where several bounds are met at once, the index of lowest number with a wrong sign is exchanged
until none is left: Murty's rule, which cannot cycle on the positive definite problem that the
directions solve.

Sources: Markowitz (1956); Best (1996) for the parametric active-set view; Murty (1974).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from taskpgm.mixture.faces import Problem, rounding


class Line(NamedTuple):
    """Where the following stands.

    Attributes:
      table: the tableau of [[A, 1], [1', 0]] solved for the free weights and the multiplier of the
        sum: it takes (u, 1) at free places and weights at bound ones to the reverse.
      sets: -1 at zero, 0 free, 1 at the cap.
      t: how far along the line.
    """

    table: Float[Array, "n+1 n+1"]
    sets: Int[Array, "n"]
    t: Float[Array, ""]


def start_line(pairwise: Float[Array, "n n"], sets: Int[Array, "n"]) -> Line:
    """At t = 0, from the sets of the solution there; O(n^3)."""
    n = len(sets)
    free = sets == 0
    both = free[:, None] & free[None, :]
    block = jnp.where(both, pairwise, jnp.diag(1.0 * ~free))
    factor = jax.lax.linalg.cholesky(block, symmetrize_input=False)
    inverse = jnp.where(both, jax.scipy.linalg.cho_solve((factor, True), jnp.eye(n)), 0)
    z = inverse.sum(1)
    total = z.sum()
    inner = jnp.block(
        [[inverse - jnp.outer(z, z) / total, z[:, None] / total], [z[None] / total, -1 / total]]
    )
    matrix = jnp.block([[pairwise, jnp.ones((n, 1))], [jnp.ones((1, n)), jnp.zeros((1, 1))]])
    solved = jnp.append(free, True)
    right = inner @ matrix
    table = jnp.where(
        solved[:, None],
        jnp.where(solved, inner, -right),
        jnp.where(solved, right.T, matrix - matrix @ right),
    )
    return Line(table, sets, jnp.zeros(()))


def _swap(table: Float[Array, "m m"], k: Int[Array, ""]) -> Float[Array, "m m"]:
    """The tableau after index `k` changes sides (a principal pivot)."""
    column, row, pivot = table[:, k], table[k], table[k, k]
    table = table - jnp.outer(column / pivot, row)
    table = table.at[:, k].set(column / pivot).at[k].set(-row / pivot)
    return table.at[k, k].set(1 / pivot)


def point(problem: Problem, line: Line, unary) -> tuple[Float[Array, "n"], Float[Array, ""]]:
    """The weights under `unary`, refined once against A itself; and how far the tableau was off."""
    free = line.sets == 0
    held = jnp.where(line.sets > 0, problem.cap, 0)
    out = line.table @ jnp.append(jnp.where(free, unary, held), 1.0)
    x = jnp.where(free, out[:-1], held)
    residual = jnp.where(free, unary - problem.pairwise @ x - out[-1], 0)
    correction = line.table @ jnp.append(residual, 1 - x.sum())
    correction = jnp.where(free, correction[:-1], 0)
    return x + correction, jnp.abs(correction).max()


def advance(problem: Problem, line: Line, unary, change, end) -> tuple[Line, Array]:
    """One exchange if a sign is wrong at `line.t`, else the step to the next breakpoint.

    Args:
      unary: u at t = 0; `change`: du.
      end: the largest t.
    Returns:
      The new line, and whether it was a step.
    """
    table, sets, t = line
    free = sets == 0
    cap = problem.cap
    held = jnp.where(sets > 0, cap, 0)
    now = unary + t * change
    # Two products with a vector each: XLA's thin matrix products are three times slower on a CPU.
    out = (table @ jnp.append(jnp.where(free, now, held), 1.0))[:-1]
    rate = (table @ jnp.append(jnp.where(free, change, 0), 0.0))[:-1]
    x, dx = jnp.where(free, out, held), jnp.where(free, rate, 0)
    # Multipliers: A x + nu - u at bound indices.
    g, dg = jnp.where(free, 0, out - now), jnp.where(free, 0, rate - change)

    # Distance from each index's active limits, and its rate, both in units of their own rounding.
    x_noise, dx_noise = 1e-11, 1e-12 * jnp.abs(dx).max()
    g_noise, dg_noise = 100 * rounding(problem, x), 1e-12 * jnp.abs(change).max()
    capped = cap < 1
    falling, rising = free & (dx < -dx_noise), free & capped & (dx > dx_noise)
    usable = cap > 0
    entering = usable & (sets < 0) & (dg < -dg_noise)
    leaving = (sets > 0) & (dg > dg_noise)
    to_low, to_high = falling & (x <= x_noise), rising & (x >= cap - x_noise)
    wrong = to_low | to_high | (entering & (g <= g_noise)) | (leaving & (g >= -g_noise))

    def exchange():
        k = jnp.argmax(wrong)
        side = jnp.where(to_low[k], -1, jnp.where(to_high[k], 1, 0))
        return Line(_swap(table, k), sets.at[k].set(side), t)

    def step():
        left = jnp.where(falling, x / jnp.where(falling, -dx, 1), jnp.inf)
        left = jnp.where(rising, (cap - x) / jnp.where(rising, dx, 1), left)
        moving = entering | leaving
        left = jnp.where(moving, -g / jnp.where(moving, dg, 1), left)
        return Line(table, sets, jnp.minimum(t + jnp.maximum(left.min(), 0), end))

    any_wrong = wrong.any()
    return jax.lax.cond(any_wrong, exchange, step), ~any_wrong
