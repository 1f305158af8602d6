"""The training step: one model, or one model per task side by side in one program.

The gradient is that of the mean loss per scored token of the whole batch. The number of scored
tokens is known before the first forward pass, so every micro-batch is divided by the batch's number
and not by its own: k micro-batches give the gradient of one large batch.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array

from taskpgm.models import Decoder, DecoderConfig, trained_variables, unembedding
from taskpgm.training.activations import kept_by_rows
from taskpgm.training.loss import cross_entropy
from taskpgm.training.memory import at_once
from taskpgm.training.mesh import ShardingRules
from taskpgm.training.optimizer import Optimizer
from taskpgm.training.state import TrainState, in_float32, replicated

Tree = Any
Batch = Mapping[str, Array]


def make_train_step(
    config: DecoderConfig,
    optimizer: Optimizer,
    *,
    accumulate: int = 1,
    group: bool = False,
    chunk: int = 1024,
    rules: ShardingRules | None = None,
) -> Callable[[TrainState, Batch, Array, Array], tuple[TrainState, dict[str, Array]]]:
    """The compiled step(state, batch, key, total) -> (state, metrics).

    It trains an adapter beside frozen params where the config has `lora`, else the params.

    What of the state is trained is donated; `frozen` is not, so that many runs may share a base.
    The state comes back sharded as it came, whatever the partitioner would have chosen. The step
    has `.trace(...)` and `.lower(...)`, as a jitted function has.

    Args:
      accumulate: micro-batches per step; must divide the batch's rows.
      group: tasks stand side by side on a leading axis g of the state's trained parts, the batch
        [g b t], key [g] and total [g]; the frozen base is there once. Clipping is per task. A task
        at its own total makes no more updates.
      chunk: rows of logits alive at a time on one device, all its tasks of a group together.
      rules: those that the parameters were placed by.

    The step's arguments: `batch` has tokens, targets, weights, positions, segment_ids of [b t];
    `key` is the run's random key, from which dropout takes fold_in(key, step), so that a task's
    randomness depends on nothing but its own key; `total` is the number of steps of the schedule.
    Metrics, float32: loss (nats per scored token), tokens (sum of the weights), grad_norm (before
    clipping), lr; of [g] with a group.

    Raises:
      ValueError: when called with rows that `accumulate` does not divide.
    """
    loss_and_grad = jax.value_and_grad(partial(_loss, config, rules or ShardingRules()))

    def step(state, frozen, batch, key, total, *, chunk, placed, axis_name=None):
        key = jax.random.fold_in(key, state.step)
        tokens = jnp.sum(batch["weights"], dtype=jnp.float32)
        scale = 1.0 / jnp.where(tokens > 0, tokens, 1.0)
        micro = partial(loss_and_grad, state.trainable, frozen, scale=scale, chunk=chunk)
        micro = partial(micro, placed=placed, axis_name=axis_name)
        loss, gradient = _accumulated(micro, batch, key, accumulate)
        gradient = in_float32(gradient)
        norm = optax.tree.norm(gradient)
        direction, opt_state = optimizer.transform.update(
            gradient, state.opt_state, state.trainable
        )
        rate = optimizer.learning_rate(state.step, total)
        updated = jax.tree.map(
            lambda p, d: (p - rate * d).astype(p.dtype),
            state.trainable,
            direction,
        )
        # A task past its end keeps its weights and moments; nothing of it moves.
        goes_on = state.step < total
        keep = partial(jax.tree.map, lambda new, old: jnp.where(goes_on, new, old))
        state = state.replace(
            step=state.step + goes_on,
            trainable=keep(updated, state.trainable),
            opt_state=keep(opt_state, state.opt_state),
        )
        return state, {"loss": loss, "tokens": tokens, "grad_norm": norm, "lr": rate}

    def grouped(state, frozen, batch, key, total, *, chunk, placed):
        tasks = state.step.shape[0]
        here = tasks // shards(placed, -3)  # tasks that share a device
        side = at_once(tasks, len(placed.device_set) if placed else 1)
        one = partial(step, chunk=max(1, chunk // min(here, side)), placed=placed)
        # Constraints inside the model are about one task; the tasks are split as the batch is.
        axis = placed.spec[0] if placed else None
        each = jax.vmap(
            partial(one, axis_name="group"),
            in_axes=(0, None, 0, 0, 0),
            axis_name="group",
            spmd_axis_name=axis,
        )
        if side == tasks:
            return each(state, frozen, batch, key, total)

        def some(k, tree):
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, k * side, side), tree)

        def body(k, done):
            state, rest = some(k, done[0]), some(k, (batch, key, total))
            return jax.tree.map(
                lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, k * side, 0),
                done,
                each(state, frozen, *rest),
            )

        _, metrics = jax.eval_shape(each, state, frozen, batch, key, total)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        return jax.lax.fori_loop(0, tasks // side, body, (state, zeros))

    return _program(grouped if group else step, chunk)


def _program(step, chunk):
    """`step` for each way that the state and the batch lie on devices, found when it is called."""
    programs = {}

    def find(state, batch):
        moving = state.replace(frozen=None)
        lie = jax.tree.map(lambda x: x.sharding, moving)
        leaves, structure = jax.tree.flatten(lie)
        placed = getattr(batch["tokens"], "sharding", None)
        placed = placed if isinstance(placed, NamedSharding) else None
        there = len(placed.device_set) if placed else 1
        if len(leaves[0].device_set) != there:
            raise ValueError(
                f"train step: the state is on {len(leaves[0].device_set)} devices and the batch on "
                f"{there}: give create_state and put_batch the same mesh"
            )
        case = (structure, *leaves, placed)
        if case not in programs:
            static = {"chunk": chunk * shards(placed, -2), "placed": placed}
            programs[case] = jax.jit(
                partial(step, **static),
                donate_argnums=0,
                out_shardings=(lie, replicated(leaves[0])),
            )
        return programs[case], moving

    def run(state, batch, key, total):
        program, moving = find(state, batch)
        moving, metrics = program(moving, state.frozen, batch, key, total)
        return moving.replace(frozen=state.frozen), metrics

    def trace(state, batch, key, total):
        program, moving = find(state, batch)
        return program.trace(moving, state.frozen, batch, key, total)

    run.trace = trace
    run.lower = lambda *args: trace(*args).lower()
    return run


def shards(placed: NamedSharding | None, axis: int) -> int:
    """Into how many parts the axis of an array (counted from the end) is split."""
    if placed is None or len(placed.spec) < -axis:
        return 1
    names = placed.spec[axis]
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(placed.mesh.shape[name] for name in names)


def _loss(config, rules, trainable, frozen, batch, key, *, scale, chunk, placed, axis_name):
    variables = trained_variables(config, trainable, frozen)
    with kept_by_rows(placed, batch["tokens"].shape):
        hidden = Decoder(config).apply(
            variables,
            batch["tokens"],
            batch["positions"],
            batch["segment_ids"],
            deterministic=False,
            rngs={"dropout": key},
            method="hidden",
        )
    matrix = unembedding(config, variables["params"]).astype(hidden.dtype)
    if placed is not None:
        # Gathered once, not for every chunk of the loss; its vocabulary stays split.
        where = rules.sharding(placed.mesh, (None, "vocab"), matrix.shape)
        matrix = jax.lax.with_sharding_constraint(matrix, where)
    rows = shards(placed, -2)
    nll, _ = cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        matrix,
        batch["targets"].reshape(-1),
        batch["weights"].reshape(-1),
        chunk=chunk,
        shards=rows if batch["tokens"].shape[0] % rows == 0 else 1,
        axis_name=axis_name,
    )
    return nll * scale


def _accumulated(micro, batch, key, count):
    """The sum over `count` micro-batches of micro(batch, key) -> (loss, gradient)."""
    if count == 1:
        return micro(batch, key)
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
        loss, gradient = micro(part, jax.random.fold_in(key, index))
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (loss, gradient)), None

    shapes = jax.eval_shape(micro, {name: x[:, 0] for name, x in batch.items()}, key)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(body, start, jnp.arange(count))[0]
