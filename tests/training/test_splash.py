"""Training steps over a mesh with the TPU's attention kernel, interpreted: the losses of plain
attention, and each device runs the kernel on its own rows, heads and tasks."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from taskpgm.models import init_lora, logical_axes, lora_logical_axes
from taskpgm.models.sharding import shardings_of
from taskpgm.training.mesh import make_mesh, put_batch
from taskpgm.training.optimizer import make_optimizer
from taskpgm.training.state import create_state
from taskpgm.training.step import make_train_step

pytestmark = pytest.mark.slow

STEPS, LENGTH, TASKS = 2, 128, 2
OPTIMIZER = make_optimizer({"lr": 3e-3})


def mapped_by(jaxpr) -> list[tuple[PartitionSpec, ...]]:
    """in_specs of every shard_map of a program; () for a kernel that is in none."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "shard_map":
            found.append(tuple(equation.params["in_specs"]))
            continue
        if equation.primitive.name == "pallas_call":
            found.append(())
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                found += mapped_by(getattr(value, "jaxpr", value))
    return found


def is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


def losses(config, params, batches, mesh, group):
    """([losses of a step], in_specs of the kernel's shard_maps)."""
    with jax.set_mesh(mesh):
        host = jax.tree.map(np.asarray, params)
        params = jax.device_put(host, shardings_of(logical_axes(config), host))
        key, total = jax.random.key(1), jnp.int32(9)
        state, frozen = create_state(OPTIMIZER, params), None
        if group:
            key, total = jax.random.split(key, TASKS), jnp.full(TASKS, 9)
            lora = jax.vmap(partial(init_lora, config))(key)
            axes, frozen = lora_logical_axes(config), params
            state = create_state(OPTIMIZER, lora, group=True, axes=axes)
        step = make_train_step(config, OPTIMIZER, state, chunk=64)
        found = []
        for batch in batches:
            batch = put_batch(batch)
            specs = mapped_by(step.trace(state, frozen, batch, key, total).jaxpr)
            state, values = step(state, frozen, batch, key, total)
            found.append(np.asarray(values["loss"]))
    return np.stack(found), specs


@pytest.mark.parametrize(
    ("group", "axes", "spec"),
    [
        (False, {"data": 2, "fsdp": 2, "tensor": 2}, (("data", "fsdp"), None, "tensor", None)),
        (
            True,
            {"task": 2, "data": 2, "tensor": 2},
            ("task", ("data", "fsdp"), None, "tensor", None),
        ),
    ],
    ids=["one model", "a group"],
)
def test_losses_of_plain_attention(tiny, tiny_lora, make_params, make_batch, group, axes, spec):
    config = dataclasses.replace(tiny_lora if group else tiny, max_position=LENGTH)
    batches = [make_batch(k, rows=4, length=LENGTH) for k in range(STEPS)]
    if group:
        config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, dropout=0.0))
        others = [make_batch(k, rows=4, length=LENGTH) for k in range(10, 10 + STEPS)]
        stack = partial(jax.tree.map, lambda *x: np.stack(x))
        batches = [stack(*both) for both in zip(batches, others, strict=True)]
    alone = make_mesh({"data": 1}, jax.devices()[:1])
    wanted, none = losses(config, make_params(), batches, alone, group)
    splash = dataclasses.replace(config, attention="splash")
    got, maps = losses(splash, make_params(), batches, make_mesh(axes), group)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert not none and maps and all(maps)
    assert any(PartitionSpec(*spec) in specs for specs in maps)
