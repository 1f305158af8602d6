"""Scoring with the project's own decoder: adapters on one base, and whole models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm import affinity, training
from taskpgm.models import Decoder, DecoderConfig, LoraConfig, init_lora, init_params, scoring

CONFIG = DecoderConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 37,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }
)


LORA = LoraConfig(rank=2, targets=("q_proj", "up_proj"))


def drawn(shapes, seed, *lead):
    """Random arrays of these shapes by numpy: compiling jax.random takes longer than the test."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.normal(size=(*lead, *x.shape)), jnp.float32), shapes
    )


def models(adapters):
    """Three models that differ, stacked; and the base."""
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: init_params(CONFIG, key))
    if not adapters:
        return CONFIG, None, drawn(params, 1, 3)
    config = dataclasses.replace(CONFIG, lora=LORA)
    lora = jax.eval_shape(lambda: init_lora(config, key))
    return config, drawn(params, 0), drawn(lora, 1, 3)


def alone(config, params, stacked):
    """Log-probabilities of all models on one example that stands alone in a row, float64."""

    @jax.jit
    def apply(ids):
        def one(model):
            variables = {"params": params, "lora": model} if config.lora else {"params": model}
            return jax.nn.log_softmax(Decoder(config).apply(variables, ids[None])[0])

        return jax.lax.map(one, stacked)

    # What follows an example cannot change what was said before: one length, compiled once.
    return lambda ids: np.asarray(apply(np.pad(ids, (0, 16 - len(ids)))), np.float64)


def compute(world, folder, config, params, stacked, **options):
    return affinity.compute_scores(
        config,
        params,
        lambda some: jax.tree.map(lambda x: x[np.asarray(some)], stacked),
        [rows for _, _, rows in world.tasks],
        [len(x) for x, _, _ in world.tasks],
        model_keys=["a", "b", "c"],
        folder=folder,
        memory=2.0**20,
        batch_size=2,
        **options,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["lora", "full"])
def scored(request, world, tmp_path_factory):
    """What `models` gives, and its scores."""
    made = models(adapters=request.param)
    return *made, compute(world, tmp_path_factory.mktemp("scores"), *made)


def test_scores_equal_one_example_at_a_time(world, scored):
    config, params, stacked, scores = scored
    say, at = alone(config, params, stacked), 0
    for k, (examples, prompts, _) in enumerate(world.tasks):
        values = scores.divergence(k)
        for e, (ids, prompt) in enumerate(zip(examples, prompts, strict=True)):
            here = np.arange(prompt - 1, len(ids) - 1)
            said = say(ids)[:, here]
            want = said[:, np.arange(len(here)), ids[here + 1]].sum(1)
            np.testing.assert_allclose(scores.log_likelihood[:, at], want, rtol=1e-5)
            p, q = np.exp(said)[:, None], np.exp(said)[None]
            m = 0.5 * (p + q)
            want = 0.5 * (p * np.log(p / m) + q * np.log(q / m)).sum(-1).mean(-1)
            np.testing.assert_allclose(values[e], want, rtol=1e-3, atol=1e-9)
            at += 1
    assert scores.tokens.sum() == sum(rows.weights.sum() for _, _, rows in world.tasks)


def test_the_base_is_not_copied_for_each_adapter():
    """Compiled memory for 8 adapters, arguments aside: 0.45 of the base's bytes were measured. A
    copy of one layer's matrix for each adapter would be 0.9 more."""
    config = dataclasses.replace(
        CONFIG, hidden_size=256, intermediate_size=1024, vocab_size=512, head_dim=128, lora=LORA
    )
    eight = compiled_memory(config, 8, rows=1, length=8)
    assert eight.temp_size_in_bytes < 2.5 * config.num_params


def compiled_memory(config, g, rows, length):
    """The compiler's memory analysis of the forward pass of g models, all positions scored."""
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: init_params(config, key))
    one = jax.eval_shape(lambda: init_lora(config, key)) if config.lora else params
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((g, *x.shape), x.dtype), one)
    row = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    run = jax.ShapeDtypeStruct((rows * length,), jnp.int32)
    window = scoring.TargetWindow(row, row, row, run, run, run, jax.ShapeDtypeStruct((), jnp.int32))
    shared, forward = params if config.lora else None, scoring.decoder_forward(config)
    return scoring.hidden_states.lower(forward, shared, own, window).compile().memory_analysis()


@pytest.mark.parametrize(("adapters", "length"), [(True, 1024), (False, 128)])
def test_the_plans_memory_is_near_the_compilers(adapters, length):
    config = dataclasses.replace(
        CONFIG,
        hidden_size=256,
        intermediate_size=704,
        vocab_size=512,
        num_heads=8,
        num_kv_heads=8,
        head_dim=32,
        lora=LORA if adapters else None,
    )
    use = compiled_memory(config, 3, rows=8, length=length)
    guess = training.forward_memory(config, rows=8, length=length, group=3)
    guess -= 3 * training.model_bytes(config)  # the group that would be on its way
    # Without adapters a lone CPU copies the model whose turn it is.
    copied = training.model_bytes(config)
    seen = use.temp_size_in_bytes + use.argument_size_in_bytes
    assert 0.85 * (seen - copied) < guess < 1.15 * seen


def test_the_base_is_scored_as_a_row(world, tmp_path):
    config, params, stacked = models(adapters=True)
    without = compute(world, tmp_path, config, params, stacked, contexts=None)
    scores = compute(world, tmp_path, config, params, stacked, contexts=None, base_key="base")
    assert without.base is None and scores.computed == ()  # the models were stored
    np.testing.assert_array_equal(scores.log_likelihood, without.log_likelihood)
    lone = dataclasses.replace(config, lora=None)
    log_probs = alone(lone, None, jax.tree.map(lambda x: x[None], params))
    want = []
    for examples, prompts, _ in world.tasks:
        for ids, prompt in zip(examples, prompts, strict=True):
            at = np.arange(prompt - 1, len(ids) - 1)
            want.append(float(log_probs(ids)[0, at, ids[at + 1]].sum()))
    np.testing.assert_allclose(scores.base, want, rtol=1e-5)
    rows = affinity.likelihoods(scores, "sequence", base=True)
    np.testing.assert_array_equal(rows, [scores.base, *scores.log_likelihood])
    loss = affinity.losses(scores, base=True)
    assert loss.shape == (4, 3)
    own = scores.task == 1
    assert loss[0, 1] == pytest.approx(-(scores.base / scores.tokens)[own].mean())
    with pytest.raises(ValueError, match="hold no row of the base"):
        affinity.losses(without, base=True)


def test_own_losses_are_the_diagonal_of_the_losses(world, scored):
    config, params, stacked, scores = scored
    rows, counts = zip(*((rows, len(x)) for x, _, rows in world.tasks), strict=True)
    for normalize in ("token", "sequence"):
        got = affinity.own_losses(
            config, params, stacked, rows, counts, batch_size=2, normalize=normalize
        )
        want = np.diagonal(affinity.losses(scores, normalize))
        np.testing.assert_allclose(got, want, rtol=1e-6)
