"""Euclidean projection onto the simplex and the capped simplex, by sorting.

Source: Held, Wolfe and Crowder (1974) for the simplex; the capped case is the same search over
twice as many breakpoints (Wang and Lu, 2015, "Projection onto the capped simplex").
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from taskpgm.mixture.floats import is_traced, read_array

# Any cap of 1 or more never binds; a finite stand-in keeps infinity out of the arithmetic.
_NO_CAP = 2.0


def project_simplex(
    y: Float[Array, "n"], cap: Float[Array, "n"] | None = None
) -> Float[Array, "n"]:
    """The point of {0 <= p <= cap, sum p = 1} nearest to `y`: p = clip(y - theta, 0, cap).

    Works under jit, vmap and grad (the derivative is the exact one, I - 11'/|free| on the free
    entries). A jax array keeps its float dtype; anything else is computed in float64 and comes
    back as numpy. Entries of any finite size are fine: only differences from theta count.

    Args:
      y: the point, ["n"].
      cap: upper bounds in [0, inf), ["n"] or a number; None for the plain simplex.
    Raises:
      ValueError: n < 1, NaN or infinity, or caps that sum to less than 1. Under jit or vmap, where
        values cannot be looked at, infeasible caps give NaN.
    """
    if isinstance(y, jax.Array) or is_traced(y, cap):
        y = jnp.asarray(y)
        y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(float)
        if not is_traced(y):
            read_array(y, "y")
        return _checked_project(y, cap)
    with jax.enable_x64(True):
        return np.asarray(_checked_project(jnp.asarray(read_array(y, "y")), cap))


def _checked_project(y: Float[Array, "n"], cap) -> Float[Array, "n"]:
    if y.ndim != 1 or y.size < 1:
        raise ValueError(f"y has shape {y.shape}: it has to be a vector of n >= 1 entries")
    if cap is None:
        return _project(y, jnp.full_like(y, _NO_CAP))
    if not is_traced(cap):
        check_caps(np.broadcast_to(np.asarray(cap), y.shape), float(4 * jnp.finfo(y.dtype).eps))
    return _project(y, jnp.broadcast_to(jnp.asarray(cap, y.dtype), y.shape))


def check_caps(cap: Float[np.ndarray, "*b n"], tolerance: float = 1e-12) -> None:
    """ValueError unless caps are >= 0 and leave room for a whole mixture (sum >= 1)."""
    cap = np.asarray(cap, np.float64)
    if np.isnan(cap).any() or (cap < 0).any():
        raise ValueError("every cap has to be a number >= 0")
    total = float(np.minimum(cap, 1.0).sum(-1).min())
    if total < 1 - tolerance * cap.shape[-1]:
        raise ValueError(
            f"infeasible caps: they sum to {total:.6g}, less than the 1 that the weights sum to; "
            "raise the caps or lower the budget"
        )


def _search(y: Float[Array, "n"], cap: Float[Array, "n"]) -> Float[Array, "2"]:
    """Neighbouring breakpoints with theta between them: sum clip(y - theta, 0, cap) passes 1."""
    points = jnp.sort(jnp.concatenate([y, y - cap]))

    def narrow(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        above = jnp.clip(y - points[middle], 0, cap).sum() >= 1
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    # The total at theta falls from sum(cap) to 0 over the breakpoints: bisect for where it is 1.
    steps = int(np.ceil(np.log2(2 * y.size))) + 1
    return points[jnp.stack(jax.lax.fori_loop(0, steps, narrow, (0, 2 * y.size - 1)))]


@jax.jit
def _project(y: Float[Array, "n"], cap: Float[Array, "n"]) -> Float[Array, "n"]:
    """`project_simplex` on checked input. p is a linear function of y on each piece, so the piece
    is searched for without derivatives and the formula on it is differentiated."""
    cap = jnp.minimum(cap, _NO_CAP)
    limit = jax.lax.stop_gradient(cap)
    # theta lies within 1 below the upper breakpoint, so a second search around it loses nothing
    # to rounding, however large y is; entries 4 away are at a bound for certain.
    near = jax.lax.stop_gradient(y)
    near = jnp.clip(near - _search(near, limit)[1], -4, 4)
    _, high = _search(near, limit)
    at_cap = near - limit >= high
    free = (near >= high) & ~at_cap
    centre = jnp.max(jnp.where(free, jax.lax.stop_gradient(y), -jnp.inf))
    offset = jnp.where(free, y - jnp.where(free, centre, 0), 0)
    rest = 1 - jnp.sum(jnp.where(at_cap, cap, 0))
    shift = (rest - jnp.sum(offset)) / jnp.maximum(free.sum(), 1)
    p = jnp.where(at_cap, cap, jnp.where(free, jnp.clip(offset + shift, 0, cap), 0))
    feasible = limit.sum() >= 1 - 4 * jnp.finfo(y.dtype).eps * y.size
    return jnp.where(feasible, p, jnp.nan)
