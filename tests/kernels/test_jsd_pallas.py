"""The TPU's pairwise JSD, interpreted on a CPU, within the bounds of XLA's form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from taskpgm.affinity.layout import pair_sums
from taskpgm.kernels.jsd_pallas import pairwise
from tests.kernels.jsd_reference import assert_within_bound, extreme, normalised


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
def test_in_interpret_mode(n, t, v, dtype):
    rng = np.random.default_rng(4)
    log_probs = jnp.asarray(normalised(rng.normal(size=(n, t, v)) * 3), dtype)
    weights = rng.random((2, t)).astype(np.float32)
    pairs = np.asarray(pairwise(log_probs, weights, interpret=True))
    assert_within_bound(log_probs.astype(jnp.float32), pairs, weights)


def test_on_zeros_and_1e_minus_30():
    log_probs = extreme(np.random.default_rng(1), 2, 201).astype(np.float32)
    weights = np.array([[0.25, 0.75]], np.float32)
    pairs = np.asarray(pairwise(log_probs, weights, interpret=True))
    assert_within_bound(log_probs, pairs, weights)


def test_one_model_has_no_pair():
    assert pairwise(jnp.zeros((1, 2, 3)), jnp.ones((4, 2))).shape == (4, 0)


@pytest.mark.parametrize("v", [512, 32000, 50257, 151936])
def test_it_lowers_for_a_tpu(v):
    """Needs no device: the kernel is only lowered to Mosaic."""
    log_probs = jax.ShapeDtypeStruct((12, 130, v), jnp.bfloat16)
    weights = jax.ShapeDtypeStruct((1, 130), jnp.float32)
    device = AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        lowered = pairwise.trace(log_probs, weights).lower(lowering_platforms=("tpu",))
    assert "custom_call" in lowered.as_text()


@pytest.mark.parametrize("n", [2, 3, 9, 31, 316])
def test_its_sums_are_counted_in_the_layout(n):
    """The layout counts all bytes per position that it keeps in addition to the distributions."""
    t, v = 16, 512
    x, weights = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, t, v), (1, t)))
    made = [y.aval for e in pairwise.trace(x, weights).jaxpr.eqns for y in e.outvars]
    sums = sum(a.size for a in made if jnp.issubdtype(a.dtype, jnp.floating) and t in a.shape)
    assert t * n * n <= sums <= t * pair_sums(n)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "tpu", reason="needs a TPU")
@pytest.mark.parametrize("v", [512, 32000, 50257, 151936])
def test_on_its_hardware(v):
    rng = np.random.default_rng(5)
    log_probs = jnp.asarray(normalised(rng.normal(size=(12, 3, v)) * 3), jnp.float32)
    weights = rng.random((2, 3)).astype(np.float32)
    assert_within_bound(log_probs, np.asarray(pairwise(log_probs, weights)), weights)
