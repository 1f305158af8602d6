"""Keeps activations split by rows, so that it is the weights that are gathered and not the batch.

Left to itself, the partitioner follows the weights: with a weight sharded over its input axis it
would rather split activations by features and gather the whole batch on every device, which is
correct and slow. The decoder knows nothing of meshes, so the constraint is laid on what passes in
and out of its modules.
"""

import contextlib
import math

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec


@contextlib.contextmanager
def kept_by_rows(batch: NamedSharding | None, shape: tuple[int, int]):
    """While open, every array [b t ...] of this `shape` (b, t) that a Flax module takes or returns
    is split over b as `batch` (the sharding of a [... b t] array) says, its other axes being the
    partitioner's choice. Nothing happens without a sharding, or where b does not divide evenly."""
    rows = None if batch is None or len(batch.spec) < 2 else batch.spec[-2]
    names = (rows,) if isinstance(rows, str) else rows or ()
    if not names or shape[0] % math.prod(batch.mesh.shape[name] for name in names):
        yield
        return

    def keep(x):
        if getattr(x, "ndim", 0) < 3 or x.shape[:2] != shape:
            return x
        free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
        spec = PartitionSpec(rows, *free)
        return jax.lax.with_sharding_constraint(x, NamedSharding(batch.mesh, spec))

    def around(method, args, kwargs, _):
        return jax.tree.map(keep, method(*jax.tree.map(keep, args), **kwargs))

    with nn.intercept_methods(around):
        yield
