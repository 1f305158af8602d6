"""Attention on a TPU by JAX's splash kernel (Pallas): segments and windows, scores never stored.

Checked in interpret mode on a CPU. It has not run on its hardware here, so it is used only where
config.base.attention="splash" asks for it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from taskpgm.kernels.shard import shard_over_batch_and_heads

LANES = 128  # the kernel's smallest block of queries and keys
BLOCK = 512


def splash(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t n d"],
    v: Float[Array, "b t n d"],
    segment_ids: Int[Array, "b t"],
    window: int | None,
    spec: PartitionSpec,
) -> Float[Array, "b t h d"]:
    """Causal attention within segments of whole rows, as `taskpgm.models.attention.attention`.

    Args:
      spec: how q, k and v lie on the mesh in force.

    Raises:
      ValueError: rows that are not a multiple of LANES tokens.
    """
    if q.shape[1] % LANES:
        raise ValueError(
            f"attention 'splash' needs rows of a multiple of {LANES} tokens, not {q.shape[1]};"
            " use 'reference'"
        )
    attend = partial(_attend, window=window)
    return shard_over_batch_and_heads(attend, spec, q, k, v, segment_ids)


def _attend(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t n d"],
    v: Float[Array, "b t n d"],
    segment_ids: Int[Array, "b t"],
    window: int | None,
) -> Float[Array, "b t h d"]:
    """All rows and heads of one device."""
    _, t, h, d = q.shape
    size = (t, t)
    mask = masks.CausalMask(size) if window is None else masks.LocalMask(size, (window - 1, 0), 0)
    block = next(n for n in (BLOCK, BLOCK // 2, LANES) if t % n == 0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * h),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        interpret=jax.default_backend() != "tpu",
    )

    def one(q, k, v, segment_ids):
        return attend(q, k, v, kernel.SegmentIds(segment_ids, segment_ids))

    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * d**-0.5, k, v))
    out: Any = jax.vmap(one)(q, k, v, segment_ids)
    return jnp.swapaxes(out, 1, 2).astype(q.dtype)
