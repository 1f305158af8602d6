"""Causal attention behind one function; a backend that cannot honour what it is given raises.

A query at index i of its row sees the key at index j of the same segment when
0 <= i - j < window. Segments are what a packed row is made of: no token sees another segment.
"""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from taskpgm.models.arrays import Array
from taskpgm.models.sharding import spec_of

# Longer rows go in blocks of queries: scores then take [b, h, BLOCK, s], not [b, h, t, s].
BLOCK = 512


@dataclass(frozen=True)
class AttentionInputs:
    """What every backend is given: the arguments of `attention`, `key_segment_ids` filled in."""

    q: Float[Array, "b t h d"]
    k: Float[Array, "b s n d"]
    v: Float[Array, "b s n d"]
    segment_ids: Int[Array, "b t"] | None
    key_segment_ids: Int[Array, "b s"] | None
    offset: int | Int[Array, ""]
    window: int | Int[Array, ""] | None

    @property
    def whole_rows(self) -> bool:
        """Whether queries and keys are of the same tokens, so that there is no cache."""
        aligned = isinstance(self.offset, int) and self.offset == 0
        same_length = self.k.shape[1] == self.q.shape[1]
        return aligned and same_length and self.key_segment_ids is self.segment_ids

    @property
    def window_is_static(self) -> bool:
        """Whether the window is known when the program is traced."""
        return self.window is None or isinstance(self.window, int)


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

    h is a multiple of n: grouped-query keys and values are not materialised per query head.

    Args:
      offset: index of the first query among the keys, where these come from a cache.
      key_segment_ids: `segment_ids` by default.
      window: s or more is no window; a traced one lets layers of one scan differ.
      backend: "auto" (`choose`) or a key of BACKENDS.

    Raises:
      ValueError: an unknown backend, or one that cannot honour an argument.
    """
    if key_segment_ids is None:
        key_segment_ids = segment_ids
    inputs = AttentionInputs(q, k, v, segment_ids, key_segment_ids, offset, window)
    if backend == "auto":
        backend = choose(inputs)
    if backend not in BACKENDS:
        raise ValueError(f"attention {backend!r} is none of auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend](inputs)


def choose(inputs: AttentionInputs) -> str:
    """What "auto" stands for: cuDNN through `jax.nn` where that covers the inputs, else XLA.

    On an H100 (jax 0.11.2, bfloat16) a LoRA step of 1B parameters on packed rows was 2.9 times as
    fast with cuDNN, and values and gradients passed `pytest -m gpu`. Packed rows are masked, and
    cuDNN's backward pass under a mask asks for an even length; over several devices it has not run.
    Models side by side have no "auto": `DecoderConfig.side_by_side`.
    """
    q = inputs.q
    covered = (
        inputs.whole_rows
        and (inputs.segment_ids is None or (q.shape[1] % 2 == 0 and not _several_devices()))
        and inputs.window_is_static
        and q.dtype.itemsize == 2
        and q.shape[3] % 8 == 0
        and q.shape[3] <= 128
    )
    return "cudnn" if covered and _has_flash_attention() else "reference"


def _several_devices() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def _has_flash_attention() -> bool:
    """Whether the devices are NVIDIA's of the Ampere generation or later."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return jax.default_backend() == "gpu" and bool(re.fullmatch(r"([89]|\d\d)\.\d", capability))


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
    if segment_ids is not None and key_segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == key_segment_ids[:, None, :])
    return mask


@jax.custom_vjp
def _softmax(
    scores: Float[Array, "b n g t s"], mask: Bool[Array, "#b 1 1 t s"]
) -> Float[Array, "b n g t s"]:
    """Softmax over the keys that a query sees; every query sees one at least, itself.

    The backward pass needs only the result: derived by JAX it keeps the exponentials and the mask
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


def _block(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    segment_ids: Int[Array, "b t"] | None,
    key_segment_ids: Int[Array, "b s"] | None,
    query_start: int | Int[Array, ""],
    key_start: int,
    window: int | Int[Array, ""] | None,
) -> Float[Array, "b t h d"]:
    """Attention of some queries to some keys, which begin at these indices of the row."""
    b, t, h, d = q.shape
    grouped = q.reshape(b, t, k.shape[2], -1, d) * d**-0.5
    scores = jnp.einsum("btngd,bsnd->bngts", grouped, k, preferred_element_type=jnp.float32)
    queries, keys = query_start + jnp.arange(t), key_start + jnp.arange(k.shape[1])
    mask = visible(queries, keys, segment_ids, key_segment_ids, window)
    weights = _softmax(scores, mask[:, None, None]).astype(v.dtype)
    return jnp.einsum("bngts,bsnd->btngd", weights, v).reshape(b, t, h, d)


def reference(inputs: AttentionInputs) -> Float[Array, "b t h d"]:
    """Plain XLA. The definition that every other backend is tested against.

    A long row is computed block by block of queries, each with only the keys that it may see; the
    backward pass computes a block's scores again.
    """
    q, k, v, offset, window = inputs.q, inputs.k, inputs.v, inputs.offset, inputs.window
    query_segments, key_segments = inputs.segment_ids, inputs.key_segment_ids
    t, static = q.shape[1], inputs.window_is_static
    if t <= BLOCK or not isinstance(offset, int):
        return _block(q, k, v, query_segments, key_segments, offset, 0, window)
    block = jax.checkpoint(_block, static_argnums=(5, 6, 7) if static else (5, 6))
    out = []
    for start in range(0, t, BLOCK):
        stop = min(start + BLOCK, t)
        first = max(0, offset + start - window + 1) if isinstance(window, int) else 0
        seen = slice(first, offset + stop)
        own = keys = None
        if query_segments is not None and key_segments is not None:
            own, keys = query_segments[:, start:stop], key_segments[:, seen]
        part = (q[:, start:stop], k[:, seen], v[:, seen], own, keys)
        out.append(block(*part, offset + start, first, window))
    return jnp.concatenate(out, axis=1)


def cudnn(inputs: AttentionInputs) -> Float[Array, "b t h d"]:
    """cuDNN's fused attention through `jax.nn`: 16-bit types, no cache.

    Segments are kept apart by a mask [b 1 t t], the same for all heads; scores are never stored.
    """
    q, window, segment_ids = inputs.q, inputs.window, inputs.segment_ids
    if not inputs.whole_rows or not inputs.window_is_static:
        raise ValueError(
            "attention 'cudnn' has neither a cache nor windows that differ; use 'reference'"
        )
    if q.dtype.itemsize != 2:
        raise ValueError(f"attention 'cudnn' needs bfloat16 or float16, not {q.dtype}")
    local = (window - 1, 0) if isinstance(window, int) else None
    mask = None
    if segment_ids is not None:
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q,
        inputs.k,
        inputs.v,
        mask=mask,
        is_causal=True,
        local_window_size=local,
        implementation="cudnn",
    )


def splash(inputs: AttentionInputs) -> Float[Array, "b t h d"]:
    """The TPU's Pallas kernel, for rows of 128 tokens or a multiple, without a cache."""
    from taskpgm.kernels.splash import splash  # here, because importing Pallas is slow

    if not inputs.whole_rows:
        raise ValueError("attention 'splash' has no cache; use 'reference'")
    if isinstance(inputs.window, jax.Array):
        raise ValueError(
            "attention 'splash' needs one sliding window for all layers; use 'reference'"
        )
    segment_ids = inputs.segment_ids
    if segment_ids is None:
        segment_ids = jnp.ones(inputs.q.shape[:2], jnp.int32)
    spec = spec_of(("batch", None, "kv_heads", None), inputs.k.shape)
    return splash(inputs.q, inputs.k, inputs.v, segment_ids, inputs.window, spec)


BACKENDS = {"reference": reference, "cudnn": cudnn, "splash": splash}
