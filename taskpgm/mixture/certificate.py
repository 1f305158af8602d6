"""How far a mixture can be from the best one: the duality gap, without knowing the best one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def least_cost(cost: Float[Array, "n"], cap: Float[Array, "n"]) -> Float[Array, ""]:
    """min of cost'v over {0 <= v <= cap, sum v = 1}: the cheapest are filled first."""
    cost, cap = jax.lax.sort((cost, jnp.minimum(cap, 1.0)), num_keys=1)
    before = jnp.cumsum(cap) - cap
    return jnp.sum(cost * jnp.clip(1 - before, 0, cap))


def duality_gap(
    gradient: Float[Array, "n"], weights: Float[Array, "n"], cap: Float[Array, "n"]
) -> Float[Array, ""]:
    """max over feasible v of gradient'(weights - v), which bounds E(weights) - E* by convexity.

    Source: Frank and Wolfe (1956); Jaggi (2013). Same units as the energy.
    """
    # A constant in the gradient changes nothing; without it, nothing large cancels.
    centred = gradient - jnp.sum(gradient * weights)
    return jnp.maximum(jnp.sum(centred * weights) - least_cost(centred, cap), 0.0)
