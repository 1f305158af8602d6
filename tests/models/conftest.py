"""Tiny decoders of every family, for all tests of models."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from taskpgm.models import DecoderConfig, LoraConfig, RopeScaling, init_lora, init_params

SHAPE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
    initializer_range=0.2,
)
FAMILIES = {
    "llama": dict(architecture="llama"),
    "llama3": dict(
        architecture="llama",
        tie_embeddings=True,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16),
    ),
    "mistral": dict(architecture="mistral", sliding_window=5),
    "qwen2": dict(architecture="qwen2", qkv_bias=True),
    "qwen2-mixed": dict(architecture="qwen2", qkv_bias=True, sliding_window=4, full_layers=1),
    "gpt2": dict(
        architecture="gpt2",
        num_kv_heads=4,
        rope_theta=None,
        norm="layer",
        activation="gelu_new",
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
    ),
}


@pytest.fixture
def tiny():
    """tiny(family, **changes) -> DecoderConfig."""
    return lambda family="llama", **changes: DecoderConfig(**SHAPE | FAMILIES[family] | changes)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def with_lora():
    """with_lora(config, seed, **LoraConfig) -> (config, lora), the adapters far from zero."""

    def make(config, seed=0, **settings):
        config = dataclasses.replace(config, lora=LoraConfig(**{"rank": 3, **settings}))
        leaves, tree = jax.tree.flatten(init_lora(config, jax.random.key(seed)))
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        return config, jax.tree.unflatten(tree, noisy)

    return make


@pytest.fixture
def randomized():
    """randomized(config, seed) -> params with norms and biases away from 1 and 0 as well."""

    def make(config, seed=0):
        params = init_params(config, jax.random.key(seed))
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        noisy = [
            x + 0.1 * jax.random.normal(k, x.shape).astype(x.dtype)
            for x, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, noisy)

    return make


@pytest.fixture
def tokens():
    """[2 12] token ids below 64."""
    return jax.random.randint(jax.random.key(7), (2, 12), 0, 64, jnp.int32)
