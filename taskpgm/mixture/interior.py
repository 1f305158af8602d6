"""A primal-dual interior-point run that says which bounds hold, for problems that are hard.

Mehrotra's predictor-corrector for min 1/2 x'Ax - u'x on {0 <= x <= cap, sum x = 1}, from a point
that is strictly inside. Robust for any positive semi-definite A, vertices and degenerate faces
included. Source: Nocedal and Wright, Numerical Optimization, section 16.6.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ROUNDS = 80


def interior_sets(
    unary: Float[Array, "n"],
    pairwise: Float[Array, "n n"],
    cap: Float[Array, "n"],
    fallback: Float[Array, "n"],
) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """A nearly optimal point, and its sets: -1 at zero, 1 at the cap, 0 free.

    `fallback` is returned where there is no inside (the caps sum to 1).
    """
    n = len(unary)
    size = jnp.maximum(jnp.diagonal(pairwise).max(), unary.max() - unary.min())
    size = jnp.maximum(size, 1e-300)
    a, u = pairwise / size, (unary - unary.mean()) / size
    live = cap > 0  # a task that may have no weight takes no part
    bound = live & (cap < 1)
    # Proportional to the caps is strictly inside them, as they sum to more than 1.
    x = jnp.where(live, cap / jnp.maximum(cap.sum(), 1e-300), 0)

    def gaps(x):
        return jnp.where(live, x, 1), jnp.where(bound, cap - x, 1)

    def step(carry):
        x, low, high, nu, _, k = carry
        above, below = gaps(x)
        dual = jnp.where(live, a @ x - u + nu - low + high, 0)
        count = live.sum() + bound.sum()
        mean = (jnp.sum(above * low * live) + jnp.sum(below * high * bound)) / count
        matrix = jnp.where(live[:, None] & live[None, :], a, 0)
        matrix = matrix + jnp.diag(jnp.where(live, low / above + high / below, 1))
        factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
        ones = jax.scipy.linalg.cho_solve((factor, True), live.astype(x.dtype))

        def newton(comp_low, comp_high):
            """The step that makes above * low = comp_low and below * high = comp_high."""
            right = -dual - low + high + comp_low / above - comp_high / below
            y = jax.scipy.linalg.cho_solve((factor, True), jnp.where(live, right, 0))
            d_nu = (y.sum() + x.sum() - 1) / ones.sum()
            dx = y - d_nu * ones
            d_low = jnp.where(live, (comp_low - low * dx) / above - low, 0)
            d_high = jnp.where(bound, (comp_high + high * dx) / below - high, 0)
            return dx, d_low, d_high, d_nu

        def longest(value, change, where):
            ratio = jnp.where(where & (change < 0), -value / jnp.minimum(change, -1e-300), jnp.inf)
            return ratio.min()

        def reach(dx, d_low, d_high):
            primal = jnp.minimum(longest(above, dx, live), longest(below, -dx, bound))
            return primal, jnp.minimum(longest(low, d_low, live), longest(high, d_high, bound))

        zero = jnp.zeros_like(x)
        dx, d_low, d_high, _ = newton(zero, zero)
        primal, adjoint = (jnp.minimum(1, t) for t in reach(dx, d_low, d_high))
        after = jnp.sum((above + primal * dx) * (low + adjoint * d_low) * live)
        after += jnp.sum((below - primal * dx) * (high + adjoint * d_high) * bound)
        aim = mean * (jnp.maximum(after / count, 0) / jnp.maximum(mean, 1e-300)) ** 3
        dx, d_low, d_high, d_nu = newton(
            jnp.where(live, aim - dx * d_low, 0), jnp.where(bound, aim + dx * d_high, 0)
        )
        # One length for both: primal and dual are coupled through A.
        t = jnp.minimum(1, 0.995 * jnp.minimum(*reach(dx, d_low, d_high)))
        new = (x + t * dx, low + t * d_low, high + t * d_high, nu + t * d_nu)
        sane = jnp.isfinite(new[0]).all() & (t > 1e-12)
        new = jax.tree.map(lambda a, b: jnp.where(sane, a, b), new, (x, low, high, nu))
        return *new, sane & (mean > 1e-15), k + 1

    start = (x, live.astype(x.dtype), bound.astype(x.dtype), jnp.zeros(()), jnp.array(True), 0)
    keep_on = jax.lax.while_loop(lambda c: c[4] & (c[5] < ROUNDS), step, start)
    x, low, high, *_ = keep_on
    above, below = gaps(x)
    sets = jnp.where(~live | (above < low), -1, jnp.where(bound & (below < high), 1, 0))
    sets = jnp.where((sets == 0).any(), sets, sets.at[jnp.argmax(x)].set(0))
    roomy = cap.sum() > 1 + 4 * n * jnp.finfo(x.dtype).eps
    return jnp.where(roomy, x, fallback), sets
