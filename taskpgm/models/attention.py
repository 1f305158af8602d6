"""Causal attention behind one function; a backend that cannot honour what it is given raises.

A query at index i of its row sees the key at index j of the same segment when
0 <= i - j < window. Segments are what a packed row is made of: no token sees another segment.
"""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from taskpgm.models import admission

# Longer rows go in blocks of queries: scores then take [b, h, BLOCK, s], not [b, h, t, s].
BLOCK = 512


def attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    key_segment_ids: Int[Array, "b s"] | None = None,
    offset: int | Int[Array, ""] = 0,
    window: int | Int[Array, ""] | None = None,
    backend: str = "auto",
) -> Float[Array, "b t h d"]:
    """softmax(q k' / sqrt(d)) v over the visible keys, softmax in float32.

    h is a multiple of n (grouped queries); keys and values are never repeated. `offset` is the
    index of the first query among the keys (a cache); `key_segment_ids` default to `segment_ids`.
    A window of s or more is no window, and a traced one lets layers of one scan differ.

    "auto" is `choose`. Raises ValueError for an unknown backend, and from one that cannot honour an
    argument.
    """
    if key_segment_ids is None:
        key_segment_ids = segment_ids
    args = (q, k, v, segment_ids, key_segment_ids, offset, window)
    if backend == "auto":
        backend = choose(*args)
    if backend not in BACKENDS:
        raise ValueError(f"attention {backend!r} is none of auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend](*args)


class Kind(NamedTuple):
    """What a fused backend may depend on; the length is no longer than it takes to find out."""

    dtype: np.dtype
    length: int
    group: int  # query heads of one key head
    head_dim: int
    packed: bool
    windowed: bool


# Fused backends of each platform, the fastest first, and the kinds that they honour.
FUSED = {
    "gpu": {
        "cudnn": lambda kind: not kind.packed and kind.dtype.itemsize == 2,
        "triton": lambda kind: not kind.windowed and kind.head_dim >= 16,
    },
    "tpu": {"splash": lambda kind: kind.length % 128 == 0},
}


def choose(q, k, v, segment_ids, key_segment_ids, offset, window) -> str:
    """The fastest backend of this platform that honours all arguments and is admitted."""
    t = q.shape[1]
    alike = k.shape[1] == t and key_segment_ids is segment_ids
    if not (alike and isinstance(offset, int) and offset == 0 and _static(window)):
        return "reference"
    # Blocks differ with what is left of a row after blocks of 512, no further.
    kind = Kind(
        q.dtype,
        min(t, 1024 + t % 512),
        q.shape[2] // k.shape[2],
        q.shape[3],
        segment_ids is not None,
        window is not None and window < t,
    )
    fused = FUSED.get(jax.default_backend(), {})
    able = [*(name for name, honours in fused.items() if honours(kind)), "reference"]
    for backend, instead in pairwise(able):
        if admitted(backend, kind, instead):
            return backend
    return "reference"


@cache
def admitted(backend: str, kind: Kind, instead: str = "reference") -> bool:
    """Whether `backend` gives what `reference` gives: two rows, each of two segments and padding if
    packed, output and gradients. If not, the log says why, and that `instead` comes next.

    Neither is exact in the dtype asked for. Wrong is what is more than four times as far as the
    reference from the reference in float32.
    """
    t, group = kind.length, kind.group
    rng = np.random.default_rng(0)
    shapes = [(2, t, heads, kind.head_dim) for heads in (2 * group, 2, 2, 2 * group)]
    given = [rng.normal(size=shape).astype(kind.dtype) for shape in shapes]
    at, ids = np.arange(t), None
    if kind.packed:
        ids = np.stack([1 + (at >= t // 3), 1 + (at >= t // 2)]) * (at < t - t // 8)
        ids = ids.astype(np.int32)
    window = max(1, min(100, t // 2)) if kind.windowed else None

    def run(backend, dtype):
        def both(q, k, v, d):
            attend = lambda *x: BACKENDS[backend](*x, ids, ids, 0, window)  # noqa: E731
            out, pull = jax.vjp(attend, q, k, v)
            return out, *pull(d)

        return [np.asarray(x, np.float64) for x in jax.jit(both)(*(x.astype(dtype) for x in given))]

    def compare():
        with jax.default_matmul_precision("highest"):
            wanted = run("reference", np.float32)
        own, got = run("reference", kind.dtype), run(backend, kind.dtype)
        for name, *values in zip(("output", "dq", "dk", "dv"), wanted, own, got, strict=True):
            want, ours, theirs = values
            limit = 4 * np.abs(ours - want).max() + 1e-5 * np.abs(want).max()
            far = np.abs(theirs - want).max()
            if not far <= limit:  # nor where it is NaN
                return f"{name} of {kind.dtype} is {far:.1e} off, {limit:.1e} is allowed"
        return None

    return admission.admitted(f"attention {backend!r}", repr(instead), compare)


def visible(
    query_index: Int[Array, " t"],
    key_index: Int[Array, " s"],
    segment_ids: Int[Array, "b t"] | None,
    key_segment_ids: Int[Array, "b s"] | None,
    window: int | Int[Array, ""] | None,
) -> Bool[Array, "#b t s"]:
    """Which keys a query sees."""
    distance = query_index[:, None] - key_index[None, :]
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    mask = mask[None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == key_segment_ids[:, None, :])
    return mask


@jax.custom_vjp
def _softmax(
    scores: Float[Array, "b n g t s"], mask: Bool[Array, "b 1 1 t s"]
) -> Float[Array, "b n g t s"]:
    """Softmax over the keys that a query sees; every query sees one at least, itself.

    The backward pass needs the result alone: derived by JAX it keeps the exponentials and the mask
    too, and scores are the largest thing that a layer keeps.
    """
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)


def _softmax_forward(scores, mask):
    weights = _softmax(scores, mask)
    return weights, weights


def _softmax_backward(weights, d):
    pull = weights * d
    return pull - weights * pull.sum(-1, keepdims=True), None


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _block(q, k, v, segment_ids, key_segment_ids, query_start, key_start, window):
    """Attention of some queries to some keys, which begin at these indices of the row."""
    b, t, h, d = q.shape
    grouped = q.reshape(b, t, k.shape[2], -1, d) * d**-0.5
    scores = jnp.einsum("btngd,bsnd->bngts", grouped, k, preferred_element_type=jnp.float32)
    queries, keys = query_start + jnp.arange(t), key_start + jnp.arange(k.shape[1])
    mask = visible(queries, keys, segment_ids, key_segment_ids, window)
    weights = _softmax(scores, mask[:, None, None]).astype(v.dtype)
    return jnp.einsum("bngts,bsnd->btngd", weights, v).reshape(b, t, h, d)


def reference(q, k, v, segment_ids, key_segment_ids, offset, window):
    """Plain XLA. The definition that every other backend is tested against.

    A long row goes block by block of queries, each with just the keys that it may see, and the
    scores of a block are computed again in the backward pass.
    """
    t = q.shape[1]
    if t <= BLOCK or not isinstance(offset, int):
        return _block(q, k, v, segment_ids, key_segment_ids, offset, 0, window)
    block = jax.checkpoint(_block, static_argnums=(5, 6, 7) if _static(window) else (5, 6))
    out = []
    for start in range(0, t, BLOCK):
        stop = min(start + BLOCK, t)
        first = max(0, offset + start - window + 1) if _static(window) and window else 0
        seen = slice(first, offset + stop)
        own = keys = None
        if segment_ids is not None:
            own, keys = segment_ids[:, start:stop], key_segment_ids[:, seen]
        part = (q[:, start:stop], k[:, seen], v[:, seen], own, keys)
        out.append(block(*part, offset + start, first, window))
    return jnp.concatenate(out, axis=1)


def _static(window) -> bool:
    return window is None or isinstance(window, int)


def cudnn(q, k, v, segment_ids, key_segment_ids, offset, window):
    """cuDNN's fused attention through `jax.nn`: 16-bit types, one segment a row, no cache."""
    if segment_ids is not None:
        raise ValueError(
            "attention 'cudnn' cannot keep segments apart; use 'reference', or rows of one segment"
        )
    if not isinstance(offset, int) or offset or not _static(window):
        raise ValueError(
            "attention 'cudnn' has neither a cache nor windows that differ; use 'reference'"
        )
    if q.dtype.itemsize != 2:
        raise ValueError(f"attention 'cudnn' needs bfloat16 or float16, not {q.dtype}")
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=local, implementation="cudnn"
    )


def splash(*args):
    """See `taskpgm.models.splash`, imported only where it is used: Pallas is slow to import."""
    from taskpgm.models.splash import splash

    return splash(*args)


def triton(*args):
    """See `taskpgm.models.triton`, imported only where it is used."""
    from taskpgm.models.triton import triton

    return triton(*args)


BACKENDS = {"reference": reference, "cudnn": cudnn, "splash": splash, "triton": triton}
