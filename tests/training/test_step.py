"""The training step: accumulation, groups, frozen weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from taskpgm.models import Decoder, init_lora
from taskpgm.training.optimizer import make_optimizer
from taskpgm.training.step import create_state, make_train_step

SETTINGS = {"lr": 1e-2, "warmup": 0.1, "weight_decay": 0.1, "clip": 1.0}
KEY = jax.random.key(7)


def close(a, b, **tolerance):
    tolerance = {"rtol": 2e-5, "atol": 2e-6} | tolerance
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), a, b)


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


def stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def test_full_step_is_optax_adamw(tiny, make_params, make_batch):
    optimizer = make_optimizer(SETTINGS | {"schedule": "constant", "warmup": 0.0})
    step = make_train_step(tiny, optimizer, chunk=16)
    state = create_state(optimizer, make_params())
    params = make_params()
    mask = jax.tree.map(lambda _: True, params)
    for layer in (params["layers"]["attention_norm"], params["layers"]["mlp_norm"]):
        assert set(layer) == {"scale"}
    mask["layers"]["attention_norm"]["scale"] = mask["layers"]["mlp_norm"]["scale"] = False
    mask["final_norm"]["scale"] = False
    reference = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1, mask=mask)
    )
    moments = reference.init(params)

    @jax.jit
    def plain(params, batch):
        args = batch["tokens"], batch["positions"], batch["segment_ids"]
        logits = Decoder(tiny).apply({"params": params}, *args)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.sum(nll * batch["weights"]) / jnp.sum(batch["weights"])

    for k in range(3):
        batch = make_batch(k)
        state, metrics = step(state, batch, KEY, jnp.int32(3))
        loss, gradient = jax.value_and_grad(plain)(params, batch)
        close(metrics["loss"], loss)
        close(metrics["grad_norm"], optax.global_norm(gradient))
        updates, moments = reference.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
    close(state.trainable, params, atol=2e-5)
    assert int(state.step) == 3


@pytest.mark.parametrize("count", [2, 8])
def test_accumulation_weighs_tokens(tiny, make_params, make_batch, count):
    optimizer = make_optimizer(SETTINGS)
    batch = make_batch(3)
    assert len(set(batch["weights"].sum(1))) > 2  # rows that differ in scored tokens
    results = []
    for accumulate in (1, count):
        step = make_train_step(tiny, optimizer, accumulate=accumulate, chunk=32)
        results.append(step(create_state(optimizer, make_params()), batch, KEY, jnp.int32(10)))
    (one, metrics), (many, accumulated) = results
    close(metrics, accumulated)
    close(one.opt_state, many.opt_state)


def test_accumulation_that_does_not_divide(tiny, make_params, make_batch):
    optimizer = make_optimizer()
    step = make_train_step(tiny, optimizer, accumulate=3)
    with pytest.raises(ValueError, match="accumulate 3 does not divide the 8 rows"):
        step(create_state(optimizer, make_params()), make_batch(), KEY, jnp.int32(1))


def test_a_batch_without_scored_tokens_changes_nothing_but_decay(tiny, make_params, make_batch):
    optimizer = make_optimizer(SETTINGS | {"weight_decay": 0.0})
    batch = make_batch() | {"weights": np.zeros((8, 12), np.float32)}
    step = make_train_step(tiny, optimizer)
    state, metrics = step(create_state(optimizer, make_params()), batch, KEY, jnp.int32(4))
    assert metrics["loss"] == 0 and metrics["tokens"] == 0
    close(state.trainable, make_params())


def run_alone(step, optimizer, params, mode, trainable, batches, key, total):
    state = create_state(optimizer, trainable, params if mode == "lora" else None)
    losses = []
    for batch in batches[: int(total)]:
        state, metrics = step(state, batch, key, total)
        losses.append(metrics["loss"])
    return state, losses


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_group_equals_each_alone(tiny, tiny_lora, make_params, make_batch, mode):
    g, steps = 3, 5
    totals = jnp.array([5, 3, 4], jnp.int32)
    config = tiny_lora if mode == "lora" else tiny
    optimizer = make_optimizer(SETTINGS)
    params = make_params()
    keys = jax.vmap(jax.random.key)(jnp.arange(g))
    if mode == "lora":
        starts = [init_lora(config, key) for key in keys]
    else:
        starts = [make_params(seed) for seed in range(g)]
    batches = [[make_batch(100 * i + k, rows=4) for k in range(steps)] for i in range(g)]

    step = make_train_step(config, optimizer, mode=mode, group=True, chunk=96)
    state = create_state(
        optimizer, stack(starts), params if mode == "lora" else None, group=True
    )
    losses = []
    for k in range(steps):
        batch = jax.tree.map(lambda *x: np.stack(x), *[batches[i][k] for i in range(g)])
        state, metrics = step(state, batch, keys, totals)
        losses.append(metrics["loss"])
    np.testing.assert_array_equal(state.step, totals)

    single = make_train_step(config, optimizer, mode=mode, chunk=32)
    for i in range(g):
        alone, wanted = run_alone(
            single, optimizer, params, mode, copied(starts[i]), batches[i], keys[i], totals[i]
        )
        got = [loss[i] for loss in losses[: int(totals[i])]]
        close(got, wanted)
        mine = jax.tree.map(lambda x, i=i: x[i], (state.trainable, state.opt_state))
        # Adam divides by the root of a second moment: rounding is amplified where it is tiny.
        close(mine, (alone.trainable, alone.opt_state), rtol=2e-4, atol=2e-5)
    if mode == "lora":
        close(params, make_params(), rtol=0, atol=0)  # the base is as it was, and still there


def test_dropout_depends_on_key_and_step(tiny_lora, make_params, make_batch):
    optimizer = make_optimizer(SETTINGS | {"lr": 0.0})
    step = make_train_step(tiny_lora, optimizer, mode="lora")
    lora = jax.tree.map(lambda x: x + 0.1, init_lora(tiny_lora, KEY))
    batch, params = make_batch(), make_params()

    def losses(key):
        state = create_state(optimizer, copied(lora), params)
        out = []
        for _ in range(2):
            state, metrics = step(state, batch, key, jnp.int32(9))
            out.append(float(metrics["loss"]))
        return out

    first = losses(jax.random.key(0))
    assert first == losses(jax.random.key(0)) != losses(jax.random.key(1))
    assert first[0] != first[1]  # nothing was learnt (lr 0): another mask


def test_frozen_base_costs_no_weight_gradient(tiny_lora, make_params, make_batch):
    """Neither a gradient nor a moment of the shape of a base matrix stands in the program."""
    optimizer = make_optimizer()
    step = make_train_step(tiny_lora, optimizer, mode="lora")
    state = create_state(optimizer, init_lora(tiny_lora, KEY), make_params())
    text = step.lower(state, make_batch(), KEY, jnp.int32(1)).as_text()
    assert "tensor<2x32x64xf32>" in text  # the up projections, in
    results = [
        line.split("->")[-1] for line in text.splitlines() if "stablehlo.dot_general" in line
    ]
    # With 8 rows of 12 tokens, only a weight gradient has the shape [32 64] without a layer axis.
    assert results and not any("tensor<32x64xf32>" in line for line in results)


def test_base_is_held_once(tiny_lora, make_params, make_batch):
    optimizer, params = make_optimizer(), make_params()
    step = make_train_step(tiny_lora, optimizer, mode="lora", group=True, chunk=32)
    memory = []
    for g in (1, 8):
        keys = jax.random.split(KEY, g)
        lora = jax.vmap(partial(init_lora, tiny_lora))(keys)
        state = create_state(optimizer, lora, params, group=True)
        batch = jax.tree.map(lambda x, g=g: np.stack([x] * g), make_batch(rows=1, length=8))
        lowered = step.lower(state, batch, keys, jnp.ones(g, jnp.int32))
        stats = lowered.compile().memory_analysis()
        adapters = sum(x.nbytes for x in jax.tree.leaves((state.trainable, state.opt_state)))
        memory.append(stats.argument_size_in_bytes - adapters)
    base = sum(x.nbytes for x in jax.tree.leaves(params))
    assert memory[1] - memory[0] < 0.1 * base


def test_unknown_mode_is_named(tiny):
    with pytest.raises(ValueError, match="mode 'half' is unknown; known: full, lora"):
        make_train_step(tiny, make_optimizer(), mode="half")
