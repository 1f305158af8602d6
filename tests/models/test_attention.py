"""Every backend against the definition in float64, and what each backend refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import attention as module
from taskpgm.models.attention import BACKENDS, AttentionInputs, attention
from taskpgm.stages.defaults import ATTENTION
from taskpgm.training import make_mesh


def inputs(b=2, t=24, h=4, n=2, d=8, s=None, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (b, t, h, d), (b, s or t, n, d), (b, s or t, n, d)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def segments(b, *lengths):
    row = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths[:-1])])
    row = np.concatenate([row, np.zeros(lengths[-1], int)])
    return jnp.asarray(np.tile(row.astype(np.int32), (b, 1)))


def definition(q, k, v, segment_ids=None, window=None, offset=0):
    """One query and one head at a time, float64."""
    segment_ids = None if segment_ids is None else np.asarray(segment_ids)
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    b, t, h, d = q.shape
    out = np.zeros_like(q)
    for row, i, head in np.ndindex(b, t, h):
        at = offset + i
        keys = [
            j
            for j in range(at + 1)
            if (window is None or at - j < window)
            and (segment_ids is None or segment_ids[row, j] == segment_ids[row, i])
        ]
        group = head // (h // k.shape[2])
        score = k[row, keys, group] @ q[row, i, head] / np.sqrt(d)
        weight = np.exp(score - score.max())
        out[row, i, head] = weight / weight.sum() @ v[row, keys, group]
    return out


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_reference_is_the_definition(window, packed):
    q, k, v = inputs()
    ids = segments(2, 9, 11, 4) if packed else None
    wanted = definition(q, k, v, ids, window)
    got = attention(q, k, v, segment_ids=ids, window=window, backend="reference")
    np.testing.assert_allclose(got, wanted, atol=2e-6)
    if window is not None:  # traced, as where layers differ
        traced = jax.jit(lambda w: attention(q, k, v, segment_ids=ids, window=w))(window)
        np.testing.assert_allclose(traced, wanted, atol=2e-6)


def test_offset_is_where_the_queries_are():
    q, k, v = inputs()
    whole = attention(q, k, v, window=7)
    for offset in (20, jnp.int32(20)):
        part = attention(q[:, 20:], k, v, window=7, offset=offset)
        np.testing.assert_allclose(part, whole[:, 20:], atol=1e-6)


@pytest.mark.parametrize(("window", "packed"), [(None, False), (13, True)])
def test_blocks_of_a_long_row_change_nothing(window, packed, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)
    q, k, v = inputs(t=40)
    ids = segments(2, 21, 9, 10) if packed else None

    def run(q, k, v, offset):
        return attention(q, k, v, segment_ids=ids, window=window, offset=offset)

    # A traced offset cannot be blocked: the same rows, all keys at once.
    def with_gradient(q, k, v, offset):
        out, pull = jax.vjp(lambda *x: run(*x, offset), q, k, v)
        return out, pull(out)

    wanted = jax.jit(with_gradient)(q, k, v, 0)
    got = jax.jit(partial(with_gradient, offset=0))(q, k, v)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got, wanted)
    np.testing.assert_allclose(got[0], definition(q, k, v, ids, window), atol=2e-6)


def gradients(backend, ids, window, *qkv):
    """dq, dk, dv of a loss, and the output."""

    def loss(q, k, v):
        y = attention(q, k, v, segment_ids=ids, window=window, backend=backend)
        return (y.astype(jnp.float32) ** 2).sum(), y

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)


def test_splash_equals_reference_with_a_window_and_two_segments():
    """The kernel of the TPU, interpreted: output and gradients, padding included."""
    q, k, v = inputs(t=128)
    ids = segments(2, 50, 60, 18)
    got, wanted = (gradients(name, ids, 37, q, k, v) for name in ("splash", "reference"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), got, wanted)


def test_splash_over_a_mesh():
    """Each device takes its rows and heads; without a window, gradients as well."""
    q, k, v = inputs(b=4, t=128, d=16)
    ids = segments(4, 50, 60, 18)
    wanted = gradients("reference", ids, None, q, k, v)
    with jax.set_mesh(make_mesh({"data": 4, "tensor": 2})):
        got = gradients("splash", ids, None, q, k, v)
    for x in jax.tree.leaves(got):
        assert x.sharding.spec == jax.P("data", None, "tensor")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), got, wanted)


@pytest.mark.parametrize(
    ("backend", "change", "said"),
    [
        ("flash", {}, "'flash' is none of auto, "),
        ("cudnn", {"offset": 1}, "'cudnn' has neither a cache"),
        ("cudnn", {}, "'cudnn' needs bfloat16 or float16, not float32"),
        ("splash", {}, "'splash' needs rows of a multiple of 128 tokens, not 24"),
        ("splash", {"offset": 1}, "'splash' has no cache"),
        ("splash", {"window": jnp.int32(3)}, "'splash' needs one sliding window"),
    ],
)
def test_refusals(backend, change, said):
    q, k, v = map(jnp.asarray, inputs())
    change = {x: segments(2, 9, 11, 4) if "segment" in x else y for x, y in change.items()}
    with pytest.raises(ValueError, match=said):
        attention(q, k, v, backend=backend, **change)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 37])
def test_cudnn_equals_reference(window, packed):
    """Values and gradients, in bfloat16."""
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs(t=256, d=64))
    segment_ids = jnp.asarray(segments(q.shape[0], 100, 60, 96)) if packed else None

    def both(backend):
        def loss(q, k, v):
            out = attention(q, k, v, window=window, segment_ids=segment_ids, backend=backend)
            return (out.astype(jnp.float32) ** 2).sum(), out

        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    for got, wanted in zip(both("cudnn"), both("reference"), strict=True):
        np.testing.assert_allclose(got, wanted, atol=3e-2 * max(1.0, np.abs(wanted).max()))


def stand_in(monkeypatch, capability):
    """The CPU plays a GPU of this compute capability."""

    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Device()])


@pytest.mark.parametrize(
    ("change", "backend"),
    [
        ({}, "cudnn"),
        ({"window": 5}, "cudnn"),
        ({"segment_ids": True, "key_segment_ids": True}, "cudnn"),
        ({"segment_ids": True, "key_segment_ids": True, "window": 5}, "cudnn"),
        ({"segment_ids": True, "key_segment_ids": True, "offset": 1}, "reference"),
        ({"segment_ids": True, "key_segment_ids": True, "t": 23}, "reference"),
        ({"window": jnp.int32(5)}, "reference"),
        ({"offset": 1}, "reference"),
        ({"dtype": jnp.float32}, "reference"),
        ({"d": 20}, "reference"),
        ({"d": 256}, "reference"),
        ({"s": 30}, "reference"),
        ({"capability": "7.5"}, "reference"),
        ({"capability": "gfx942"}, "reference"),
        ({"capability": "12.0"}, "cudnn"),
    ],
    ids=str,
)
def test_auto_is_cudnn_where_that_covers_the_arguments(monkeypatch, change, backend):
    change = dict(change)
    stand_in(monkeypatch, change.pop("capability", "9.0"))
    dtype = change.pop("dtype", jnp.bfloat16)
    shape = {name: change.pop(name) for name in ("d", "s", "t") if name in change}
    qkv = [jnp.asarray(x, dtype) for x in inputs(**({"d": 64} | shape))]
    rest = {"segment_ids": None, "key_segment_ids": None, "offset": 0, "window": None} | change
    ids = segments(2, 9, 11, qkv[0].shape[1] - 20)  # the same ones for keys, as `attention` gives
    rest = {x: ids if y is True else y for x, y in rest.items()}
    assert module.choose(AttentionInputs(*qkv, **rest)) == backend


def test_packed_rows_over_several_devices_are_the_reference(monkeypatch):
    """cuDNN's attention of packed rows has run on one device only."""
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs(d=64))
    ids = segments(2, 9, 11, 4)
    for sizes, backend in (({"data": 1}, "cudnn"), ({"data": 2}, "reference")):
        mesh = make_mesh(sizes, jax.devices()[: sizes["data"]])
        with monkeypatch.context() as patch, jax.set_mesh(mesh):
            stand_in(patch, "9.0")
            assert module.choose(AttentionInputs(q, k, v, ids, ids, 0, None)) == backend


def test_auto_is_the_reference_on_a_cpu():
    qkv = [jnp.asarray(x, jnp.bfloat16) for x in inputs(d=64)]
    assert module.choose(AttentionInputs(*qkv, None, None, 0, None)) == "reference"


def test_kernels_are_asked_for_by_name():
    # "auto" is cuDNN where that covers the rows, so a config has no word for it.
    assert set(ATTENTION) == {"auto", "reference", "splash"} == {"auto", *BACKENDS} - {"cudnn"}
