"""The device mesh, and how arrays of the host are placed on it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, Sharding

from taskpgm.models.sharding import is_axes, shardings_of

AXES = ("task", "data", "fsdp", "tensor")


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes task, data, fsdp and tensor, in this order; `jax.set_mesh` uses it.

    Args:
      axes: sizes by name; a missing axis has size 1. One of them may be -1: what is left. With
        none given, all devices go to `data`.

    Raises:
      ValueError: for an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    given = dict(axes) if axes else {"data": -1}
    unknown = sorted(set(given) - set(AXES))
    if unknown:
        raise ValueError(f"mesh: unknown axis {unknown[0]!r}; known: {', '.join(AXES)}")
    sizes = [int(given.get(name, 1)) for name in AXES]
    free = [i for i, size in enumerate(sizes) if size == -1]
    if len(free) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh: sizes {given} must be positive, at most one of them -1")
    if free:
        sizes[free[0]] = len(devices) // math.prod(size for size in sizes if size != -1)
    if math.prod(sizes) != len(devices):
        raise ValueError(f"mesh: {given} does not multiply to the {len(devices)} devices there are")
    # Explicit axis types, because the default is not the same in every jax version.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def stacked(tree_of_axes: Any, name: str = "task") -> Any:
    """The tree of axis names with one more axis in front of every leaf."""
    return jax.tree.map(lambda axes: (name, *axes), tree_of_axes, is_leaf=is_axes)


def place(x: np.ndarray | jax.Array, sharding: Sharding | None) -> jax.Array:
    """x in the shards of `sharding`; None is the default device. A numpy array is one that every
    process has whole: each puts the shards of its own devices, whatever part of the mesh they are.
    """
    if isinstance(x, np.ndarray) and sharding is not None:
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
    return jax.device_put(x, sharding)


def put_batch(
    batch: Mapping[str, np.ndarray | jax.Array], mesh: Mesh | None = None
) -> dict[str, jax.Array]:
    """Puts a global batch, the same on all processes, on the mesh (in force): arrays [b t], or
    [g b t] for a group of tasks, split by rows over (data, fsdp) and by tasks over task."""
    axes = {name: ("task", "batch", "length")[-np.ndim(x) :] for name, x in batch.items()}
    arrays = {name: x if isinstance(x, jax.Array) else np.asarray(x) for name, x in batch.items()}
    return jax.tree.map(place, arrays, shardings_of(axes, arrays, mesh))
