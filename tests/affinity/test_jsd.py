"""The pairwise JSD against float64, within the bounds that kernels/jsd_term.py states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.affinity import jsd
from taskpgm.kernels.jsd_term import spread, term
from tests.kernels.jsd_reference import assert_within_bound, extreme, normalised, reference


@pytest.mark.parametrize(
    "n, t, v, dtype",
    [
        (5, 9, 7, jnp.float32),
        (4, 5, 512, jnp.float32),
        (4, 5, 512, jnp.bfloat16),
        (3, 2, 32000, jnp.float32),
        (4, 2, 50257, jnp.bfloat16),
        (2, 1, 151936, jnp.float32),
    ],
)
def test_pairwise_is_within_its_bound(n, t, v, dtype):
    rng = np.random.default_rng(v + n)
    base = rng.normal(size=(t, v)) * 3
    apart = np.logspace(-5, 0.5, n)[:, None, None] * rng.normal(size=(n, t, v))
    log_probs = jnp.asarray(normalised(base + apart), dtype)
    weights = rng.random((2, t)).astype(np.float32)
    pairs = np.asarray(jsd.pairwise(log_probs, weights))
    assert pairs.shape == (2, n * (n - 1) // 2) and pairs.dtype == np.float32
    assert_within_bound(log_probs.astype(jnp.float32), pairs, weights)


@pytest.mark.parametrize("tile", [64, 1 << 12])
def test_blocks_that_do_not_divide(monkeypatch, tile):
    monkeypatch.setitem(jsd._TILE, "cpu", tile)
    rng = np.random.default_rng(0)
    for n, t, v in [(3, 7, 1301), (6, 5, 29)]:
        log_probs = normalised(rng.normal(size=(n, t, v))).astype(np.float32)
        weights = rng.random((1, t)).astype(np.float32)
        # Compiled afresh: the block size is no argument of the function.
        jsd.pairwise.clear_cache()
        pairs = np.asarray(jsd.pairwise(log_probs, weights))
        assert_within_bound(log_probs, pairs, weights)
    jsd.pairwise.clear_cache()


@pytest.mark.parametrize("v", [7, 50257])
def test_zeros_and_1e_minus_30(v):
    log_probs = extreme(np.random.default_rng(1), 2, v).astype(np.float32)
    weights = np.array([[0.25, 0.75]], np.float32)
    pairs = np.asarray(jsd.pairwise(log_probs, weights))
    assert np.isfinite(pairs).all()
    assert_within_bound(log_probs, pairs, weights)
    i, j = np.triu_indices(7, 1)
    equal = (i == 0) & (j == 5) | (i == 2) & (j == 6)
    assert (pairs[0, equal] == 0).all()
    assert pairs[0, (i == 0) & (j == 1)] == pytest.approx(np.log(2), rel=2e-6)


def test_a_probability_of_1e_minus_30_counts():
    """In a sum with 1 its share would be rounded away, so these entries are summed apart."""
    p = jnp.asarray([-np.inf, np.log(1e-30), np.log(4e-30)], jnp.float32)
    terms = term(*spread(p[:, None]), *spread(p[None]))
    want = reference(np.asarray(p, np.float64)[:, None, None], np.asarray(p, np.float64)[:, None])
    np.testing.assert_allclose(terms, want, rtol=1e-5)


def test_nearly_equal_distributions_keep_their_digits():
    rng = np.random.default_rng(2)
    a = normalised(rng.normal(size=(1, 1000)) * 2).astype(np.float32)
    b = normalised(a.astype(np.float64) + 1e-4 * rng.normal(size=(1, 1000))).astype(np.float32)
    want = reference(a, b)[0]
    assert 1e-10 < want < 1e-8
    got = jsd.pairwise(np.stack([a, b]), np.ones((1, 1), np.float32))[0, 0]
    assert float(got) == pytest.approx(want, rel=5e-3)


def test_the_fit_over_its_whole_range():
    ratio = np.concatenate([np.linspace(0, 60, 4001), np.logspace(-3, 1, 2000)])
    a, b = np.zeros_like(ratio, np.float32), -ratio.astype(np.float32)
    got = np.asarray(term(*spread(a), *spread(b)), np.float64)
    want = reference(a[:, None], b[:, None])
    assert (np.abs(got - want) <= 2e-6 * want + 2e-7 * np.sqrt(want)).all()


@pytest.mark.parametrize("a, b", [(1, 4), (5, 2)])
def test_between_two_sets(a, b):
    rng = np.random.default_rng(3)
    log_probs = normalised(rng.normal(size=(a + b, 5, 700)) * 2).astype(np.float32)
    weights = rng.random((2, 5)).astype(np.float32)
    got = np.asarray(jsd.between(log_probs[:a], log_probs[a:], weights))
    wide = log_probs.astype(np.float64)
    want = np.einsum("et,abt->eab", weights, reference(wide[:a, None], wide[None, a:]))
    np.testing.assert_allclose(got, want, rtol=3e-6)


def test_one_model_has_no_pair():
    assert jsd.pairwise(jnp.zeros((1, 2, 3)), jnp.ones((4, 2))).shape == (4, 0)


def test_memory_stays_near_the_inputs():
    shape = jax.ShapeDtypeStruct((32, 64, 4096), jnp.float32)
    weights = jax.ShapeDtypeStruct((1, 64), jnp.float32)
    use = jsd.pairwise.lower(shape, weights).compile().memory_analysis()
    assert use.temp_size_in_bytes <= 0.1 * use.argument_size_in_bytes


def test_rows_of_positions_are_shared_out_over_devices():
    """XLA partitions the reduction, and the numbers stay the same."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = normalised(np.random.default_rng(6).normal(size=(3, 8, 70))).astype(np.float32)
    weights = np.ones((1, 8), np.float32)
    spread_out = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "data")))
    got = jax.jit(jsd.pairwise)(spread_out, weights)
    np.testing.assert_allclose(got, jsd.pairwise(x, weights), rtol=3e-6)


def test_kernels_are_chosen_by_name_alone():
    assert jsd.choose_kernel("xla") is jsd.pairwise
    with pytest.raises(ValueError, match="affinity.kernel must be 'xla' or 'pallas'; got 'fused'"):
        jsd.choose_kernel("fused")
    with pytest.raises(ValueError, match="'pallas' runs on one TPU device only, and this is 8 x"):
        jsd.choose_kernel("pallas")
