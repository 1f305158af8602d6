"""Scoring over a mesh gives the same numbers, with the rows divided among its devices."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from taskpgm.models import LoraConfig, init_lora, init_params, logical_axes, scoring
from taskpgm.models.sharding import shardings_of
from taskpgm.training import make_mesh
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


def drawn(make, seed, *lead):
    """Random arrays of these shapes by numpy: compiling jax.random takes longer than the test."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(make, jax.random.key(0))
    draw = lambda x: (0.2 * rng.normal(size=(*lead, *x.shape))).astype(x.dtype)  # noqa: E731
    return jax.tree.map(draw, shapes)


def hidden(attention, axes):
    """(last hidden states of two models [2 r d], operations of one device)."""
    config = decoder(attention)
    mesh = make_mesh(axes, jax.devices()[: int(np.prod(list(axes.values())))])
    params = drawn(partial(init_params, config), 0)
    lora = drawn(partial(init_lora, config), 1, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings_of(logical_axes(config), params))
        args = placed, lora, window()
        forward = scoring.decoder_forward(config)
        program = scoring.hidden_states.lower(forward, *args).compile()
        costs = program.cost_analysis()
        costs = costs[0] if isinstance(costs, list) else costs
        return np.asarray(program(*args)), costs["flops"]


@pytest.fixture(scope="module")
def alone():
    return hidden("reference", {"data": 1})


@pytest.mark.parametrize(
    ("attention", "axes"),
    [
        ("reference", {"data": 8}),
        ("reference", {"fsdp": 8}),
        ("splash", {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_hidden_states_over_devices(alone, attention, axes):
    wanted, work = alone
    got, share = hidden(attention, axes)
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    assert share < work / 7
