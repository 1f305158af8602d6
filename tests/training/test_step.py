"""The training step: accumulation, groups, frozen weights."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from taskpgm.models import Decoder, LoraConfig, init_lora, init_params
from taskpgm.training.optimizer import make_optimizer
from taskpgm.training.state import create_state
from taskpgm.training.step import make_train_step

# A large eps: where the second moment is tiny, Adam turns rounding into steps of full length.
SETTINGS = {"lr": 1e-2, "warmup": 0.1, "weight_decay": 0.1, "clip": 1.0, "eps": 1e-3}
OPTIMIZER = make_optimizer(SETTINGS)
KEY = jax.random.key(7)


def step_of(config, state, **options):
    """Compiled once for all tests whose states have the same shardings."""
    return make_train_step(config, OPTIMIZER, state, chunk=32, **options)


def close(a, b, **tolerance):
    tolerance = {"rtol": 2e-5, "atol": 2e-6} | tolerance
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), a, b)


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


def stack(trees):
    return jax.tree.map(lambda *x: jnp.array(np.stack(x)), *trees)


@pytest.mark.slow
def test_full_step_is_optax_adamw(tiny, make_params, make_batch):
    state, params = create_state(OPTIMIZER, make_params()), make_params()
    step = step_of(tiny, state)
    mask = jax.tree.map(lambda _: True, params)
    mask["layers"]["attention_norm"]["scale"] = mask["layers"]["mlp_norm"]["scale"] = False
    mask["final_norm"]["scale"] = False
    total = 4
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda k: OPTIMIZER.learning_rate(k, total), eps=1e-3, weight_decay=0.1, mask=mask
        ),
    )

    def loss(params, batch):
        args = batch["tokens"], batch["positions"], batch["segment_ids"]
        logits = Decoder(tiny).apply({"params": params}, *args)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.sum(nll * batch["weights"]) / jnp.sum(batch["weights"])

    @jax.jit
    def plain(params, moments, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, moments = reference.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value, optax.tree.norm(gradient)

    moments = reference.init(params)
    for k in range(3):
        batch = make_batch(k)
        state, metrics = step(state, None, batch, KEY, jnp.int32(total))
        params, moments, value, norm = plain(params, moments, batch)
        close(metrics["loss"], value)
        close(metrics["grad_norm"], norm)
    close(state.trainable, params, atol=1e-5)
    assert int(state.step) == 3


def test_accumulation_weighs_tokens(tiny, make_params, make_batch):
    batch = make_batch(3)
    assert len(set(batch["weights"].sum(1))) > 2  # rows that differ in scored tokens
    results = []
    for accumulate in (1, 2):
        state = create_state(OPTIMIZER, make_params())
        step = step_of(tiny, state, accumulate=accumulate)
        results.append(step(state, None, batch, KEY, jnp.int32(10)))
    (one, metrics), (many, accumulated) = results
    close(metrics, accumulated)
    close(one.opt_state, many.opt_state)


def test_accumulation_that_does_not_divide(tiny, make_params, make_batch):
    state = create_state(OPTIMIZER, make_params())
    step = step_of(tiny, state, accumulate=3)
    with pytest.raises(ValueError, match="accumulate 3 does not divide the 4 rows"):
        step(state, None, make_batch(), KEY, jnp.int32(1))


def test_a_batch_without_scored_tokens_has_no_gradient(tiny, make_params, make_batch):
    batch = make_batch() | {"weights": np.zeros((4, 12), np.float32)}
    state = create_state(OPTIMIZER, make_params())
    state, metrics = step_of(tiny, state)(state, None, batch, KEY, jnp.int32(4))
    assert metrics["loss"] == metrics["tokens"] == metrics["grad_norm"] == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.trainable))


def run_alone(config, trainable, frozen, batches, key, total):
    state = create_state(OPTIMIZER, trainable)
    step = step_of(config, state)
    losses = []
    for batch in batches[: int(total)]:
        state, metrics = step(state, frozen, batch, key, total)
        losses.append(metrics["loss"])
    return state, losses


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [True, False], ids=["lora", "full"])
def test_group_equals_each_alone(tiny, tiny_lora, make_params, make_batch, adapters):
    g, steps = 3, 5
    totals = jnp.array([5, 3, 4], jnp.int32)
    config = tiny_lora if adapters else tiny
    frozen = make_params() if adapters else None
    keys = jax.vmap(jax.random.key)(jnp.arange(g))
    if adapters:
        starts = [init_lora(config, key) for key in keys]
    else:
        starts = [make_params(seed) for seed in range(g)]
    batches = [[make_batch(100 * i + k) for k in range(steps)] for i in range(g)]

    state = create_state(OPTIMIZER, stack(starts), group=True)
    step = step_of(config, state)
    losses = []
    for k in range(steps):
        batch = jax.tree.map(lambda *x: np.stack(x), *[batches[i][k] for i in range(g)])
        state, metrics = step(state, frozen, batch, keys, totals)
        losses.append(metrics["loss"])
    np.testing.assert_array_equal(state.step, totals)

    for i in range(g):
        alone, wanted = run_alone(config, copied(starts[i]), frozen, batches[i], keys[i], totals[i])
        got = [np.asarray(loss)[i] for loss in losses[: int(totals[i])]]
        close(got, wanted)
        mine = jax.tree.map(lambda x, i=i: np.asarray(x)[i], (state.trainable, state.opt_state))
        close(mine, (alone.trainable, alone.opt_state), rtol=1e-4, atol=1e-5)
    if adapters:
        close(frozen, make_params(), rtol=0, atol=0)  # the base is as it was, and still there


def test_dropout_depends_on_key_and_step(tiny_lora, make_params, make_batch):
    batch, params = make_batch(), make_params()
    lora = jax.tree.map(lambda x: np.asarray(x) + 0.1, init_lora(tiny_lora, KEY))

    def loss(seed, at=0):
        state = create_state(OPTIMIZER, jax.tree.map(jnp.array, lora))
        state = state.replace(step=state.step + at)
        step = step_of(tiny_lora, state)
        return float(step(state, params, batch, jax.random.key(seed), jnp.int32(9))[1]["loss"])

    assert loss(0) == loss(0)
    assert len({loss(0), loss(1), loss(0, at=1)}) == 3


def test_frozen_base_costs_no_weight_gradient(tiny, make_params, make_batch):
    """A step of rank 1 does as many operations as the formula says: weight gradients of the base
    would add half as many again."""
    adapted = dataclasses.replace(tiny, lora=LoraConfig(rank=1, targets=("q_proj",)))
    flops = []
    for config, trainable, frozen in (
        (adapted, init_lora(adapted, KEY), make_params()),
        (tiny, make_params(), None),
    ):
        state = create_state(OPTIMIZER, trainable)
        step = make_train_step(config, OPTIMIZER, state, chunk=48)
        lowered = step.lower(state, frozen, make_batch(), KEY, jnp.int32(1))
        flops.append(lowered.cost_analysis()["flops"])
    assert flops[0] < 0.8 * flops[1]


@pytest.mark.slow
def test_base_is_held_once(tiny_lora, make_batch, monkeypatch):
    """In the arguments, and while the step runs with all adapters at once."""
    monkeypatch.setattr("taskpgm.training.step.tasks_at_once", lambda tasks, devices: tasks)
    wide = {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 512}
    thin = LoraConfig(rank=1, targets=("q_proj",))  # what there is of each task is little
    config = dataclasses.replace(tiny_lora, lora=thin, **wide)
    base = jax.eval_shape(partial(init_params, config), KEY)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), base)
    arguments, working = [], []
    for g in (1, 8):
        lora = jax.vmap(partial(init_lora, config))(jax.random.split(KEY, g))
        state = create_state(OPTIMIZER, lora, group=True)
        step = make_train_step(config, OPTIMIZER, state, chunk=4)
        batch = make_batch(rows=1, length=8)
        batch = jax.tree.map(lambda x, g=g: np.stack([x] * g), batch)
        args = batch, jax.random.split(KEY, g), jnp.ones(g, jnp.int32)
        lowered = step.lower(state, params, *args)
        stats = lowered.compile().memory_analysis()
        adapters = sum(x.nbytes for x in jax.tree.leaves((state.trainable, state.opt_state)))
        arguments.append(stats.argument_size_in_bytes - adapters)
        working.append(stats.temp_size_in_bytes)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert arguments[1] - arguments[0] < 0.1 * size
    assert working[1] - working[0] < size


def test_compiled_once(tiny, make_params, make_batch, caplog):
    """The second step runs the first one's program."""
    state = create_state(OPTIMIZER, make_params())
    step, args = step_of(tiny, state), (None, make_batch(), KEY, jnp.int32(4))
    state, _ = step(state, *args)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        step(state, *args)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_bfloat16_parameters_have_float32_moments(tiny, make_batch):
    config = dataclasses.replace(tiny, dtype="bfloat16", param_dtype="bfloat16")
    shapes = jax.eval_shape(partial(init_params, config), KEY)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    state = create_state(OPTIMIZER, params)
    step = step_of(config, state)
    for k in range(2):
        state, metrics = jax.eval_shape(step, state, None, make_batch(k), KEY, jnp.int32(4))
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {jnp.dtype("bfloat16")}
    moments = {x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert moments == {jnp.dtype("float32")}
    assert all(value.dtype == jnp.float32 for value in metrics.values())
