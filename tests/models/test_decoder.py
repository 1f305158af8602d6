"""The decoder alone: packing, precision, remat, shapes, compile time."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import Decoder, init_params, logical_axes, lora_logical_axes, unembedding

pytestmark = pytest.mark.usefixtures("quick_compile")


def logits(config, params, *args, **kwargs):
    return jax.jit(lambda p, *x: Decoder(config).apply({"params": p}, *x, **kwargs))(params, *args)


def test_a_packed_row_gives_each_example_its_own_logits(tiny, randomized, family):
    """No token sees another segment, and positions restart in each."""
    config = tiny(family)
    params = randomized(config)
    examples = [np.random.default_rng(i).integers(0, 64, n) for i, n in enumerate((7, 9, 4))]
    row = np.concatenate([*examples, np.zeros(4, int)])[None].astype(np.int32)
    positions = np.concatenate([np.arange(len(x)) for x in (*examples, range(4))])[None]
    segment_ids = np.repeat([1, 2, 3, 0], [7, 9, 4, 4])[None]
    packed = logits(config, params, row, positions, segment_ids)
    padded = np.zeros((3, 9), np.int32)
    for i, example in enumerate(examples):
        padded[i, : len(example)] = example
    alone = logits(config, params, padded)  # causal: what follows an example does not reach it
    start = 0
    for i, example in enumerate(examples):
        part = packed[0, start : start + len(example)]
        np.testing.assert_allclose(part, alone[i, : len(example)], atol=1e-5)
        start += len(example)


def losses(config, params, rows, spans):
    """Mean loss of predicting the next token within each span (row, start, end)."""
    hidden = logits(config, params, *rows, method="hidden")
    each = jax.nn.log_softmax(hidden.astype(np.float32) @ unembedding(config, params))
    picked = ((each[row, at : end - 1], rows[0][row, at + 1 : end]) for row, at, end in spans)
    return np.array([-x[np.arange(len(y)), y].mean() for x, y in picked], np.float32)


def packed_and_alone(config, params):
    """Losses of three examples in one row, with padding, and in a row of their own."""
    sizes, t = (37, 60, 14), 128
    examples = [np.random.default_rng(i).integers(0, 64, n) for i, n in enumerate(sizes)]
    ends = np.cumsum(sizes)
    tokens, positions, ids = (np.zeros((1, t), np.int32) for _ in range(3))
    alone = np.zeros((3, t), np.int32)
    for i, (x, end) in enumerate(zip(examples, ends, strict=True)):
        at = np.s_[0, end - len(x) : end]
        tokens[at], positions[at], ids[at], alone[i, : len(x)] = x, range(len(x)), i + 1, x
    spans = [(0, end - n, end) for n, end in zip(sizes, ends, strict=True)]
    one_each = [(i, 0, n) for i, n in enumerate(sizes)]
    together = losses(config, params, (tokens, positions, ids), spans)
    return together, losses(config, params, (alone,), one_each)


@pytest.mark.parametrize("attention", ["reference", "splash"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2"])
def test_a_packed_row_gives_each_example_its_own_loss(tiny, randomized, family, attention):
    window = {"sliding_window": 11 if attention == "splash" else 128} if family == "mistral" else {}
    config = tiny(family, attention=attention, head_dim=16, max_position=128, **window)
    packed, alone = packed_and_alone(config, randomized(config))
    np.testing.assert_allclose(packed, alone, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-3), ("bfloat16", 2e-2)])
def test_a_packed_row_gives_each_example_its_own_loss_on_a_gpu(
    tiny, randomized, family, dtype, tolerance
):
    """Whatever is chosen there: packed rows and rows of one segment take different backends."""
    config = tiny(family, head_dim=64, max_position=128, dtype=dtype)
    packed, alone = packed_and_alone(config, randomized(config))
    np.testing.assert_allclose(packed, alone, rtol=tolerance)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_hidden_and_unembedding_are_the_logits(tiny, randomized, family, tokens):
    config = tiny(family)
    params = randomized(config)
    hidden = logits(config, params, tokens, method="hidden")
    wanted = logits(config, params, tokens)
    got = hidden @ unembedding(config, params)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(tiny, randomized, tokens, remat):
    config = tiny()
    params = randomized(config)

    def grad(config):
        loss = lambda p: (Decoder(config).apply({"params": p}, tokens) ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    wanted, got = grad(config), grad(dataclasses.replace(config, remat=remat))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3), got, wanted)
    with pytest.raises(ValueError, match="remat 'some' is none of none, full, dots"):
        Decoder(dataclasses.replace(config, remat="some")).apply({"params": params}, tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close_and_gives_float32_logits(tiny, randomized, tokens, dtype):
    config = tiny()
    params = randomized(config)
    wanted = logits(config, params, tokens)
    half = jax.tree.map(lambda x: x.astype(dtype), params)
    got = logits(dataclasses.replace(config, dtype=dtype, param_dtype=dtype), half, tokens)
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
