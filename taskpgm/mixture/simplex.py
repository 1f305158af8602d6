"""Euclidean projection onto the simplex and the capped simplex, by a safeguarded Newton search.

The projection is clip(y - theta, 0, cap) with the theta that makes it sum to 1. That sum is
piecewise linear in theta, so Newton's method finds theta after a few passes over y, without a sort.

Sources: Michelot (1986), "A finite algorithm for finding the projection of a point onto the
canonical simplex of R^n"; Cominetti, Mascarenhas and Silva (2014) for the capped case.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from taskpgm.mixture.inputs import AnyArray, ArrayLike, as_float64, is_traced

STEPS = 100  # of Newton and of bisection each: more than any float32 or float64 input needs


def project_simplex(
    y: Annotated[ArrayLike, "n"], cap: Annotated[ArrayLike, "n"] | None = None
) -> Float[AnyArray, "n"]:
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

    >>> project_simplex([1.0, 0.6, -2.0])
    array([0.7, 0.3, 0. ])
    >>> project_simplex([1.0, 0.6, -2.0], cap=0.5)
    array([0.5, 0.5, 0. ])
    """
    if isinstance(y, jax.Array) or is_traced(y, cap):
        point = jnp.asarray(y)
        point = point if jnp.issubdtype(point.dtype, jnp.floating) else point.astype(float)
        if not is_traced(point):
            as_float64(point, "y")
        return _checked(point, cap)
    with jax.enable_x64(True):
        return np.asarray(_checked(jnp.asarray(as_float64(y, "y")), cap))


def check_caps(cap: Annotated[ArrayLike, "*b n"], tolerance: float = 1e-12) -> None:
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


def _checked(y: Float[Array, "..."], cap: ArrayLike | None) -> Float[Array, "n"]:
    if y.ndim != 1 or y.size < 1:
        raise ValueError(f"y has shape {y.shape}: it has to be a vector of n >= 1 entries")
    if cap is None:
        return project(y, None)
    if not is_traced(cap):
        check_caps(np.broadcast_to(np.asarray(cap), y.shape), float(4 * jnp.finfo(y.dtype).eps))
    return project(y, jnp.broadcast_to(jnp.asarray(cap, y.dtype), y.shape))


@jax.jit
def project(y: Float[Array, "n"], cap: Float[Array, "n"] | None) -> Float[Array, "n"]:
    """`project_simplex` of checked input.

    p is a linear function of y on each piece, so the piece is searched for without derivatives and
    the formula on it is differentiated.
    """
    # A cap of 1 or more never binds; a finite stand-in keeps infinity out of the arithmetic.
    limit = jnp.full_like(y, 2) if cap is None else jnp.clip(cap, 0, 2)
    fixed, held = jax.lax.stop_gradient(y), jax.lax.stop_gradient(limit)
    # theta is at most 1 below `top`, so nothing is lost to rounding however large y is, and
    # entries 4 away are at a bound for certain.
    top = fixed.max() if cap is None else _coarse(fixed, held)
    near = jnp.clip(fixed - top, -4, 4)
    theta = _newton(near, held)
    at_cap = near - theta >= held
    free = (near > theta) & ~at_cap
    centre = jnp.max(jnp.where(free, fixed, -jnp.inf))
    offset = jnp.where(free, y - jnp.where(free, centre, 0), 0)
    rest = 1 - jnp.sum(jnp.where(at_cap, limit, 0))
    shift = (rest - jnp.sum(offset)) / jnp.maximum(free.sum(), 1)
    p = jnp.where(at_cap, limit, jnp.where(free, jnp.clip(offset + shift, 0, limit), 0))
    feasible = held.sum() >= 1 - 4 * jnp.finfo(y.dtype).eps * y.size
    return jnp.where(feasible, p, jnp.nan)


def _coarse(y: Float[Array, "n"], cap: Float[Array, "n"]) -> Float[Array, ""]:
    """A number at most 1 above theta, by bisection: in floats of y's size at least the next one."""

    def halve(carry: tuple) -> tuple:
        low, high, _, k = carry
        middle = low + (high - low) / 2
        above = jnp.clip(y - middle, 0, cap).sum() >= 1
        stuck = (middle <= low) | (middle >= high)
        return jnp.where(above, middle, low), jnp.where(above, high, middle), stuck, k + 1

    def wide(carry: tuple) -> Array:
        low, high, stuck, k = carry
        return (high - low > 1) & ~stuck & (k < 3 * STEPS)

    start = ((y - cap).min(), y.max(), jnp.array(False), 0)
    return jax.lax.while_loop(wide, halve, start)[1]


def _newton(near: Float[Array, "n"], cap: Float[Array, "n"]) -> Float[Array, ""]:
    """theta in [-1, 0]: Newton's method on the sum, within a bracket that only shrinks."""
    epsilon = jnp.finfo(near.dtype).eps

    def step(carry: tuple) -> tuple:
        low, high, theta, _, k = carry
        over = near - theta
        at_cap = over >= cap
        free = (over > 0) & ~at_cap
        count = free.sum()
        excess = jnp.sum(jnp.where(at_cap, cap, jnp.where(free, over, 0))) - 1
        low, high = jnp.where(excess >= 0, theta, low), jnp.where(excess >= 0, high, theta)
        new = theta + excess / jnp.maximum(count, 1)
        done = (count > 0) & (jnp.abs(new - theta) <= epsilon) | (high - low <= epsilon)
        inside = done | (count > 0) & (new > low) & (new < high)
        new = jnp.where(inside, new, low + (high - low) / 2)
        return low, high, new, done, k + 1

    def under_way(carry: tuple) -> Array:
        return ~carry[3] & (carry[4] < STEPS)

    # From below the steps never overshoot where no cap binds: the sum is convex there.
    low, high = jnp.array(-1, near.dtype), jnp.array(0, near.dtype)
    return jax.lax.while_loop(under_way, step, (low, high, low, jnp.array(False), 0))[2]
