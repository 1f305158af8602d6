"""The decoder alone: packing, precision, remat, shapes, compile time."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import Decoder, init_params, logical_axes, lora_logical_axes, unembedding


@partial(jax.jit, static_argnums=0, static_argnames="method")
def run(config, params, *rows, method=None):
    return Decoder(config).apply({"params": params}, *rows, method=method)


def packed_and_alone(sizes, t):
    """Rows [4 t] of tokens, positions and segments: three examples in one row, padding behind
    them, then each in a row of its own. Returns also where they are, (row, start, end)."""
    tokens, positions, ids = (np.zeros((4, t), np.int32) for _ in range(3))
    ends = np.cumsum(sizes)
    places = [(0, end - n, end) for n, end in zip(sizes, ends, strict=True)]
    places += [(i, 0, n) for i, n in enumerate(sizes, 1)]
    for i, (row, start, end) in enumerate(places):
        example = np.random.default_rng(i % 3).integers(0, 64, end - start)
        at = np.s_[row, start:end]
        tokens[at], positions[at], ids[at] = example, range(end - start), 1 + i % 3
    return (tokens, positions, ids), places


def test_a_packed_row_gives_each_example_its_own_logits(tiny, randomized, family):
    """No token sees another segment, and positions restart in each."""
    config = tiny(family)
    rows, places = packed_and_alone((7, 9, 4), 24)
    found = np.asarray(run(config, randomized(config), *rows))
    parts = [found[row, start:end] for row, start, end in places]
    for packed, alone in zip(parts[:3], parts[3:], strict=True):
        np.testing.assert_allclose(packed, alone, atol=1e-5)


def losses(config, params, rows, places):
    """Mean loss of predicting the next token within each example."""
    hidden = run(config, params, *rows, method="hidden")
    each = np.asarray(log_probs(hidden, unembedding(config, params)))
    picked = ((each[row, at : end - 1], rows[0][row, at + 1 : end]) for row, at, end in places)
    return np.array([-x[np.arange(len(y)), y].mean() for x, y in picked], np.float32)


@jax.jit
def log_probs(hidden, head):
    return jax.nn.log_softmax(hidden.astype(np.float32) @ head)


@pytest.mark.parametrize(
    ("family", "attention"),  # one key and value head for two queries, for one
    [("llama", "reference"), ("mistral", "splash"), ("gpt2", "splash")],
)
def test_a_packed_row_gives_each_example_its_own_loss(tiny, randomized, family, attention):
    window = {"sliding_window": 11} if family == "mistral" else {}
    config = tiny(family, attention=attention, head_dim=16, max_position=128, **window)
    rows, places = packed_and_alone((37, 60, 14), 128)
    found = losses(config, randomized(config), rows, places)
    np.testing.assert_allclose(found[:3], found[3:], rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-3), ("bfloat16", 2e-2)])
def test_a_packed_row_gives_each_example_its_own_loss_on_a_gpu(
    tiny, randomized, family, dtype, tolerance
):
    """Whatever is chosen there: packed rows and rows of one segment take different backends."""
    config = tiny(family, head_dim=64, max_position=128, dtype=dtype)
    params, (rows, places) = randomized(config), packed_and_alone((37, 60, 14), 128)
    packed = losses(config, params, rows, places)[:3]
    alone = losses(config, params, rows[:1], places)[3:]
    np.testing.assert_allclose(packed, alone, rtol=tolerance)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_hidden_and_unembedding_are_the_logits(tiny, randomized, family, tokens):
    config = tiny(family)
    params = randomized(config)
    hidden = run(config, params, tokens, method="hidden")
    wanted = run(config, params, tokens)
    got = hidden @ unembedding(config, params)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_remat_changes_no_gradient(tiny, randomized, tokens):
    config = tiny()
    params = randomized(config)

    def grad(remat):
        model = Decoder(dataclasses.replace(config, remat=remat))
        loss = lambda p: (model.apply({"params": p}, tokens) ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    wanted = grad("none")
    for remat in ("full", "dots"):
        jax.tree.map(close, grad(remat), wanted)
    with pytest.raises(ValueError, match="remat 'some' is none of none, full, dots"):
        grad("some")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close_and_gives_float32_logits(tiny, randomized, tokens, dtype):
    config = tiny()
    params = randomized(config)
    wanted = run(config, params, tokens)
    half = jax.tree.map(lambda x: np.asarray(x).astype(dtype), params)
    got = run(dataclasses.replace(config, dtype=dtype, param_dtype=dtype), half, tokens)
    assert got.dtype == jnp.float32
    assert jnp.abs(got - wanted).max() < 0.05 * jnp.abs(wanted).max()


def test_logical_axes_fit_the_parameters(tiny, family, with_lora):
    config = tiny(family)
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    axes = logical_axes(config)
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    same = jax.tree.map(lambda a, x: len(a) == len(x.shape), axes, params, is_leaf=is_axes)
    assert jax.tree.all(same)
    known = {"layers", "vocab", "embed", "heads", "kv_heads", "mlp", None}
    assert {name for a in jax.tree.leaves(axes, is_leaf=is_axes) for name in a} <= known
    config, lora = with_lora(config)
    same = jax.tree.map(
        lambda a, x: len(a) == x.ndim, lora_logical_axes(config), lora, is_leaf=is_axes
    )
    assert jax.tree.all(same)


def test_a_deeper_model_is_the_same_program(tiny):
    """Scan over layers: the compiled text does not grow with depth."""

    def text(layers):
        config = tiny(num_layers=layers)
        params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        run = lambda p, x: Decoder(config).apply({"params": p}, x)  # noqa: E731
        return jax.jit(run).lower(params, tokens).as_text()

    assert abs(len(text(4)) - len(text(32))) < 0.02 * len(text(4))


def test_learned_positions_end(tiny, randomized):
    config = tiny("gpt2", max_position=8)
    with pytest.raises(ValueError, match="a row of 9 tokens exceeds the model's 8 positions"):
        Decoder(config).apply({"params": randomized(config)}, jnp.zeros((1, 9), jnp.int32))


def test_keys_are_never_repeated_for_grouped_queries(tiny):
    """The product of queries and keys takes [b s kv_heads d] as it is."""
    config = tiny(num_heads=4, num_kv_heads=1, head_dim=8)
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((3, 17), jnp.int32)
    run = lambda p, x: Decoder(config).apply({"params": p}, x)  # noqa: E731
    text = jax.jit(run).lower(params, tokens).as_text()
    products = re.findall(r"dot_general.*:.*\((.*)\) ->", text)
    assert any("tensor<3x17x1x8xf32>" in product for product in products)
