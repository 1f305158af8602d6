"""The training step: one model, or one model per task side by side, in one compiled program.

The gradient is that of the mean loss per scored token of the whole batch. The number of scored
tokens is known before the first forward pass, so every micro-batch is divided by the batch's number
and not by its own: k micro-batches give the gradient of one large batch.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from jaxtyping import Array, Float

from taskpgm.models import Decoder, DecoderConfig, trained_variables, unembedding
from taskpgm.models.sharding import RULES, constrain, num_shards
from taskpgm.training.loss import cross_entropy
from taskpgm.training.optimizer import Optimizer
from taskpgm.training.state import TrainState, in_float32, replicated

Tree = Any
Batch = Mapping[str, Array]
Metrics = dict[str, Array]
Step = Callable[[TrainState, Tree, Batch, Array, Array], tuple[TrainState, Metrics]]

ON_A_CPU = (1, 2, 3)  # tasks of a group that compute at once there
TASKS = "tasks"  # name of the vmapped axis of a group


def make_train_step(
    config: DecoderConfig,
    optimizer: Optimizer,
    state: TrainState,
    *,
    accumulate: int = 1,
    chunk: int = 1024,
) -> Step:
    """The jitted step(state, frozen, batch, key, total) -> (state, metrics) of states like `state`.

    It trains an adapter beside frozen params where the config has `lora`, else the params. The
    state is donated and comes back sharded as `state` is; `frozen` is not donated, so that many
    runs may share a base. Call it under the mesh that the state was created on. States that lie
    alike share a program.

    A state of `create_state(..., group=True)` has g tasks side by side: batch [g b t], key [g] and
    total [g], the frozen base once. Clipping is per task. A task at its own total makes no more
    updates.

    Args:
      accumulate: micro-batches per step; must divide the batch's rows.
      chunk: rows of logits alive at a time on one device, all its tasks of a group together.

    The step's arguments: `frozen` is the params beside an adapter, else None; `batch` has tokens,
    targets, weights, positions, segment_ids of [b t]; `key` is the run's random key, from which
    dropout takes fold_in(key, step), so that a task's randomness depends on nothing but its own
    key; `total` is the number of steps of the schedule.
    Metrics, float32: loss (nats per scored token), tokens (sum of the weights), grad_norm (before
    clipping), lr; of [g] with a group.

    Raises:
      ValueError: when called with rows that `accumulate` does not divide.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    return _jitted(config, optimizer, accumulate, chunk, state.step.ndim > 0, structure, *leaves)


@lru_cache(maxsize=64)
def _jitted(
    config: DecoderConfig,
    optimizer: Optimizer,
    accumulate: int,
    chunk: int,
    group: bool,
    structure: Any,  # a jax.tree_util.PyTreeDef
    *shardings: Sharding,
) -> Step:
    step = partial(_step, config.side_by_side if group else config, optimizer, accumulate)
    out = jax.tree.unflatten(structure, shardings), replicated(shardings[0])
    return jax.jit(
        partial(_side_by_side, step, chunk) if group else partial(step, chunk=chunk),
        donate_argnums=0,
        out_shardings=out,
    )


def _side_by_side(
    step: Callable,
    chunk: int,
    state: TrainState,
    frozen: Tree,
    batch: Batch,
    key: Array,
    total: Array,
) -> tuple[TrainState, Metrics]:
    """`step` of every task of a group, `tasks_at_once` of them at a time."""
    tasks, mesh = state.step.shape[0], jax.sharding.get_abstract_mesh()
    shards = num_shards("task", tasks)
    side = tasks_at_once(tasks, 1 if mesh.empty else mesh.size)
    each = jax.vmap(
        # The tasks that share a device share its chunk.
        partial(step, chunk=max(1, chunk // min(tasks // shards, side)), axis_name=TASKS),
        in_axes=(0, None, 0, 0, 0),
        axis_name=TASKS,
        # Constraints inside the model are about one task; the tasks are split as the batch is.
        spmd_axis_name=RULES["task"] if shards > 1 else None,
    )
    if side == tasks:
        return each(state, frozen, batch, key, total)

    def some(k: Array, tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, k * side, side), tree)

    def body(k: Array, done: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        part, rest = some(k, done[0]), some(k, (batch, key, total))
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, k * side, 0),
            done,
            each(part, frozen, *rest),
        )

    _, metrics = jax.eval_shape(each, state, frozen, batch, key, total)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
    return jax.lax.fori_loop(0, tasks // side, body, (state, zeros))


def tasks_at_once(tasks: int, devices: int) -> int:
    """How many tasks of a group compute at once; the others follow in the same program.

    All of them, but on a single CPU: its cores are full with the products of one task, and those
    of adapters, thin and batched over many, are slower than one after the other. A few at a time
    share what is read of the base.
    """
    if devices > 1 or jax.default_backend() != "cpu":
        return tasks
    return max(size for size in ON_A_CPU if tasks % size == 0)


def _step(
    config: DecoderConfig,
    optimizer: Optimizer,
    accumulate: int,
    state: TrainState,
    frozen: Tree,
    batch: Batch,
    key: Array,
    total: Array,
    *,
    chunk: int,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of one model, which may be a member of a `vmap` over `axis_name`."""
    key = jax.random.fold_in(key, state.step)
    tokens = jnp.sum(batch["weights"], dtype=jnp.float32)
    scale = 1.0 / jnp.where(tokens > 0, tokens, 1.0)

    def loss_and_gradient(batch: Batch, key: Array) -> tuple[Array, Tree]:
        def loss(trainable: Tree) -> Float[Array, ""]:
            variables = trained_variables(config, trainable, frozen)
            return scale * sum_nll(config, variables, batch, key, chunk, axis_name)

        return jax.value_and_grad(loss)(state.trainable)

    loss, gradient = _accumulated(loss_and_gradient, batch, key, accumulate)
    gradient = in_float32(gradient)
    direction, opt_state = optimizer.transform.update(gradient, state.opt_state, state.trainable)
    rate = optimizer.learning_rate(state.step, total)
    trainable = jax.tree.map(
        lambda p, d: (p - rate * d).astype(p.dtype), state.trainable, direction
    )
    updated = TrainState(state.step + 1, trainable, opt_state)
    # A task past its end keeps its weights and moments; nothing of it moves.
    updated = jax.tree.map(lambda new, old: jnp.where(state.step < total, new, old), updated, state)
    norm = optax.tree.norm(gradient)
    return updated, {"loss": loss, "tokens": tokens, "grad_norm": norm, "lr": rate}


def sum_nll(
    config: DecoderConfig,
    variables: Mapping[str, Tree],
    batch: Batch,
    key: Array,
    chunk: int,
    axis_name: str | None,
) -> Float[Array, ""]:
    """Nats of all scored tokens, summed."""
    hidden: Any = Decoder(config).apply(
        variables,
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        deterministic=False,
        rngs={"dropout": key},
        method="hidden",
    )
    matrix = unembedding(config, variables["params"]).astype(hidden.dtype)
    # Gathered once, not for every chunk of the loss; its vocabulary stays split.
    matrix = constrain(matrix, (None, "vocab"))
    shards = num_shards("batch", batch["tokens"].shape[0])
    nll, _ = cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        matrix,
        batch["targets"].reshape(-1),
        batch["weights"].reshape(-1),
        chunk=chunk * shards,
        shards=shards,
        axis_name=axis_name,
    )
    return nll


def _accumulated(
    loss_and_gradient: Callable[[Batch, Array], tuple[Array, Tree]],
    batch: Batch,
    key: Array,
    count: int,
) -> tuple[Array, Tree]:
    """The sums of (loss, gradient) over `count` micro-batches."""
    if count == 1:
        return loss_and_gradient(batch, key)
    rows = batch["tokens"].shape[0]
    if rows % count:
        raise ValueError(f"train step: accumulate {count} does not divide the {rows} rows")
    # Micro-batch i takes rows i, i + count, ...: a batch sharded by rows stays where it is.
    batch = {name: x.reshape(rows // count, count, *x.shape[1:]) for name, x in batch.items()}

    def body(total, index):
        part = {
            name: jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)
            for name, x in batch.items()
        }
        loss, gradient = loss_and_gradient(part, jax.random.fold_in(key, index))
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (loss, gradient)), None

    shapes = jax.eval_shape(loss_and_gradient, {name: x[:, 0] for name, x in batch.items()}, key)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(body, start, jnp.arange(count))[0]
