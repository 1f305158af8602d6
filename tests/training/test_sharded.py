"""Every layout gives the loss curve of one device, and shards what should be sharded."""

import contextlib
import dataclasses
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import init_lora, init_params, logical_axes, lora_logical_axes
from taskpgm.models.sharding import shardings_of
from taskpgm.training import metrics
from taskpgm.training.checkpoint import abstract, restore_tree, save_tree
from taskpgm.training.loop import fit
from taskpgm.training.mesh import make_mesh, put_batch
from taskpgm.training.optimizer import make_optimizer
from taskpgm.training.state import create_state, init_sharded
from taskpgm.training.step import make_train_step

pytestmark = pytest.mark.slow

STEPS = 20
OPTIMIZER = make_optimizer({"lr": 3e-3, "warmup": 0.1})


def step_of(config, state):
    """Compiled once for all tests whose states have the same shardings."""
    return make_train_step(config, OPTIMIZER, state, chunk=8)


def full(config, params):
    host = jax.tree.map(np.asarray, params)
    return create_state(OPTIMIZER, host, axes=logical_axes(config))


def curve(step, state, frozen, batches, key, total):
    losses = []
    for batch in batches:
        state, metrics = step(state, frozen, batch, key, total)
        losses.append(metrics["loss"])
    return np.asarray(losses), state


@contextlib.contextmanager
def watched():
    """Collects, at every return of a Python function, the bytes that one device holds of each new
    array: so an array that is made whole first and moved afterwards is noticed. Tests that use it
    come first, while there are few arrays to look through."""
    before, seen = {id(x) for x in jax.live_arrays()}, set()

    def look(frame, event, _):
        if event == "return":
            for x in jax.live_arrays():
                if id(x) not in before:
                    held = x.sharding.shard_shape(x.shape)
                    seen.add(int(np.prod(held)) * x.dtype.itemsize)

    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(None)


def test_optimizer_state_is_never_made_whole(tiny):
    """Each moment has its parameter's sharding from the moment that it is created."""
    make, axes = partial(init_params, tiny), logical_axes(tiny)
    with jax.set_mesh(make_mesh({"fsdp": 8})):
        with watched() as seen:
            params = init_sharded(make, jax.random.key(0), axes=axes)
        largest = max(x.nbytes for x in jax.tree.leaves(params))
        assert max(seen) == largest // 8
        with watched() as seen:
            state = create_state(OPTIMIZER, params)
        assert max(seen) == largest // 8
        adam = state.opt_state[1]
        for moment in (adam.mu, adam.nu):
            same = jax.tree.map(lambda m, p: m.sharding == p.sharding, moment, state.trainable)
            assert all(jax.tree.leaves(same))
        # From the host as well, shard by shard.
        host = jax.tree.map(np.asarray, params)
        with watched() as seen:
            create_state(OPTIMIZER, host, axes=axes)
        assert max(seen) == largest // 8


def test_a_checkpoint_is_restored_shard_by_shard(tiny, make_params, tmp_path):
    params = make_params()
    save_tree(tmp_path / "a", params)
    with jax.set_mesh(make_mesh({"fsdp": 8})):
        like = jax.tree.map(abstract, full(tiny, params).trainable)
    with watched() as seen:
        restored = restore_tree(tmp_path / "a", like)
    assert max(seen) == max(x.nbytes for x in jax.tree.leaves(restored)) // 8
    jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.fixture(scope="module")
def alone(tiny, make_params, make_batch):
    """The curve and final weights of one device."""
    state = create_state(OPTIMIZER, make_params())
    step = make_train_step(tiny, OPTIMIZER, state, chunk=32)
    batches = [make_batch(k, rows=8) for k in range(STEPS)]
    return curve(step, state, None, batches, jax.random.key(1), jnp.int32(STEPS))


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 2, "tensor": 2, "data": 2}], ids=str)
def test_curve_equals_one_device(tiny, make_params, make_batch, alone, axes):
    with jax.set_mesh(make_mesh(axes)):
        state = full(tiny, make_params())
        batches = [put_batch(make_batch(k, rows=8)) for k in range(STEPS)]
        args = batches, jax.random.key(1), jnp.int32(STEPS)
        losses, state = curve(step_of(tiny, state), state, None, *args)
    wanted, reference = alone
    assert wanted[-1] < wanted[0] - 0.2
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, state.trainable, reference.trainable)


def test_group_over_tasks_equals_one_device(tiny_lora, make_params, make_batch):
    g = 4
    keys = jax.random.split(jax.random.key(5), g)
    totals = jnp.array([STEPS, 7, 12, STEPS], jnp.int32)
    batches = [
        jax.tree.map(lambda *x: np.stack(x), *[make_batch(10 * k + i) for i in range(g)])
        for k in range(STEPS)
    ]
    config = dataclasses.replace(tiny_lora, lora=dataclasses.replace(tiny_lora.lora, dropout=0.0))
    start = jax.vmap(partial(init_lora, config))
    params = make_params()
    state = create_state(OPTIMIZER, start(keys), group=True)
    wanted, reference = curve(step_of(config, state), state, params, batches, keys, totals)

    lora, axes = jax.tree.map(np.asarray, start(keys)), lora_logical_axes(config)
    with jax.set_mesh(make_mesh({"task": 4, "fsdp": 2})):
        host = jax.tree.map(np.asarray, params)
        params = jax.device_put(host, shardings_of(logical_axes(config), host))
        state = create_state(OPTIMIZER, lora, group=True, axes=axes)
        for leaf in jax.tree.leaves((state.trainable, state.opt_state)):
            if leaf.ndim > 1:  # not the counts
                assert leaf.addressable_shards[0].data.shape[0] == 1
        sharded = [put_batch(batch) for batch in batches]
        losses, state = curve(step_of(config, state), state, params, sharded, keys, totals)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    np.testing.assert_array_equal(state.step, totals)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, state.trainable, reference.trainable)


def collectives(text, kind):
    """(result sizes, whether in a loop) of every collective of this kind in a compiled program."""
    for computation in re.split(r"\n(?=%|ENTRY)", text):
        entry = computation.startswith("ENTRY")
        for results in re.findall(rf"= (.*?) {kind}(?:-start)?\(", computation):
            for shape in re.findall(r"\w+\[([\d,]*)\]", results):  # several, when combined
                yield tuple(int(x) for x in shape.split(",") if x), not entry


def is_matrix(path):
    """Not a norm's scale, nor the optimizer's count of steps: those are everywhere."""
    name = jax.tree_util.keystr(path)
    return "norm" not in name and "count" not in name


def test_parameters_gradients_and_moments_are_sharded(tiny, make_batch):
    # More layers than anything else is long, so that a stack is known by its shape.
    config = dataclasses.replace(tiny, num_layers=5, num_kv_heads=4, vocab_size=80)
    with jax.set_mesh(make_mesh({"fsdp": 8})):
        make = partial(init_params, config)
        params = init_sharded(make, jax.random.key(0), axes=logical_axes(config))
        state = create_state(OPTIMIZER, params)
        step = make_train_step(config, OPTIMIZER, state, chunk=4)
        batch = put_batch(make_batch(0, rows=8))
        compiled = step.lower(state, None, batch, jax.random.key(1), jnp.int32(9)).compile()
    for path, leaf in jax.tree.leaves_with_path((state.trainable, state.opt_state)):
        if is_matrix(path):
            held = leaf.addressable_shards[0].data.size
            assert held * 8 == leaf.size, jax.tree_util.keystr(path)
    moving, metrics = compiled.output_shardings
    for path, sharding in jax.tree.leaves_with_path((moving.trainable, moving.opt_state)):
        if is_matrix(path):
            assert not sharding.is_fully_replicated, jax.tree_util.keystr(path)
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(metrics))

    text = compiled.as_text()
    gathered = list(collectives(text, "all-gather"))
    assert ((32, 64), True) in gathered  # a layer's matrix, in the scan
    assert not any(shape[:1] == (5,) for shape, _ in gathered)  # no stack, in a loop or out of one
    for shape, _ in gathered:  # no activations [8 12 d]: no device sees the whole batch
        assert shape[:2] != (8, 12) or np.prod(shape[2:]) == 1
    # Gradients are reduced layer by layer in the scan, never as a stack.
    reduced = list(collectives(text, "all-reduce")) + list(collectives(text, "reduce-scatter"))
    assert not any(shape[:1] == (5,) for shape, _ in reduced if len(shape) == 3)
    # The unembedding [32 80] is gathered once, and its gradient reduced once, for all chunks.
    for kind in (gathered, reduced):
        once = [looped for shape, looped in kind if sorted(shape)[-2:] == [32, 80]]
        assert once == [False], (kind is gathered, once)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().argument_size_in_bytes < state_bytes / 8 + 8192


def test_a_curve_goes_on_on_another_mesh(tiny, make_params, make_batch, alone, tmp_path):
    """Half of it on one layout, half on another, from the checkpoint between them."""
    options = {"totals": STEPS, "directory": tmp_path, "name": "r", "log_every": 1}
    for steps, axes in ((STEPS // 2, {"fsdp": 8}), (STEPS, {"tensor": 4, "data": 2})):
        with jax.set_mesh(make_mesh(axes)):
            state = full(tiny, make_params())
            step = step_of(tiny, state)
            state = fit(step, state, partial(make_batch, rows=8), steps=steps, **options)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    wanted, reference = alone
    np.testing.assert_allclose([row["loss"] for row in rows], wanted, rtol=1e-4)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, state.trainable, reference.trainable)
