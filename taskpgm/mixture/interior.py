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
    unary: Float[Array, "n"], pairwise: Float[Array, "n n"], cap: Float[Array, "n"]
) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """A nearly optimal point, and its sets: -1 at zero, 1 at the cap, 0 free (one at least)."""
    n = len(unary)
    size = jnp.maximum(jnp.diagonal(pairwise).max(), unary.max() - unary.min())
    size = jnp.maximum(size, 1e-150)
    a, u = pairwise / size, (unary - unary.mean()) / size
    # Two rows: the bound below and the one above. A task with cap 0 takes no part, and a cap of 1
    # never binds.
    live = cap > 0
    used = jnp.stack([live, live & (cap < 1)])
    sign = jnp.array([[1.0], [-1.0]])
    offset = jnp.stack([jnp.zeros(n), cap])
    count = used.sum()

    def distance(x):
        """To each bound; 1 where there is none."""
        return jnp.where(used, offset + sign * x, 1)

    def step(carry):
        x, dual, nu, _, k = carry
        gap = distance(x)
        mean = jnp.sum(jnp.where(used, gap * dual, 0)) / count
        slope = jnp.where(live, a @ x - u + nu, 0)
        diagonal = jnp.where(live, jnp.sum(dual / gap, 0), 1)
        matrix = jnp.where(live[:, None] & live, a, 0) + jnp.diag(diagonal)
        factor = (jax.lax.linalg.cholesky(matrix, symmetrize_input=False), True)
        ones = jax.scipy.linalg.cho_solve(factor, 1.0 * live)

        def newton(product):
            """The step toward gap * dual = product; how far it goes until either vanishes."""
            right = jnp.where(live, jnp.sum(sign * product / gap, 0) - slope, 0)
            y = jax.scipy.linalg.cho_solve(factor, right)
            d_nu = (y.sum() + x.sum() - 1) / ones.sum()
            dx = y - d_nu * ones
            d_dual = jnp.where(used, (product - dual * sign * dx) / gap - dual, 0)
            value, change = jnp.stack([gap, dual]), jnp.stack([sign * dx + 0 * gap, d_dual])
            shrinks = used & (change < 0)
            reach = jnp.where(shrinks, -value / jnp.minimum(change, -1e-300), jnp.inf).min()
            return dx, d_dual, d_nu, jnp.minimum(reach, 1)

        dx, d_dual, _, reach = newton(jnp.zeros((2, n)))
        after = (gap + reach * sign * dx) * (dual + reach * d_dual)
        after = jnp.sum(jnp.where(used, after, 0)) / count
        aim = mean * (jnp.maximum(after, 0) / jnp.maximum(mean, 1e-300)) ** 3
        dx, d_dual, d_nu, reach = newton(jnp.where(used, aim - sign * dx * d_dual, 0))
        t = 0.995 * reach
        new = x + t * dx, dual + t * d_dual, nu + t * d_nu
        sane = jnp.isfinite(new[0]).all() & (t > 1e-12)
        x, dual, nu = jax.tree.map(lambda a, b: jnp.where(sane, a, b), new, (x, dual, nu))
        return x, dual, nu, sane & (mean > 1e-15), k + 1

    # Proportional to the caps is strictly inside them where they sum to more than 1; where they
    # sum to 1 it is the only point there is, the first step has no length, and it stays.
    x = jnp.where(live, cap / cap.sum(), 0)
    start = (x, 1.0 * used, jnp.zeros(()), jnp.array(True), 0)
    x, dual, *_ = jax.lax.while_loop(lambda c: c[3] & (c[4] < ROUNDS), step, start)
    held = (distance(x) < dual) & used
    sets = jnp.where(~live | held[0], -1, jnp.where(held[1], 1, 0))
    return x, jnp.where((sets == 0).any(), sets, sets.at[jnp.argmax(x)].set(0))
