"""Pairwise Jensen-Shannon divergence of [n, t, v] log-probabilities: only pairs i < j."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.jit
def mass(log_probs: Float[Array, "n t v"]) -> Float[Array, "n t"]:
    """Sums of the probabilities, float32; NaN where a log-probability is NaN."""
    return jnp.exp(log_probs.astype(jnp.float32)).sum(-1)


@partial(jax.jit)
def pairwise(
    log_probs: Float[Array, "n t v"], weights: Float[Array, "t"]
) -> Float[Array, "p"]:
    """Sum over positions of weights * JSD, nats, float32, for the pairs i < j in row order."""
    probs = jnp.exp(log_probs.astype(jnp.float32)) * weights[:, None]
    i, j = np.triu_indices(log_probs.shape[0], 1)

    def one(pair):
        p, q = probs[pair[0]], probs[pair[1]]
        return term(p, q).sum()

    return jax.lax.map(one, (jnp.asarray(i), jnp.asarray(j)))


def term(p: Float[Array, "*s"], q: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """What one vocabulary entry adds to JSD: (p ln p + q ln q)/2 - m ln m, m = (p + q)/2.

    With d = (p - q)/(p + q) it is m [(1 + d) ln(1 + d) + (1 - d) ln(1 - d)] / 2: every entry adds
    something not negative, so that nothing cancels between entries.
    """
    total = p + q
    d = jnp.abs(p - q) / jnp.maximum(total, 1e-37)
    low = jnp.where(d < 1, (1 - d) * jnp.log1p(-jnp.minimum(d, 1 - 1e-7)), 0.0)
    return 0.25 * total * ((1 + d) * jnp.log1p(d) + low)
