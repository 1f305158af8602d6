"""Tiny decoders of every family, for all tests of models."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import LoraConfig, RopeScaling, init_lora, init_params
from tests.tiny_decoder import TINY

FAMILIES = {
    "llama": dict(architecture="llama"),
    "llama3": dict(
        architecture="llama",
        tie_embeddings=True,
        rope_scaling=RopeScaling("llama3", 8.0, 0.5, 4.0, 64),
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


@pytest.fixture(scope="session")
def tiny():
    """tiny(family, **changes) -> DecoderConfig."""
    shape = {"intermediate_size": 48}

    def make(family="llama", **changes):
        return dataclasses.replace(TINY, **shape | FAMILIES[family] | changes)

    return make


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def random_like(make, config, seed, mean, std):
    """Arrays like make(config, key) gives, drawn by numpy: nothing to compile."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(partial(make, config), jax.random.key(0))

    def draw(path, x):
        mu = mean if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mu, std, x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def with_lora():
    """with_lora(config, seed, **LoraConfig) -> (config, lora), the adapters far from zero."""

    def make(config, seed=0, **settings):
        config = dataclasses.replace(config, lora=LoraConfig(**{"rank": 3, **settings}))
        return config, random_like(init_lora, config, seed, 0.0, 0.15)

    return make


@pytest.fixture(scope="session")
def randomized():
    """randomized(config, seed) -> params, norms and biases away from 1 and 0 as well."""
    return lambda config, seed=0: random_like(init_params, config, seed, 1.0, 0.2)


@pytest.fixture(scope="session")
def tokens():
    """[2 12] token ids below 64."""
    return jnp.asarray(np.random.default_rng(7).integers(0, 64, (2, 12)), jnp.int32)
