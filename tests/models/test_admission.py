"""A backend is used only where it has shown that it is right; the CPU plays the platform here."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import attention as module
from taskpgm.models.attention import Kind, attention, choose

pytestmark = pytest.mark.usefixtures("quick_compile")


def right(*args):
    return module.reference(*args)


def leaks(q, k, v, segment_ids, key_segment_ids, offset, window):
    return module.reference(q, k, v, None, None, offset, window)


def leaks_backwards(*args):
    """The right output, with a gradient that knows nothing of segments."""
    wrong = leaks(*args)
    return wrong + jax.lax.stop_gradient(right(*args) - wrong)


def raises(*args):
    raise RuntimeError("PTX assembly aborted\nand forty more lines")


def nan(q, *args):
    return right(q, *args) * jnp.nan


@pytest.fixture
def offer(monkeypatch):
    """offer(name=backend, ...): fused backends of this platform, in this order; none admitted yet.

    Returns the list of those that are asked, one entry a call.
    """

    def make(**backends):
        asked = []

        def counted(name, backend):
            return lambda *args: asked.append(name) or backend(*args)

        for name, backend in backends.items():
            monkeypatch.setitem(module.BACKENDS, name, counted(name, backend))
        honours = dict.fromkeys(backends, lambda kind: True)
        monkeypatch.setitem(module.FUSED, jax.default_backend(), honours)
        return asked

    module.admitted.cache_clear()
    yield make
    module.admitted.cache_clear()


def inputs(dtype=jnp.float32, t=40, h=4, n=2, d=8):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, t, x, d)), dtype) for x in (h, n, n))
    ids = np.tile(np.repeat([1, 2, 0], [15, 20, t - 35]).astype(np.int32), (2, 1))
    return q, k, v, ids


def chosen(q, k, v, ids, window=None):
    return choose(q, k, v, ids, ids, 0, window)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_right_is_used_and_nothing_is_said(offer, caplog, dtype):
    asked = offer(fast=right)
    assert chosen(*inputs(dtype)) == "fast" and asked == ["fast"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (leaks, "output of bfloat16 is"),
        (leaks_backwards, "dq of bfloat16 is"),
        (raises, "RuntimeError: PTX assembly aborted"),
        (nan, "output of bfloat16 is nan off"),
    ],
)
def test_what_is_wrong_is_named_once_and_replaced(offer, caplog, backend, said):
    asked = offer(fast=backend)
    q, k, v, ids = inputs(jnp.bfloat16)
    for _ in range(2):
        assert chosen(q, k, v, ids) == "reference"
    wanted = attention(q, k, v, segment_ids=ids, backend="reference")
    np.testing.assert_array_equal(attention(q, k, v, segment_ids=ids), wanted)
    assert asked == ["fast"]
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("attention 'fast' is not used on this machine, but 'reference': " + said)
    assert "\n" not in line


def test_the_next_one_is_asked_and_each_kind_is_another_question(offer, caplog):
    asked = offer(first=leaks, second=right)
    q, k, v, ids = inputs()
    assert chosen(q, k, v, ids) == "second" and asked == ["first", "second"]
    (record,) = caplog.records
    assert "'first' is not used on this machine, but 'second': output" in record.getMessage()
    # One segment is what the first one is right about.
    assert chosen(q, k, v, None) == "first"
    assert chosen(q, k, v, ids, window=40) == "second"  # which is no window at all
    assert asked == ["first", "second", "first"]


def eagerly(loss, q):
    return jax.vmap(jax.grad(loss))(q[None])[0]


def in_a_step(loss, q):
    """As a decoder's: jit of grad of a scan over layers, remat and vmap inside, on a mesh."""

    def whole(q):
        each = jax.vmap(jax.checkpoint(loss))
        return jax.lax.scan(lambda total, q: (total + each(q[None])[0], None), 0.0, q[None])[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(whole))(q)


@pytest.mark.parametrize("way", [eagerly, in_a_step])
@pytest.mark.parametrize("backend, used", [(right, True), (leaks, False)])
def test_it_is_asked_in_the_middle_of_any_trace(offer, backend, used, way):
    asked = offer(fast=backend)
    q, k, v, ids = inputs()

    def loss(q, backend="auto"):
        return (attention(q, k, v, segment_ids=ids, backend=backend) ** 2).sum()

    got, wanted = way(loss, q), jax.grad(partial(loss, backend="reference"))(q)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert asked[0] == "fast" and (len(asked) > 1) == used


@pytest.mark.parametrize(
    ("platform", "change", "backend"),
    [
        ("cpu", {}, "reference"),
        ("gpu", {}, "triton"),
        ("gpu", {"ids": None}, "cudnn"),
        ("gpu", {"ids": None, "window": 16}, "cudnn"),
        ("gpu", {"ids": None, "dtype": jnp.float32}, "triton"),
        ("gpu", {"window": 128}, "triton"),
        ("gpu", {"window": 16}, "reference"),
        ("gpu", {"window": jnp.int32(16)}, "reference"),
        ("gpu", {"offset": 1}, "reference"),
        ("gpu", {"d": 8}, "reference"),
        ("tpu", {}, "splash"),
        ("tpu", {"window": 16}, "splash"),
        ("tpu", {"t": 130}, "reference"),
    ],
)
def test_what_each_platform_would_use(monkeypatch, platform, change, backend):
    case = {"dtype": jnp.bfloat16, "t": 128, "d": 64, "window": None, "offset": 0} | change
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(module, "admitted", lambda *which: True)
    q, k, v, ids = inputs(case["dtype"], t=case["t"], d=case["d"])
    ids = change.get("ids", ids)
    assert choose(q, k, v, ids, ids, case["offset"], case["window"]) == backend
    if backend != "cudnn":  # it agrees that it can; cuDNN is not to be had here
        jax.eval_shape(lambda q: attention(q, k, v, segment_ids=ids, window=case["window"]), q)


def test_a_long_row_is_asked_about_as_a_short_one(offer):
    asked = offer(fast=right)
    for t in (4096, 1024):
        assert chosen(*inputs(t=t, h=1, n=1)) == "fast"
    assert asked == ["fast"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("group, head_dim, length", [(1, 64, 300), (3, 128, 128)])
def test_triton_is_admitted_where_it_is_interpreted(dtype, group, head_dim, length):
    kind = Kind(jnp.dtype(dtype), length, group, head_dim, packed=True, windowed=False)
    assert module.admitted("triton", kind)


def test_splash_is_admitted_where_it_is_interpreted():
    kind = Kind(jnp.dtype("bfloat16"), 128, 2, 16, packed=True, windowed=True)
    assert module.admitted("splash", kind)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("group, head_dim", [(1, 128), (4, 128), (7, 128), (1, 64)])
def test_a_gpu_admits_the_shapes_of_our_families(dtype, group, head_dim):
    """Llama, Mistral, Qwen2 of 7B, and GPT-2, of rows as they are packed and of whole ones."""
    for length in (4096, 300):
        kind = Kind(jnp.dtype(dtype), length, group, head_dim, packed=True, windowed=False)
        assert module.admitted("triton", kind)
        assert module.admitted("cudnn", kind._replace(packed=False))
