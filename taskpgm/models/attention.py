"""Causal attention behind one function; a backend that cannot honour what it is given raises.

A query at index i of its row sees the key at index j of the same segment when
0 <= i - j < window. Segments are what a packed row is made of: no token sees another segment.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Longer rows go in blocks of queries: scores then take [b, h, BLOCK, s], not [b, h, t, s].
BLOCK = 1024


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
    """
    if backend == "auto":
        backend = "reference"
    if backend not in BACKENDS:
        raise ValueError(f"attention {backend!r} is none of auto, {', '.join(BACKENDS)}")
    if key_segment_ids is None:
        key_segment_ids = segment_ids
    return BACKENDS[backend](q, k, v, segment_ids, key_segment_ids, offset, window)


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


def reference(q, k, v, segment_ids, key_segment_ids, offset, window):
    """Plain XLA. The definition that every other backend is tested against."""
    t, s = q.shape[1], k.shape[1]
    keys = jnp.arange(s)

    def block(q, index, segment_ids):
        b, t, h, d = q.shape
        grouped = q.reshape(b, t, k.shape[2], -1, d) * d**-0.5
        scores = jnp.einsum("btngd,bsnd->bngts", grouped, k, preferred_element_type=jnp.float32)
        mask = visible(index, keys, segment_ids, key_segment_ids, window)
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bngts,bsnd->btngd", weights, v).reshape(b, t, h, d)

    if t <= BLOCK or t % BLOCK:
        return block(q, offset + jnp.arange(t), segment_ids)

    def one(args):
        return jax.checkpoint(block)(*args)

    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0], -1, BLOCK, *x.shape[2:]), 1, 0)

    index = (offset + jnp.arange(t)).reshape(-1, BLOCK)
    segments = None if segment_ids is None else split(segment_ids)
    out = jax.lax.map(one, (split(q), index, segments))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)


BACKENDS = {"reference": reference}
