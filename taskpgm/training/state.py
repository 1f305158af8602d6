"""What a run carries from step to step, created in the shards that it is trained in."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int

from taskpgm.training.mesh import ShardingRules, place, stacked
from taskpgm.training.optimizer import Optimizer

Tree = Any


@flax.struct.dataclass
class TrainState:
    """What a run is, besides its data: all of it is in a checkpoint but `frozen`.

    With a group of g tasks, `step`, `trainable` and `opt_state` have a leading axis g; `frozen`
    never has one.
    """

    step: Int[Array, ""]  # updates made; a task that has ended counts no more
    trainable: Tree  # params (full) or lora (lora)
    frozen: Tree  # {} (full) or params (lora)
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
    optimizer: Optimizer,
    trainable: Tree,
    frozen: Tree | None = None,
    *,
    group: bool = False,
    mesh: Mesh | None = None,
    axes: Tree | None = None,
    rules: ShardingRules | None = None,
) -> TrainState:
    """A state at step 0.

    Args:
      trainable: params or adapters, arrays of jax or numpy; with `group`, a leading axis of tasks.
      mesh, axes, rules: where `trainable` is to lie: by its logical axes (`models.logical_axes` or
        `models.lora_logical_axes`, without the axis of tasks), shard by shard from the host if it
        is there. Without a mesh it stays where it is. The optimizer's moments are created in the
        same shards, never whole.
    """
    if mesh is not None:
        if axes is None:
            axes = jax.tree.map(lambda x: (None,) * (x.ndim - group), trainable)
        where = (rules or ShardingRules()).shardings(
            mesh, stacked(axes) if group else axes, trainable
        )
        trainable = jax.tree.map(place, trainable, where)
    # Bound to their devices from the start: arrays that are not, and become so by the first step,
    # would have the second step compiled anew.
    trainable = jax.tree.map(jnp.asarray, trainable)
    trainable = jax.tree.map(lambda x: jax.device_put(x, x.sharding), trainable)

    def init(trainable):
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
    return TrainState(step, trainable, {} if frozen is None else frozen, opt_state)


def init_sharded(
    init: Callable[..., Tree],
    *args: Any,
    axes: Tree,
    mesh: Mesh,
    rules: ShardingRules | None = None,
) -> Tree:
    """init(*args) made by one program whose outputs are sharded by `axes` (a tree of logical axes):
    no device ever holds an array whole that is not to stay whole there."""
    shapes = jax.eval_shape(init, *args)
    shardings = (rules or ShardingRules()).shardings(mesh, axes, shapes)
    return jax.jit(init, out_shardings=shardings)(*args)


def unstack(
    group: Tree, mesh: Mesh, axes: Tree, rules: ShardingRules | None = None
) -> Iterator[Tree]:
    """What a group has trained, task by task: each in the shards that `axes`, the logical axes of
    one task's arrays, give it alone."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), group)
    shardings = (rules or ShardingRules()).shardings(mesh, axes, shapes)
    one = jax.jit(lambda tree, i: jax.tree.map(lambda x: x[i], tree), out_shardings=shardings)
    for i in range(len(jax.tree.leaves(group)[0])):
        yield one(group, i)
