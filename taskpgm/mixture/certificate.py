"""How far a mixture can be from the best one: the duality gap, without knowing the best one."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def least_feasible(cost: Float[Array, "n"], cap: Float[Array, "n"]) -> Float[Array, "n"]:
    """The v in {0 <= v <= cap, sum v = 1} with the least cost'v: fill the cheapest first."""
    order = jnp.argsort(cost)
    filled = jnp.minimum(cap, 1.0)[order]
    before = jnp.cumsum(filled) - filled
    return jnp.zeros_like(filled).at[order].set(jnp.clip(1 - before, 0, filled))


def duality_gap(
    gradient: Float[Array, "n"], weights: Float[Array, "n"], cap: Float[Array, "n"]
) -> Float[Array, ""]:
    """max over feasible v of gradient'(weights - v), which bounds E(weights) - E* by convexity.

    Source: Frank and Wolfe (1956); Jaggi (2013). Same units as the energy.
    """
    # A constant in the gradient changes nothing; without it, nothing large cancels.
    centred = gradient - jnp.sum(gradient * weights)
    return jnp.maximum(jnp.sum(centred * (weights - least_feasible(centred, cap))), 0.0)
