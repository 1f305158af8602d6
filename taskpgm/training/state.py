"""What a run carries from step to step, created in the shards that it is trained in."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from taskpgm.models.sharding import shardings_of
from taskpgm.training.mesh import place, stacked
from taskpgm.training.optimizer import Optimizer

Tree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and all that a checkpoint holds. With a group of g tasks
    every array has a leading axis g."""

    # Of arrays, or of what stands for them: shardings, shapes.
    step: Tree  # int32, updates made; a task that has ended counts no more
    trainable: Tree  # an adapter, or the params
    opt_state: Tree


def replicated(sharding: Sharding) -> Sharding:
    """Whole on every device of `sharding`."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def in_float32(tree: Tree) -> Tree:
    """Gradients and moments are float32 whatever the parameters are."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def create_state(
    optimizer: Optimizer, trainable: Tree, *, group: bool = False, axes: Tree | None = None
) -> TrainState:
    """A state at step 0.

    Args:
      trainable: params or adapters, arrays of jax or numpy; with `group`, a leading axis of tasks.
      axes: logical axes of one task's `trainable` (`models.logical_axes` or
        `models.lora_logical_axes`): it is put on the mesh in force by them, shard by shard from
        the host if it is there. Without them it stays where it is. The optimizer's moments are
        created in the same shards, never whole.
    """
    if axes is not None:
        where = shardings_of(stacked(axes) if group else axes, trainable)
        trainable = jax.tree.map(place, trainable, where)
    # Bound to their devices from the start: arrays that are not, and become so by the first step,
    # would have the second step compiled anew.
    trainable = jax.tree.map(jnp.asarray, trainable)
    trainable = jax.tree.map(lambda x: jax.device_put(x, x.sharding), trainable)

    def init(trainable: Tree) -> Tree:
        return optimizer.transform.init(in_float32(trainable))

    init = jax.vmap(init) if group else init
    shapes = jax.eval_shape(init, trainable)
    first = jax.tree.leaves(trainable)[0]
    step = jnp.zeros(first.shape[:1] if group else (), jnp.int32, device=replicated(first.sharding))
    # A moment lies as its parameter does, a count everywhere.
    shardings = optax.tree_map_params(
        optimizer.transform.init,
        lambda _, parameter: parameter.sharding,
        shapes,
        trainable,
        transform_non_params=lambda _: replicated(first.sharding),
    )
    opt_state = jax.jit(init, out_shardings=shardings)(trainable)
    return TrainState(step, trainable, opt_state)


def init_sharded(init: Callable[..., Tree], *args: Any, axes: Tree) -> Tree:
    """init(*args) made by one program whose outputs are sharded by `axes` (a tree of logical axes)
    over the mesh in force: no device ever holds an array whole that is not to stay whole there."""
    shardings = shardings_of(axes, jax.eval_shape(init, *args))
    return jax.jit(init, out_shardings=shardings)(*args)


def unstack(group: Tree, axes: Tree) -> Iterator[Tree]:
    """Splits what a group has trained into tasks. Each task's arrays are sharded over the mesh in
    force by `axes`, the logical axes of one task's arrays."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), group)
    take = jax.jit(
        lambda tree, i: jax.tree.map(lambda x: x[i], tree), out_shardings=shardings_of(axes, shapes)
    )
    for i in range(len(jax.tree.leaves(group)[0])):
        yield take(group, i)
