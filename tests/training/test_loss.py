"""The chunked cross entropy is the plain one, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.training import loss
from taskpgm.training.loss import cross_entropy


def plain(hidden, unembedding, targets, weights):
    """The value, and its gradients of the first two, in float64 and from all logits."""
    hidden, unembedding, weights = (np.asarray(x, float) for x in (hidden, unembedding, weights))
    logits, rows = hidden @ unembedding, np.arange(len(targets))
    logits -= logits.max(-1, keepdims=True)
    sums = np.exp(logits).sum(-1)
    value = ((np.log(sums) - logits[rows, targets]) * weights).sum()
    logits = np.exp(logits) / sums[:, None]
    logits[rows, targets] -= 1
    logits *= weights[:, None]
    return value, (logits @ unembedding.T, hidden.T @ logits)


def plain_float32(hidden, unembedding, targets, weights):
    """The value, as a framework computes it from all logits."""
    logits = jnp.dot(hidden, unembedding)
    target = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - target) * weights)


def problem(n, d, v, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, d)).astype(dtype)
    unembedding = (rng.normal(size=(d, v)) * d**-0.5).astype(dtype)
    targets = rng.integers(0, v, n).astype(np.int32)
    return hidden, unembedding, targets, (rng.random(n) < 0.7).astype(np.float32)


def chunked(chunk):
    return lambda *args: cross_entropy(*args, chunk=chunk)[0]


def assert_close(a, b, tolerance=1e-6):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.max(np.abs(a - b)) <= tolerance * max(1.0, np.max(np.abs(b)))


@pytest.mark.parametrize("v", [50257, 151936])
def test_equals_plain(v):
    """In float32: sums over so many entries lose a digit in whatever order they are made."""
    args = problem(24, 8, v)
    value, gradient = jax.jit(jax.value_and_grad(chunked(8), argnums=(0, 1)))(*args)
    expected, wanted = jax.jit(jax.value_and_grad(plain_float32, argnums=(0, 1)))(*args)
    assert_close(value, expected)
    for got, want in zip(gradient, wanted, strict=True):
        assert_close(got, want)
    assert_close(jax.jit(chunked(8))(*args), expected)  # the path without a gradient


@pytest.mark.parametrize(
    "n,chunk,shards",
    [(1, 4, 1), (7, 3, 1), (13, 4, 1), (16, 16, 1), (12, 1, 1), (24, 8, 4), (26, 8, 2)],
)
def test_any_length_and_chunk(n, chunk, shards):
    args = problem(n, 5, 11)
    loss = partial(cross_entropy, chunk=chunk, shards=shards)
    (value, _), gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*args)
    expected, wanted = plain(*args)
    assert_close(value, expected)
    for got, want in zip(gradient, wanted, strict=True):
        assert_close(got, want)


def test_sum_of_weights():
    hidden, unembedding, targets, weights = problem(9, 4, 7)
    compiled = jax.jit(partial(cross_entropy, chunk=4))
    assert compiled(hidden, unembedding, targets, weights)[1] == weights.sum()


def test_float32_sums_from_bfloat16():
    args = problem(64, 16, 1000, dtype=jnp.bfloat16)
    exact, _ = plain(*args)
    value, _ = jax.jit(partial(cross_entropy, chunk=16))(*args)
    assert value.dtype == jnp.float32
    # Products of bfloat16 numbers are exact in float32, so only the order of the sums differs.
    np.testing.assert_allclose(value, exact, rtol=1e-5)


def test_extreme_logits_stay_finite():
    hidden, unembedding, targets, weights = problem(8, 4, 16)
    hidden *= 1e4
    compiled = jax.jit(jax.value_and_grad(chunked(4)))
    value, gradient = compiled(hidden, unembedding, targets, weights)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        for out in equation.outvars:
            yield out.aval.shape
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes_in(inner)


def test_full_logits_never_exist():
    n, d, v, chunk = 64, 4, 512, 8
    args = problem(n, d, v)
    for function in (chunked(chunk), jax.grad(chunked(chunk), argnums=(0, 1))):
        sizes = [np.prod(shape) for shape in shapes_in(jax.make_jaxpr(function)(*args).jaxpr)]
        assert max(sizes) <= max(chunk * v, d * v)
    memory = jax.jit(jax.grad(chunked(chunk))).lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * v * 4


@pytest.mark.parametrize(("rest", "shards"), [(1, 1), (3, 1), (3, 2), (8, 2)])
def test_what_does_not_fill_a_chunk_goes_in_small_ones(rest, shards, monkeypatch):
    monkeypatch.setattr(loss, "REST", {jax.default_backend(): rest})
    function = jax.jit(partial(cross_entropy, chunk=8 * shards, shards=shards))
    graded = jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))
    for seed in range(4):  # about 35 of 50 rows are scored: whole chunks, and a remainder
        args = problem(50, 5, 11, seed)
        (value, _), gradient = graded(*args)
        expected, wanted = plain(*args)
        assert_close(value, expected)
        assert_close(function(*args)[0], expected)  # the path without a gradient
        for got, want in zip(gradient, wanted, strict=True):
            assert_close(got, want)


def test_fewer_rows_than_a_small_chunk_are_multiplied_in_vain(monkeypatch):
    monkeypatch.setattr(loss, "REST", {jax.default_backend(): 2})
    weights = np.array([1.0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0], np.float32)
    # Five scored rows in a chunk of 16: three rounds of two, so the first row without weight too.
    assert untouched_by(weights, 16) == [False, False, False, True, False] + [
        w == 0 for w in weights[5:]
    ]


def untouched_by(weights, chunk, **options):
    """Which rows the loss never multiplies: an infinite row that it does multiply shows."""
    hidden, unembedding, targets, _ = problem(len(weights), 4, 16)
    compiled = jax.jit(partial(cross_entropy, chunk=chunk, **options))
    out = []
    for row in range(len(weights)):
        poisoned = hidden.copy()
        poisoned[row] = np.inf
        value, _ = compiled(poisoned, unembedding, targets, weights)
        out.append(bool(np.isfinite(value)))
    return out


def test_rows_that_do_not_count_are_not_multiplied():
    weights = np.array([0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0.5], np.float32)
    untouched = untouched_by(weights, 3)
    assert untouched == [w == 0 for w in weights]  # three scored rows: one round, of just these
    # Of two blocks three rows each: the first ones without weight fill the round up.
    wanted = [False, False, True, True, True, False] + [False, False, True, True, True, False]
    assert untouched_by(weights, 6, shards=2) == wanted
    nothing = np.zeros(6, np.float32)
    none = jax.jit(partial(cross_entropy, chunk=2))(*problem(6, 4, 16)[:3], nothing)
    assert none == (0.0, 0.0)


def test_frozen_unembedding_has_no_gradient_product():
    n, d, v = 64, 4, 512
    args = problem(n, d, v)
    shapes = set(shapes_in(jax.make_jaxpr(jax.grad(chunked(8)))(*args).jaxpr))
    assert (1, d, v) not in shapes
    shapes = set(shapes_in(jax.make_jaxpr(jax.grad(chunked(8), argnums=(0, 1)))(*args).jaxpr))
    assert (1, d, v) in shapes


def test_vmap_over_adapters_with_one_unembedding():
    g, n, d, v = 3, 16, 6, 40
    hidden, unembedding, targets, weights = problem(g * n, d, v)
    hidden, targets, weights = (x.reshape(g, n, *x.shape[1:]) for x in (hidden, targets, weights))
    named = jax.value_and_grad(lambda *a: cross_entropy(*a, chunk=4, axis_name="task")[0])
    together = jax.jit(jax.vmap(named, in_axes=(0, None, 0, 0), axis_name="task"))
    value, gradient = together(hidden, unembedding, targets, weights)
    for i in range(g):
        expected, (wanted, _) = plain(hidden[i], unembedding, targets[i], weights[i])
        assert_close(value[i], expected)
        assert_close(gradient[i], wanted)
    jaxpr = jax.make_jaxpr(together)(hidden, unembedding, targets, weights)
    assert not {(g, d, v), (g, 1, d, v)} & set(shapes_in(jaxpr.jaxpr))


@pytest.mark.parametrize(
    ("n", "v", "spec"),
    [
        (32, 256, ("fsdp", "tensor")),
        (32, 256, (None, "tensor")),
        (32, 256, (None, ("fsdp", "tensor"))),
        (16, 32000, ("fsdp", "tensor")),
        (16, 151936, ("fsdp", "tensor")),
        (16, 151936, (None, ("fsdp", "tensor"))),
    ],
)
def test_sharded_vocabulary(n, v, spec):
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def put(x, *names):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))
        return jax.device_put(x, sharding)

    hidden, unembedding, targets, weights = problem(n, 8, v)
    # Most words are orthogonal to every state: float32 sums over all of them, in whatever order
    # (here and in the plain form alike), would be no better than the tolerance.
    related = (np.random.default_rng(1).random(v) < 0.1) | np.isin(np.arange(v), targets)
    args = hidden, unembedding * related, targets, weights
    expected, wanted = plain(*args)
    hidden, unembedding, targets, weights = args
    unembedding = put(unembedding, *spec)
    args = (put(hidden, "fsdp"), unembedding, put(targets, "fsdp"), put(weights, "fsdp"))
    step = jax.jit(
        jax.value_and_grad(partial(cross_entropy, chunk=8, shards=2), (0, 1), has_aux=True),
        out_shardings=(None, (args[0].sharding, unembedding.sharding)),
    )
    (value, _), gradient = step(*args)
    assert_close(value, expected)
    for got, want in zip(gradient, wanted, strict=True):
        assert_close(got, want)


def test_bad_shapes_are_named():
    hidden, unembedding, targets, weights = map(jnp.asarray, problem(8, 4, 16))
    # The annotations say so too, and first, where they are checked.
    with pytest.raises((ValueError, TypeError), match="do not fit|'unembedding'"):
        cross_entropy(hidden, unembedding.T, targets, weights)
    with pytest.raises(ValueError, match="chunk is 0"):
        cross_entropy(hidden, unembedding, targets, weights, chunk=0)
    with pytest.raises(ValueError, match="no gradient of them"):
        jax.grad(chunked(4), argnums=3)(hidden, unembedding, targets, weights)
    with pytest.raises(ValueError, match="8 rows are not split evenly by 3"):
        cross_entropy(hidden, unembedding, targets, weights, shards=3)
