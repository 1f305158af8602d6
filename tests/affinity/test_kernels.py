"""The pairwise JSD against float64, within the bounds that kernels.py states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from taskpgm.affinity import fused, kernels


def reference(a, b):
    """JSD over the last axis, float64, of log-probabilities taken as they are; -inf allowed."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    p, q = np.exp(a), np.exp(b)
    with np.errstate(invalid="ignore", divide="ignore"):
        d = np.tanh(0.5 * (a - b))  # (p - q)/(p + q) without cancellation
        low = np.where(np.abs(d) < 1, (1 - d) * np.log1p(-d) + (1 + d) * np.log1p(d), 2 * np.log(2))
    return np.where(p + q > 0, 0.25 * (p + q) * low, 0.0).sum(-1)


def bound(jsd):
    return 2e-6 * jsd + 2e-7 * np.sqrt(jsd) + 1e-13


def normalised(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def assert_within_bound(log_probs, pairs, weights):
    """`pairs` [e p] is the weighted sum over positions, for i < j, of what float64 gives."""
    wide = np.asarray(log_probs, np.float64)
    i, j = np.triu_indices(len(wide), 1)
    for e, w in enumerate(np.asarray(weights, np.float64)):
        for k in range(len(i)):
            want = reference(wide[i[k]], wide[j[k]])
            assert abs(pairs[e, k] - w @ want) <= w @ bound(want), (i[k], j[k], e)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "n, t, v", [(2, 3, 7), (5, 9, 7), (4, 5, 512), (3, 2, 32000), (4, 2, 50257), (2, 1, 151936)]
)
def test_pairwise_is_within_its_bound(n, t, v, dtype):
    rng = np.random.default_rng(v + n)
    base = rng.normal(size=(t, v)) * 3
    apart = np.logspace(-5, 0.5, n)[:, None, None] * rng.normal(size=(n, t, v))
    log_probs = jnp.asarray(normalised(base + apart), dtype)
    weights = rng.random((2, t)).astype(np.float32)
    pairs = np.asarray(kernels.pairwise(log_probs, weights))
    assert pairs.shape == (2, n * (n - 1) // 2) and pairs.dtype == np.float32
    assert_within_bound(log_probs.astype(jnp.float32), pairs, weights)


@pytest.mark.parametrize("tile", [64, 1 << 12])
def test_blocks_that_do_not_divide(monkeypatch, tile):
    monkeypatch.setitem(kernels._TILE, "cpu", tile)
    rng = np.random.default_rng(0)
    for n, t, v in [(3, 7, 1301), (6, 5, 29)]:
        log_probs = normalised(rng.normal(size=(n, t, v))).astype(np.float32)
        weights = rng.random((1, t)).astype(np.float32)
        # Compiled afresh: the block size is no argument of the function.
        kernels.pairwise.clear_cache()
        pairs = np.asarray(kernels.pairwise(log_probs, weights))
        assert_within_bound(log_probs, pairs, weights)
    kernels.pairwise.clear_cache()


def extreme(rng, t, v):
    """Exact zeros, 1e-30, one-hot, disjoint, uniform and equal distributions."""
    one_hot = np.full((t, v), -np.inf)
    one_hot[:, 0] = 0.0
    other = np.roll(one_hot, 1, axis=-1)
    tiny = np.full((t, v), np.log(1e-30))
    tiny[:, 1] = np.log1p(-(v - 1) * 1e-30)
    holes = rng.normal(size=(t, v))
    holes[:, ::3] = -np.inf
    uniform = np.full((t, v), -np.log(v))
    return np.stack([one_hot, other, tiny, normalised(holes), uniform, one_hot, tiny])


@pytest.mark.parametrize("v", [7, 50257])
def test_zeros_and_1e_minus_30(v):
    log_probs = extreme(np.random.default_rng(1), 2, v).astype(np.float32)
    weights = np.array([[0.25, 0.75]], np.float32)
    pairs = np.asarray(kernels.pairwise(log_probs, weights))
    assert np.isfinite(pairs).all()
    assert_within_bound(log_probs, pairs, weights)
    i, j = np.triu_indices(7, 1)
    equal = (i == 0) & (j == 5) | (i == 2) & (j == 6)
    assert (pairs[0, equal] == 0).all()
    assert pairs[0, (i == 0) & (j == 1)] == pytest.approx(np.log(2), rel=2e-6)


def test_a_probability_of_1e_minus_30_counts():
    """Its share is lost in a sum beside 1, so the entries are summed apart."""
    p = jnp.asarray([-np.inf, np.log(1e-30), np.log(4e-30)], jnp.float32)
    terms = kernels.term(*kernels.spread(p[:, None]), *kernels.spread(p[None]))
    want = reference(np.asarray(p, np.float64)[:, None, None], np.asarray(p, np.float64)[:, None])
    np.testing.assert_allclose(terms, want, rtol=1e-5)


def test_nearly_equal_distributions_keep_their_digits():
    rng = np.random.default_rng(2)
    a = normalised(rng.normal(size=(1, 1000)) * 2).astype(np.float32)
    b = normalised(a.astype(np.float64) + 1e-4 * rng.normal(size=(1, 1000))).astype(np.float32)
    want = reference(a, b)[0]
    assert 1e-10 < want < 1e-8
    got = kernels.pairwise(np.stack([a, b]), np.ones((1, 1), np.float32))[0, 0]
    assert float(got) == pytest.approx(want, rel=5e-3)


def test_the_fit_over_its_whole_range():
    ratio = np.concatenate([np.linspace(0, 60, 4001), np.logspace(-3, 1, 2000)])
    a, b = np.zeros_like(ratio, np.float32), -ratio.astype(np.float32)
    got = np.asarray(kernels.term(*kernels.spread(a), *kernels.spread(b)), np.float64)
    want = reference(a[:, None], b[:, None])
    assert (np.abs(got - want) <= 2e-6 * want + 2e-7 * np.sqrt(want)).all()


@pytest.mark.parametrize("a, b", [(1, 4), (5, 2)])
def test_between_two_sets(a, b):
    rng = np.random.default_rng(3)
    log_probs = normalised(rng.normal(size=(a + b, 5, 700)) * 2).astype(np.float32)
    weights = rng.random((2, 5)).astype(np.float32)
    got = np.asarray(kernels.between(log_probs[:a], log_probs[a:], weights))
    wide = log_probs.astype(np.float64)
    want = np.einsum("et,abt->eab", weights, reference(wide[:a, None], wide[None, a:]))
    np.testing.assert_allclose(got, want, rtol=3e-6)


def test_one_model_has_no_pair():
    assert kernels.pairwise(jnp.zeros((1, 2, 3)), jnp.ones((4, 2))).shape == (4, 0)


def test_memory_stays_near_the_inputs():
    shape = jax.ShapeDtypeStruct((32, 64, 4096), jnp.float32)
    weights = jax.ShapeDtypeStruct((1, 64), jnp.float32)
    use = kernels.pairwise.lower(shape, weights).compile().memory_analysis()
    assert use.temp_size_in_bytes <= 0.1 * use.argument_size_in_bytes


FUSED = {"gpu": fused.pairwise_gpu, "tpu": fused.pairwise_tpu}


@pytest.mark.parametrize("form", FUSED)
@pytest.mark.parametrize(
    "n, t, v, dtype",
    [
        (5, 3, 300, jnp.float32),
        (9, 2, 130, jnp.bfloat16),
        (3, 2, 7, jnp.float32),
        (3, 2, 512, jnp.float32),
        (2, 1, 32000, jnp.bfloat16),
        (2, 1, 50257, jnp.float32),
        (2, 1, 151936, jnp.float32),
    ],
)
def test_fused_kernels_in_interpret_mode(form, n, t, v, dtype):
    rng = np.random.default_rng(4)
    log_probs = jnp.asarray(normalised(rng.normal(size=(n, t, v)) * 3), dtype)
    weights = rng.random((2, t)).astype(np.float32)
    pairs = np.asarray(FUSED[form](log_probs, weights, interpret=True))
    assert_within_bound(log_probs.astype(jnp.float32), pairs, weights)


@pytest.mark.parametrize("form", FUSED)
def test_fused_kernels_on_zeros_and_1e_minus_30(form):
    log_probs = extreme(np.random.default_rng(1), 2, 201).astype(np.float32)
    weights = np.array([[0.25, 0.75]], np.float32)
    pairs = np.asarray(FUSED[form](log_probs, weights, interpret=True))
    assert_within_bound(log_probs, pairs, weights)


@pytest.mark.parametrize("v", [512, 32000, 50257, 151936])
@pytest.mark.parametrize("form, platform", [("gpu", "cuda"), ("tpu", "tpu")])
def test_fused_kernels_lower_for_their_platform(form, platform, v):
    """Without a device: the kernel is translated to Triton's or Mosaic's language."""
    log_probs = jax.ShapeDtypeStruct((12, 130, v), jnp.bfloat16)
    weights = jax.ShapeDtypeStruct((1, 130), jnp.float32)
    kind, name = {"cuda": ("NVIDIA H200", "gpu"), "tpu": ("TPU v5", "tpu")}[platform]
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=name)
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        lowered = FUSED[form].trace(log_probs, weights).lower(lowering_platforms=(platform,))
    assert "custom_call" in lowered.as_text()


@pytest.mark.gpu
@pytest.mark.parametrize("v", [7, 512, 32000, 50257, 151936])
def test_fused_kernel_on_a_gpu(v):
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU")
    rng = np.random.default_rng(5)
    log_probs = jnp.asarray(normalised(rng.normal(size=(12, 3, v)) * 3), jnp.float32)
    weights = rng.random((2, 3)).astype(np.float32)
    assert_within_bound(log_probs, np.asarray(fused.pairwise_gpu(log_probs, weights)), weights)
