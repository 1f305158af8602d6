"""A kernel is opaque to the partitioner, so over a mesh it is mapped by hand.

The mesh is that of `jax.set_mesh`, or else the one that the arrays lie on, which their types tell
in the middle of a trace as well.
"""

from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int


def mesh_of(x: Array) -> AbstractMesh:
    """What `x` may be spread over; empty where nothing is known of a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.typeof(x).sharding.mesh if mesh.empty else mesh


def by_rows_and_heads(
    attend: Callable[..., Array],
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    *segment_ids: Int[Array, "b _"],
) -> Float[Array, "b t h d"]:
    """`attend` of all, each device on its share: rows over data and fsdp, heads over tensor,
    whatever of these divides."""
    mesh = mesh_of(q)
    if mesh.empty or mesh.size == 1:
        return attend(q, k, v, *segment_ids)
    rows = _dividing(mesh, ("data", "fsdp"), q.shape[0])
    heads = _dividing(mesh, ("tensor",), k.shape[2])
    wide, narrow = P(rows, None, heads, None), P(rows, None)
    mapped = jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(wide,) * 3 + (narrow,) * len(segment_ids),
        out_specs=wide,
        check_vma=False,
    )
    return mapped(q, k, v, *segment_ids)


def _dividing(mesh: AbstractMesh, names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Those axes of the mesh, if together they divide `size`."""
    names = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    count = 1
    for name in names:
        count *= mesh.shape[name]
    return names if names and size % count == 0 else None
