"""Adapters: what they compute, alone and side by side, and that the base is held once."""

import jax
import jax.numpy as jnp
import numpy as np

from taskpgm.models import Decoder, init_lora, init_params, merge_lora

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def test_a_fresh_adapter_changes_nothing(tiny, randomized, with_lora, tokens, family):
    config, _ = with_lora(tiny(family), targets=ALL)
    params = randomized(config)
    lora = init_lora(config, jax.random.key(0))
    base = Decoder(config).apply({"params": params}, tokens)
    got = Decoder(config).apply({"params": params, "lora": lora}, tokens)
    np.testing.assert_array_equal(got, base)
    a = lora["layers"]["attention"]["q_proj"]["a"]
    assert a.dtype == jnp.float32 and abs(float(a.var()) * config.hidden_size - 1) < 0.5


def test_merged_weights_are_the_adapter(tiny, randomized, with_lora, tokens, family):
    config, lora = with_lora(tiny(family), targets=ALL)
    params = randomized(config)
    got = Decoder(config).apply({"params": merge_lora(config, params, lora)}, tokens)
    wanted = Decoder(config).apply({"params": params, "lora": lora}, tokens)
    np.testing.assert_allclose(got, wanted, atol=2e-4, rtol=1e-4)
    assert jnp.abs(wanted - Decoder(config).apply({"params": params}, tokens)).max() > 0.1


def test_dropout_is_on_the_adapter_and_follows_its_key(tiny, randomized, with_lora, tokens):
    config, lora = with_lora(tiny(), dropout=0.5)
    variables = {"params": randomized(config), "lora": lora}

    def run(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return Decoder(config).apply(variables, tokens, deterministic=False, rngs=rngs)

    still = Decoder(config).apply(variables, tokens)
    np.testing.assert_array_equal(run(0), run(0))
    assert jnp.abs(run(0) - run(1)).max() > 1e-3
    assert jnp.abs(run(0) - still).max() > 1e-3


def stacked(config, with_lora, n, **settings):
    loras = [with_lora(config, seed, **settings)[1] for seed in range(n)]
    return jax.tree.map(lambda *x: jnp.stack(x), *loras)


def test_side_by_side_equals_one_by_one(tiny, randomized, with_lora):
    """Logits and gradients, with dropout: vmap over adapters, batches and keys."""
    settings = dict(targets=ALL, dropout=0.2)
    config, _ = with_lora(tiny(), **settings)
    params = randomized(config)
    loras = stacked(tiny(), with_lora, 3, **settings)
    tokens = jax.random.randint(jax.random.key(3), (3, 2, 10), 0, 64)
    keys = jax.random.split(jax.random.key(4), 3)

    def loss(lora, tokens, key):
        variables = {"params": params, "lora": lora}
        y = Decoder(config).apply(variables, tokens, deterministic=False, rngs={"dropout": key})
        return (jax.nn.log_softmax(y)[..., 0]).mean()

    together = jax.jit(jax.vmap(jax.value_and_grad(loss)))(loras, tokens, keys)
    one = jax.jit(jax.value_and_grad(loss))
    for i in range(3):
        alone = one(jax.tree.map(lambda x: x[i], loras), tokens[i], keys[i])  # noqa: B023
        got = jax.tree.map(lambda x: x[i], together)  # noqa: B023
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), got, alone)


def test_one_batch_for_all_adapters(tiny, randomized, with_lora, tokens):
    """Scoring: the same tokens under every adapter."""
    config, _ = with_lora(tiny(), targets=ALL)
    params = randomized(config)
    loras = stacked(tiny(), with_lora, 3, targets=ALL)
    run = lambda lora: Decoder(config).apply({"params": params, "lora": lora}, tokens)  # noqa: E731
    got = jax.jit(jax.vmap(run))(loras)
    for i in range(3):
        wanted = run(jax.tree.map(lambda x: x[i], loras))  # noqa: B023
        np.testing.assert_allclose(got[i], wanted, atol=1e-5)


def test_the_base_is_held_once_however_many_adapters(tiny, with_lora):
    """Compiled memory of a training gradient, 1 and 8 adapters: no copy of the base per adapter."""
    config, _ = with_lora(tiny(hidden_size=64, intermediate_size=512, num_layers=4, remat="full"))
    shape = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    base = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shape))

    def memory(n):
        lora = jax.eval_shape(lambda key: init_lora(config, key), jax.random.key(0))
        loras = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), lora)
        tokens = jax.ShapeDtypeStruct((n, 1, 4), jnp.int32)

        def loss(lora, params, tokens):
            y = Decoder(config).apply({"params": params, "lora": lora}, tokens)
            return jax.nn.log_softmax(y)[..., 0].mean()

        step = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None, 0)))
        analysis = step.lower(loras, shape, tokens).compile().memory_analysis()
        own = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(lora))
        return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes - n * own

    assert memory(8) - memory(1) < 0.5 * base
