"""Every backend against the definition in float64; what a backend cannot honour it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, use_abstract_mesh

from taskpgm.models import attention as module
from taskpgm.models.attention import BACKENDS, attention

pytestmark = pytest.mark.usefixtures("quick_compile")


def inputs(b=2, t=24, h=4, n=2, d=8, s=None, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (b, t, h, d), (b, s or t, n, d), (b, s or t, n, d)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def segments(b, *lengths):
    row = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths[:-1])])
    return np.tile(np.concatenate([row, np.zeros(lengths[-1], int)]).astype(np.int32), (b, 1))


def definition(q, k, v, segment_ids=None, window=None, offset=0):
    """One query and one head at a time, float64."""
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


@pytest.mark.parametrize("window", [None, 13])
@pytest.mark.parametrize("packed", [False, True])
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


@pytest.mark.parametrize("window", [None, 37])
def test_splash_equals_reference_with_two_segments(window):
    """The kernel of the TPU, interpreted: output and gradients, padding included."""
    q, k, v = inputs(t=128)
    ids = segments(2, 50, 60, 18)
    got, wanted = (gradients(name, ids, window, q, k, v) for name in ("splash", "reference"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), got, wanted)


@pytest.mark.parametrize(
    "lengths, heads, d, window",
    [
        ((50, 60, 18), (4, 2), 16, None),
        ((90, 110, 1), (6, 2), 24, 201),  # no multiple of a block; a window of the whole row
        ((7, 4), (2, 2), 16, None),
        (None, (3, 1), 32, None),
    ],
)
def test_triton_equals_reference(lengths, heads, d, window):
    """The kernel of the GPU, interpreted: output and gradients. 16 bits: see test_admission.py."""
    q, k, v = inputs(t=sum(lengths or (130,)), h=heads[0], n=heads[1], d=d)
    ids = segments(2, *lengths) if lengths else None
    got, wanted = (gradients(name, ids, window, q, k, v) for name in ("triton", "reference"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), got, wanted)


def test_triton_repeats_no_key():
    """Four query heads of one key head: the kernel is given that one head."""
    q, k, v = (jnp.asarray(x) for x in inputs(t=128, h=8, n=2, d=16))
    jaxpr = str(jax.make_jaxpr(lambda *x: attention(*x, backend="triton"))(q, k, v))
    assert "f32[4,2,128,2,16]" in jaxpr and jaxpr.count("f32[2,128,2,16]") >= 2
    assert "f32[2,128,8,16]" in jaxpr and "f32[2,128,2,4,16]" in jaxpr  # of queries alone


@pytest.mark.parametrize("h, n, d", [(32, 32, 128), (28, 4, 128), (12, 12, 64), (4, 4, 80)])
def test_triton_lowers_for_cuda(monkeypatch, h, n, d):
    """Without a device: forward and backward, adapters side by side, in Triton's language."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k = (jax.ShapeDtypeStruct((3, 1, 300, heads, d), jnp.bfloat16) for heads in (h, n))
    ids = jax.ShapeDtypeStruct((3, 1, 300), jnp.int32)

    def both(q, k, v, ids):
        attend = partial(attention, segment_ids=ids, backend="triton")
        out, pull = jax.vjp(attend, q, k, v)
        return pull(out)

    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=1, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        traced = jax.jit(jax.vmap(both)).trace(q, k, k, ids)
        lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("mha_forward", "mha_preprocess_backward", "mha_backward"):
        assert kernel in lowered


@pytest.mark.parametrize("known", ["set_mesh", "by the arrays"])
@pytest.mark.parametrize("backend", ["splash", "triton"])
def test_a_kernel_over_a_mesh(backend, known):
    """Each device takes its rows and heads, whoever tells the mesh; gradients as well."""
    q, k, v = inputs(b=4, t=128, d=16)
    ids = segments(4, 50, 60, 18)
    wanted = gradients("reference", ids, None, q, k, v)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=auto)
    if known == "set_mesh":
        with jax.set_mesh(mesh):
            got = gradients(backend, ids, None, q, k, v)
    else:
        # One array tells; how it lies there does not matter.
        got = gradients(backend, ids, None, jax.device_put(q, NamedSharding(mesh, jax.P())), k, v)
    for x in jax.tree.leaves(got):
        assert x.sharding.spec == jax.P("data", None, "tensor")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), got, wanted)


@pytest.mark.parametrize(
    ("backend", "change", "said"),
    [
        ("flash", {}, "'flash' is none of auto, "),
        ("cudnn", {"segment_ids": True}, "'cudnn' cannot keep segments apart"),
        ("cudnn", {"offset": 1}, "'cudnn' has neither a cache"),
        ("cudnn", {}, "'cudnn' needs bfloat16 or float16, not float32"),
        ("splash", {}, "'splash' needs rows of a multiple of 128 tokens, not 24"),
        ("splash", {"offset": 1}, "'splash' has no cache"),
        ("splash", {"window": jnp.int32(3)}, "'splash' needs one sliding window"),
        ("triton", {"offset": 1}, "'triton' has no cache"),
        ("triton", {"window": 23}, "'triton' has no sliding window; use 'reference', or rows"),
        ("triton", {"window": jnp.int32(30)}, "'triton' has no sliding window"),
        ("triton", {"key_segment_ids": True}, "'triton' needs the same segments"),
        ("triton", {}, "'triton' needs a head_dim of at least 16, not 8"),
    ],
)
def test_refusals(backend, change, said):
    q, k, v = map(jnp.asarray, inputs())
    change = {x: segments(2, 9, 11, 4) if "segment" in x else y for x, y in change.items()}
    with pytest.raises(ValueError, match=said):
        attention(q, k, v, backend=backend, **change)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("window", [None, 37])
def test_cudnn_equals_reference(window):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs(t=256, d=64))
    got = attention(q, k, v, window=window, backend="cudnn")
    wanted = attention(q, k, v, window=window, backend="reference")
    np.testing.assert_allclose(got.astype(np.float32), wanted.astype(np.float32), atol=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="Triton needs a GPU")
@pytest.mark.parametrize("t", [300, 4096])
@pytest.mark.parametrize("h, n, d", [(4, 4, 128), (14, 2, 128), (4, 4, 64)])
def test_triton_equals_reference_on_a_gpu(t, h, n, d):
    """Adapters side by side: a leading axis of two. Errors are shares of the largest value."""
    rounded = [jnp.asarray(x, jnp.bfloat16)[:, None] for x in inputs(t=t, h=h, n=n, d=d)]
    ids = segments(1, t // 3, t // 2, t - t // 3 - t // 2)
    got = jax.vmap(partial(gradients, "triton", ids, None))(*rounded)
    with jax.default_matmul_precision("highest"):
        exact = [x.astype(jnp.float32) for x in rounded]
        wanted = jax.vmap(partial(gradients, "reference", ids, None))(*exact)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y)
        np.testing.assert_allclose(x, y, atol=2e-2 * np.abs(y).max())


def test_every_backend_is_known():
    assert set(BACKENDS) == {"reference", "cudnn", "splash", "triton"}
