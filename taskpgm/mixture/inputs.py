"""What the mixture functions accept and return: one rule for dtypes, one for bad input.

In: lists, numpy or jax arrays of any real dtype, or tracers of `jit` and `vmap`. Everything but
`project_simplex` computes in float64, whatever JAX's global default is, and leaves that default
alone.

Out: numpy float64, because a float64 `jax.Array` falls back to float32 at the first operation
where x64 is off. Under a transformation a jax array comes back. `vmap` works with x64 off around
it; `jit` needs it on, and an error says so.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# An array of either library: what results are. Tracers are jax arrays.
AnyArray: TypeAlias = jax.Array | np.ndarray
# What arguments may be. `Annotated[ArrayLike, "n n"]` names a shape that the functions below check.
ArrayLike: TypeAlias = jax.Array | np.ndarray | np.number | Sequence | float | int
Function = TypeVar("Function", bound=Callable)


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is a tracer: its shape is known and its values are not."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def as_float64(value: Any, name: str) -> Any:
    """`value` as a numpy float64 array, or as a float64 tracer.

    Raises:
      ValueError: entries that are no real numbers, NaN or infinity; `name` is what the message
        calls the value.
    """
    if is_traced(value):
        return jnp.asarray(value).astype(jnp.float64)
    try:
        array = np.asarray(value).astype(np.float64, copy=False)
    except (TypeError, ValueError):
        raise ValueError(f"{name} has to be an array of real numbers") from None
    # One sum is cheaper than a look at each entry, and finite only if all entries are.
    with np.errstate(all="ignore"):
        total = array.sum()
    if not np.isfinite(total) and not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} has {array[where]} at index {where}: every entry must be finite")
    return array


def as_vector(value: Any, name: str, size: int | None = None) -> Any:
    """`as_float64` with a last axis of `size` entries (of any number >= 1 where None)."""
    array = as_float64(value, name)
    if array.ndim < 1 or array.shape[-1] < 1:
        raise ValueError(f"{name} has shape {array.shape}: it needs a last axis of length n >= 1")
    if size is not None and array.shape[-1] != size:
        raise ValueError(f"{name} has {array.shape[-1]} entries where there are {size} tasks")
    return array


def as_mixture(value: Any, name: str, size: int | None = None) -> Any:
    """`as_vector` of entries >= 0 with sum 1 (to 1e-6), divided by that sum."""
    array = as_vector(value, name, size)
    if is_traced(array):
        return array
    if (array < 0).any() or (np.abs(array.sum(-1) - 1) > 1e-6).any():
        raise ValueError(f"{name} has to be a mixture: entries >= 0 with sum 1")
    return array / array.sum(-1, keepdims=True)


def as_symmetric(value: Any, name: str) -> Any:
    """`as_float64` of square matrices [..., n, n], made exactly symmetric.

    Asymmetry of up to 1e-6 of the largest entry is taken for rounding and averaged out; more is a
    ValueError.
    """
    array = as_float64(value, name)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 1:
        raise ValueError(f"{name} has shape {array.shape}: it has to be n by n with n >= 1")
    mirrored = array.swapaxes(-1, -2)
    if not is_traced(array):
        if np.array_equal(array, mirrored):
            return array
        off = float(np.abs(array - mirrored).max())
        if off > 1e-6 * float(np.abs(array).max()):
            raise ValueError(f"{name} is not symmetric: mirrored entries differ by {off:.3g}")
    return 0.5 * array + 0.5 * mirrored


def in_float64(function: Function) -> Function:
    """Runs `function` with 64-bit types on where its arguments are tracers.

    Without tracers it is plain numpy and needs nothing. `jit` compiles after the function has
    returned, so there the caller has to turn 64-bit types on.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not is_traced(args, kwargs):
            return function(*args, **kwargs)
        # Inside `jit` even a constant is a tracer; inside `vmap` alone it is an array.
        inside_jit = isinstance(jnp.zeros(()), Tracer)
        if inside_jit and not jnp.zeros((), float).dtype == jnp.float64:
            raise ValueError(
                f"{function.__name__} under jax.jit needs 64-bit types around the jitted call: "
                "`with jax.enable_x64(True):`"
            )
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]
