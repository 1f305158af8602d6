"""A tiny decoder and random packed batches, shared by the tests of training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import LoraConfig, init_params
from tests.tiny_decoder import TINY


@pytest.fixture(scope="session")
def tiny():
    """A Llama of two layers."""
    return TINY


@pytest.fixture(scope="session")
def tiny_lora(tiny):
    """The same with adapters, dropout included."""
    return dataclasses.replace(tiny, lora=LoraConfig(rank=4, alpha=8.0, dropout=0.25))


@pytest.fixture(scope="session")
def make_params(tiny):
    """seed -> params. A fresh copy each time: a full training step consumes them."""

    @functools.cache
    def made(seed):
        return jax.tree.map(np.asarray, init_params(tiny, jax.random.key(seed)))

    return lambda seed=0: jax.tree.map(jnp.array, made(seed))


@pytest.fixture(scope="session")
def make_batch():
    """(seed, rows, length) -> a batch, two segments a row, unequal numbers of scored tokens."""

    def make(seed=0, rows=4, length=12, vocab=64):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, vocab, (rows, length), dtype=np.int32)
        cut = rng.integers(2, length - 2, rows)[:, None]
        at = np.arange(length)[None]
        scored = rng.random((rows, length)) < rng.random((rows, 1))
        return {
            "tokens": tokens,
            # Predictable from the token itself, so that there is something to learn.
            "targets": (tokens * 7 + 3) % vocab,
            "weights": (scored & (at != cut - 1)).astype(np.float32),
            "positions": np.where(at < cut, at, at - cut).astype(np.int32),
            "segment_ids": np.where(at < cut, 1, 2).astype(np.int32),
        }

    return make
