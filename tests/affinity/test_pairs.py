"""The fused kernel reduces pairs where it agrees with XLA's form; the CPU plays its platform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from taskpgm.affinity import fused, jensen_shannon, kernels, pairs, stream


def right(log_probs, weights):
    return fused.pairwise_gpu(log_probs, weights, interpret=True)


def wrong(log_probs, weights):
    return right(log_probs, weights) * (1 + 1e-4)


def raises(log_probs, weights):
    raise NotImplementedError("no such operation on this device")


def nan(log_probs, weights):
    return right(log_probs, weights) + jnp.nan


@pytest.fixture
def offer(monkeypatch):
    """offer(kernel): the fused kernel of this platform, not admitted yet. Returns its calls."""

    def make(kernel):
        calls = []

        def counted(log_probs, weights):
            calls.append(log_probs.shape)
            return kernel(log_probs, weights)

        monkeypatch.setattr(fused, "counted", counted, raising=False)
        monkeypatch.setitem(pairs.FUSED, jax.default_backend(), "counted")
        return calls

    pairs.admitted.cache_clear()
    stream._reduce.clear_cache()
    yield make
    pairs.admitted.cache_clear()
    stream._reduce.clear_cache()


def some(n, t, v, seed=0):
    x = 3 * np.random.default_rng(seed).normal(size=(n, t, v)).astype(np.float32)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("n, t, v", [(1, 2, 70), (3, 2, 70), (9, 3, 2000), (3, 2, 7)])
def test_a_right_kernel_is_used_for_the_matrix(offer, caplog, n, t, v):
    calls = offer(right)
    x = some(n, t, v)
    got = jensen_shannon(x)
    asked = [(n, t, min(v, 1536 + v % 512))] if n > 1 else []
    assert calls == asked + [(n, t, v)] * (n > 1) and not caplog.records
    want = np.asarray(kernels.pairwise(x, np.full((1, t), 1 / t, np.float32)))[0]
    np.testing.assert_allclose(got[np.triu_indices(n, 1)], want, rtol=3e-6)


@pytest.mark.parametrize(
    "kernel, said",
    [
        (wrong, "a divergence is off by"),
        (nan, "a divergence is off by nan times"),
        (raises, "NotImplementedError: no such operation on this device"),
    ],
)
def test_a_wrong_one_is_named_once_and_replaced(offer, caplog, kernel, said):
    calls = offer(kernel)
    x, weights = some(3, 2, 70), np.ones((1, 2), np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(pairs.pairwise(x, weights), kernels.pairwise(x, weights))
    assert calls == [(3, 2, 70)]
    (record,) = caplog.records
    line = "the fused JSD kernel is not used on this machine, but XLA's form: "
    assert record.getMessage().startswith(line + said)


def test_the_stream_uses_it_as_well(offer):
    calls = offer(right)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(4, 6, 8)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(8, 70)), jnp.float32)
    whole = np.zeros(6, np.int32)
    window = stream.TargetWindow(
        *[np.zeros((1, 6), np.int32)] * 3, whole, whole, whole, np.int32(6)
    )
    run = partial(stream._reduce, most=1, span=3, top_k=None)
    ones = np.full(6, 1 / 6, np.float32)
    _, got = run((hidden, head), None, window, whole, ones)
    assert calls == [(4, 3, 70)] * 2  # asked in the middle of the trace, and then traced
    log_probs = jax.nn.log_softmax(hidden @ head)
    np.testing.assert_allclose(got, kernels.pairwise(log_probs, ones[None]), rtol=3e-6)


def test_over_several_devices_xla_partitions(offer):
    calls = offer(right)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(some(3, 8, 70), NamedSharding(mesh, jax.P(None, "data")))
    jax.jit(pairs.pairwise)(x, np.ones((1, 8), np.float32))
    assert calls == []


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("n, v", [(2, 32000), (27, 50257), (316, 151936)])
def test_a_gpu_admits_its_kernel(n, v):
    shape = min(n, 8 + n % 8), 64, min(v, 1536 + v % 512)
    assert pairs.admitted("gpu", np.dtype(np.float32), shape)
