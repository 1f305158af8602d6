"""Operations and bytes by formula, against the programs themselves."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import LoraConfig, init_lora, init_params
from taskpgm.training import loss
from taskpgm.training.flops import flops_per_token, matrices, mean_context, num_adapter_params
from taskpgm.training.memory import device_memory, estimate_memory, group_size
from taskpgm.training.optimizer import make_optimizer
from taskpgm.training.state import create_state
from taskpgm.training.step import make_train_step

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def dot_flops(jaxpr, times=1):
    """Operations of all matrix products of a jaxpr, loops multiplied out."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[i] for i in left)
            total += 2 * times * inner * math.prod(equation.outvars[0].aval.shape)
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    total += dot_flops(part, times * repeats)
    return total


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_counts_the_products_of_the_step(tiny, make_params, make_batch, adapters, monkeypatch):
    # The loss has a loop of whole chunks and one of small ones, here of a single row: both are in
    # the program, and one of them runs.
    monkeypatch.setattr(loss, "REST", {jax.default_backend(): 1})
    config = tiny
    if adapters:
        config = dataclasses.replace(tiny, lora=LoraConfig(rank=4, targets=ALL))
    rows, length = 4, 12
    optimizer = make_optimizer()
    params = make_params()
    if adapters:
        state, frozen = create_state(optimizer, init_lora(config, jax.random.key(0))), params
    else:
        state, frozen = create_state(optimizer, params), None
    step = make_train_step(config, optimizer, state, chunk=rows * length)  # one round
    batch = make_batch(0, rows=rows, length=length)
    jaxpr = step.trace(state, frozen, batch, jax.random.key(0), jnp.int32(1)).jaxpr
    # The plain attention computes the masked half too; the formula counts what is of use.
    attention = config.num_layers * 4 * config.num_heads * config.head_dim * (length - 1) / 2 * 3
    idle = (4 if adapters else 6) * config.hidden_size * config.vocab_size  # the single row's
    counted = (dot_flops(jaxpr.jaxpr) - idle) / (rows * length) - attention
    assert counted == pytest.approx(flops_per_token(config, length), rel=1e-6)


def test_a_seven_billion_model(tiny):
    """Llama-2-7B: 6 N per token and a little for attention; frozen weights a third less."""
    llama = dataclasses.replace(
        tiny,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
    )
    weights = llama.num_params - 32000 * 4096  # the embedding is looked up, not multiplied
    full, adapted = flops_per_token(llama, 4096), dataclasses.replace(llama, lora=LoraConfig())
    assert full == pytest.approx(6 * weights + 12 * 32 * 4096 * 2048.5, rel=1e-3)
    assert 0.66 < flops_per_token(adapted, 4096) / full < 0.7
    assert full - flops_per_token(llama, 4096, scored=0.5) == 3 * 32000 * 4096
    assert sum(i * o for i, o in matrices(llama).values()) * 32 < weights


def test_windows_attend_to_less():
    assert mean_context(4) == 2.5 == mean_context(4, 4) == mean_context(4, 9)
    for length, window in ((10, 3), (7, 1), (8, 7)):
        mean = np.mean([min(t + 1, window) for t in range(length)])
        assert mean_context(length, window) == pytest.approx(mean)


def test_adapter_parameters(tiny):
    config = dataclasses.replace(tiny, lora=LoraConfig(rank=4, targets=ALL))
    lora = jax.eval_shape(partial(init_lora, config), jax.random.key(0))
    assert num_adapter_params(config) == sum(x.size for x in jax.tree.leaves(lora))
    assert num_adapter_params(tiny) == 0


@pytest.mark.slow
def test_memory_is_near_the_compilers(tiny, make_batch):
    config = dataclasses.replace(tiny, lora=LoraConfig(rank=4), hidden_size=64, vocab_size=512)
    optimizer, keys = make_optimizer(), jax.random.split(jax.random.key(0), 4)
    lora = jax.vmap(partial(init_lora, config))(keys)
    state, params = create_state(optimizer, lora, group=True), init_params(config, keys[0])
    batch = jax.tree.map(lambda x: np.stack([x] * 4), make_batch(rows=4, length=64))
    step = make_train_step(config, optimizer, state, chunk=256)
    stats = (
        step.lower(state, params, batch, keys, jnp.ones(4, jnp.int32)).compile().memory_analysis()
    )
    guess = estimate_memory(config, rows=4, length=64, group=4, chunk=256)
    given = guess.params + guess.trained + guess.moments
    assert stats.argument_size_in_bytes == pytest.approx(given, rel=0.1)
    assert stats.temp_size_in_bytes == pytest.approx(guess.total - given, rel=0.5)


def test_group_size(tiny_lora):
    options = {"rows": 4, "length": 64}
    one, eight = (estimate_memory(tiny_lora, group=g, **options).total for g in (1, 8))
    assert group_size(tiny_lora, 20, eight / 0.85 * 1.001, **options) == 8
    assert group_size(tiny_lora, 3, eight / 0.85 * 1.001, **options) == 3
    assert group_size(tiny_lora, 20, eight, mesh={"task": 4}, **options) % 4 == 0
    with pytest.raises(ValueError, match="one adapter at a time needs .* GiB"):
        group_size(tiny_lora, 20, one / 2, **options)
    assert device_memory() > 2**20


def test_sharding_divides_memory(tiny):
    options = {"rows": 8, "length": 64}
    whole = estimate_memory(tiny, **options)
    split = estimate_memory(tiny, mesh={"fsdp": 8}, **options)
    assert split.trained == whole.trained / 8 and split.moments == whole.moments / 8
    assert split.activations == whole.activations / 8
