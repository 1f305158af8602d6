"""Where arrays lie: one table from the names of array axes to axes of the device mesh.

The mesh is the one in force (`jax.set_mesh`); without one everything stays on a single device.
"""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from taskpgm.models.arrays import Array

AxisNames = tuple[Any, ...]  # of an array, one for each axis: a name, None or ANY

ANY = PartitionSpec.UNCONSTRAINED  # the compiler chooses how to split this axis
# Logical axis -> the mesh axes that split it. An axis named None is whole on every device.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "task": "task",
    "batch": ("data", "fsdp"),
    "length": None,
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def num_shards(axis: str, size: int, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Into how many parts the mesh (in force) splits an axis of this name and size.

    An axis that does not divide evenly is not split: two key/value heads over four devices, or a
    vocabulary of 50257.

    Raises:
      ValueError: when no rule has this name.
    """
    if axis not in RULES:
        raise ValueError(f"sharding: no rule for the axis {axis!r}; known: {', '.join(RULES)}")
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    count = math.prod(mesh.shape.get(name, 1) for name in _mesh_axes(axis))
    return count if size % count == 0 else 1


def spec_of(
    axes: AxisNames, shape: tuple[int, ...], mesh: Mesh | AbstractMesh | None = None
) -> PartitionSpec:
    """How an array with these axis names and this shape is split over the mesh (in force)."""

    def split(axis: Any, size: int) -> Any:
        if not isinstance(axis, str):
            return axis
        return RULES[axis] if num_shards(axis, size, mesh) > 1 else None

    return PartitionSpec(*(split(axis, size) for axis, size in zip(axes, shape, strict=True)))


def shardings_of(tree_of_axes: Any, shapes: Any, mesh: Mesh | None = None) -> Any:
    """The sharding of each array of a tree on the mesh (in force); None where there is no mesh.

    Args:
      tree_of_axes: its leaves are tuples of axis names.
      shapes: a like tree of anything with a `.shape`.
    """
    mesh = jax.sharding.get_mesh() if mesh is None else mesh

    def sharding(axes: AxisNames, like: Any) -> NamedSharding | None:
        return None if mesh.empty else NamedSharding(mesh, spec_of(axes, like.shape, mesh))

    return jax.tree.map(sharding, tree_of_axes, shapes, is_leaf=is_axes)


def constrain(x: Shaped[Array, "..."], axes: AxisNames) -> Shaped[Array, "..."]:
    """x inside a compiled program, laid out by the names of its axes; ANY is left to the compiler.

    Does what `flax.linen.with_logical_constraint` does, for sizes that do not divide too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(axes, x.shape))


def is_axes(x: Any) -> bool:
    """Whether x is a leaf of a tree of axis names: a plain tuple of them."""
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def _mesh_axes(axis: str) -> tuple[str, ...]:
    names = RULES[axis]
    return (names,) if isinstance(names, str) else names or ()
