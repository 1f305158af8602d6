"""Scoring over a mesh gives the same numbers, with the rows divided among its devices."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from taskpgm.models import LoraConfig, init_lora, init_params, logical_axes, scoring
from taskpgm.training import init_sharded, make_mesh
from tests.tiny_decoder import TINY

pytestmark = pytest.mark.slow

ROWS, LENGTH = 8, 128


def decoder(attention):
    lora = LoraConfig(rank=4, alpha=8.0)
    return dataclasses.replace(TINY, max_position=LENGTH, lora=lora, attention=attention)


def window():
    rng = np.random.default_rng(0)
    at = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    tokens = rng.integers(0, 64, (ROWS, LENGTH), dtype=np.int32)
    where = np.arange(3, ROWS * LENGTH, 4, dtype=np.int32)
    rest = [np.zeros(len(where), np.int32)] * 2
    segments = np.where(at < 50, 1, 2).astype(np.int32)
    return scoring.TargetWindow(tokens, at % 50, segments, where, *rest, np.int32(len(where)))


def hidden(attention, axes):
    """(last hidden states of two models [2 r d], operations of one device)."""
    config = decoder(attention)
    mesh = make_mesh(axes, jax.devices()[: int(np.prod(list(axes.values())))])
    with jax.set_mesh(mesh):
        make = partial(init_params, config)
        params = init_sharded(make, jax.random.key(0), axes=logical_axes(config))
        lora = jax.vmap(partial(init_lora, config))(jax.random.split(jax.random.key(1)))
        lora = jax.tree.map(lambda x: x + 0.02, lora)  # a zero would change nothing
        args = scoring.decoder_forward(config), params, lora, window()
        costs = scoring.hidden_states.lower(*args).compile().cost_analysis()
        costs = costs[0] if isinstance(costs, list) else costs
        return np.asarray(scoring.hidden_states(*args)), costs["flops"]


@pytest.mark.parametrize(
    ("attention", "axes"),
    [
        ("reference", {"data": 8}),
        ("reference", {"fsdp": 8}),
        ("splash", {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_hidden_states_over_devices(attention, axes):
    alone, work = hidden("reference", {"data": 1})
    got, share = hidden(attention, axes)
    np.testing.assert_allclose(got, alone, atol=2e-5)
    assert share < work / 7
