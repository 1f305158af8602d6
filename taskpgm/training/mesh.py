"""The device mesh, and one table from the names of array axes to the mesh axes that shard them."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("task", "data", "fsdp", "tensor")
Axes = tuple[str | None, ...]
MeshAxes = str | tuple[str, ...] | None


def make_mesh(axes: Mapping[str, int] | None = None, devices=None) -> Mesh:
    """A mesh with the axes task, data, fsdp and tensor, in this order.

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


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Which mesh axes shard a logical axis. Fields are the names used by `models.logical_axes`
    and by batches; None is never sharded. Change a layout with `dataclasses.replace`."""

    task: MeshAxes = "task"
    batch: MeshAxes = ("data", "fsdp")
    length: MeshAxes = None
    layers: MeshAxes = None
    vocab: MeshAxes = "tensor"
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"

    def spec(self, axes: Axes) -> PartitionSpec:
        """The PartitionSpec of an array whose axes have these logical names (None: unnamed)."""
        known = {field.name for field in dataclasses.fields(self)}
        unknown = [name for name in axes if name is not None and name not in known]
        if unknown:
            raise ValueError(f"sharding: no rule for the axis {unknown[0]!r} of {axes}")
        return PartitionSpec(*(None if name is None else getattr(self, name) for name in axes))

    def sharding(self, mesh: Mesh, axes: Axes, shape: tuple[int, ...] | None = None):
        """The NamedSharding on `mesh`. With `shape`, an axis that does not divide evenly is kept
        whole: two key/value heads on a tensor axis of four, or a vocabulary of 50257."""
        spec = self.spec(axes)
        if shape is not None:
            spec = PartitionSpec(
                *(
                    names if size % _size(mesh, names) == 0 else None
                    for names, size in zip(spec, shape, strict=True)
                )
            )
        return NamedSharding(mesh, spec)

    def shardings(self, mesh: Mesh, tree_of_axes: Any, shapes: Any = None) -> Any:
        """`sharding` over a pytree whose leaves are tuples of logical names. `shapes`: a like tree
        of anything with a .shape."""
        if shapes is None:
            return jax.tree.map(partial(self.sharding, mesh), tree_of_axes, is_leaf=is_axes)
        return jax.tree.map(
            lambda axes, like: self.sharding(mesh, axes, like.shape),
            tree_of_axes,
            shapes,
            is_leaf=is_axes,
        )


def is_axes(x: Any) -> bool:
    """Whether x is a leaf of a tree of logical axes: a plain tuple of names."""
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def stacked(tree_of_axes: Any, name: str = "task") -> Any:
    """The tree of axes with one more axis in front of every leaf."""
    return jax.tree.map(lambda axes: (name, *axes), tree_of_axes, is_leaf=is_axes)


def _size(mesh: Mesh, names: MeshAxes) -> int:
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(mesh.shape[name] for name in names)


def place(x: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """x in the shards of `sharding`. A numpy array is one that every process has whole: each puts
    the shards of its own devices, whatever part of the mesh they are."""
    if isinstance(x, np.ndarray):
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
    return jax.device_put(x, sharding)


def put_batch(
    batch: Mapping[str, np.ndarray],
    mesh: Mesh,
    rules: ShardingRules | None = None,
    *,
    group: bool = False,
) -> dict[str, jax.Array]:
    """Puts a global batch, the same on all processes, on the mesh: [b t] (with `group`, [g b t])
    split over (data, fsdp), tasks over task."""
    axes = ("task", "batch", "length") if group else ("batch", "length")
    rules = rules or ShardingRules()
    return {
        name: place(np.asarray(x), rules.sharding(mesh, axes, x.shape)) for name, x in batch.items()
    }
