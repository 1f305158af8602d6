"""What goes into the mixture functions and what comes out: one rule for dtypes, one for bad input.

In: a list, a numpy array or a jax array of any real dtype, or a tracer of `jit` / `vmap`. Every
function of this package but `project_simplex` computes in float64, whatever JAX's global default
is, and leaves that default alone.

Out: numpy float64. A float64 `jax.Array` is an awkward thing to hold where x64 is off (the first
operation on it falls back to float32 with a warning); a numpy array is not. Only inside a
transformation, where the values are tracers, does a jax array come back. `vmap` works with x64 off
around it; `jit` has to have it on, and says so.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is a tracer: then shapes are known and values are not."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def read_array(value: Any, name: str) -> Any:
    """`value` as numpy float64, or as a float64 tracer; NaN, infinity and text raise ValueError."""
    if is_traced(value):
        return jnp.asarray(value).astype(jnp.float64)
    try:
        array = np.asarray(value).astype(np.float64, copy=False)
    except (TypeError, ValueError):
        raise ValueError(f"{name} has to be an array of real numbers") from None
    # The sum is finite only if all entries are, and costs less than looking at each.
    if not np.isfinite(array.sum()) and not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} has {array[where]} at index {where}: every entry must be finite")
    return array


def read_vector(value: Any, name: str, size: int | None = None) -> Any:
    """A checked array with its last axis of length `size` (any length >= 1 where None)."""
    array = read_array(value, name)
    if array.ndim < 1 or array.shape[-1] < 1:
        raise ValueError(f"{name} has shape {array.shape}: it needs a last axis of length n >= 1")
    if size is not None and array.shape[-1] != size:
        raise ValueError(f"{name} has {array.shape[-1]} entries where there are {size} tasks")
    return array


def read_symmetric(value: Any, name: str) -> Any:
    """A checked array of symmetric matrices [..., n, n], made exactly symmetric.

    Asymmetry up to 1e-6 of the largest entry is rounding of whoever made it and is averaged out.
    """
    array = read_array(value, name)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 1:
        raise ValueError(f"{name} has shape {array.shape}: it has to be n by n with n >= 1")
    flipped = array.swapaxes(-1, -2)
    if not is_traced(array):
        if np.array_equal(array, flipped):
            return array
        off = float(np.abs(array - flipped).max())
        if off > 1e-6 * float(np.abs(array).max()):
            raise ValueError(f"{name} is not symmetric: mirrored entries differ by {off:.3g}")
    return 0.5 * array + 0.5 * flipped


def in_float64(function: Callable) -> Callable:
    """Run `function` with 64-bit types on for its duration alone; concrete results become numpy.

    `jit` compiles after the function has returned, so there the caller has to turn them on.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if not jax.config.jax_enable_x64 and any(
            map(_is_compiled, jax.tree.leaves((args, kwargs)))
        ):
            raise ValueError(
                f"{function.__name__} under jax.jit needs 64-bit types around the jitted call: "
                "`with jax.enable_x64(True):`"
            )
        with jax.enable_x64(True):
            return jax.tree.map(_to_numpy, function(*args, **kwargs))

    return wrapped


def _is_compiled(leaf: Any) -> bool:
    """Whether `leaf` is a tracer of `jit`; those of vmap and grad alone hold values that exist."""
    value = leaf
    while isinstance(value, jax.core.Tracer):
        value = getattr(value, "val", getattr(value, "primal", None))
    return is_traced(leaf) and not isinstance(value, jax.Array | np.ndarray)


def _to_numpy(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not is_traced(leaf):
        return np.asarray(leaf)[()]
    return leaf
