"""Pallas kernels cannot be partitioned by XLA: over a mesh they are wrapped in `shard_map`."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int


def shard_over_batch_and_heads(
    attend: Callable[..., Array],
    spec: PartitionSpec,
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    *segment_ids: Int[Array, "b _"],
) -> Float[Array, "b t h d"]:
    """`attend(q, k, v, *segment_ids)`, each device of the mesh in force on its rows and heads.

    Args:
      spec: how q, k and v lie on the mesh; only their first and third axes may be split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attend(q, k, v, *segment_ids)
    by_rows = PartitionSpec(spec[0], None)
    return jax.shard_map(
        attend,
        in_specs=(spec,) * 3 + (by_rows,) * len(segment_ids),
        out_specs=spec,
        check_vma=False,
    )(q, k, v, *segment_ids)
