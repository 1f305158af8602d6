"""Attention on a GPU by JAX's own Pallas kernel (Triton): segments, scores never stored.

The kernel knows neither a window nor grouped queries, and wants whole blocks of a row. Queries of a
group are mapped over with their keys held still, so these are not repeated; a row is filled up
with padding behind it, which no query before it sees.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as kernel

from taskpgm.models.mapped import by_rows_and_heads

SMALLEST = 16  # inner size of a product in Triton
# Not timed yet, but compiled for an A100 and an H100. Forward, at head_dim 128 in 16 bits, 128
# queries by 64 keys leave room in shared memory for two programs at a time on either (64 and 96
# KiB, the library's 128 by 128 take 96 and 160). Backward 64 are held against 32 that stream by:
# half of what the library's 32 by 32 read, wide enough for an H100's tensor cores, and at eight
# warps no register is spilled, which all larger ones do.
BLOCKS = kernel.BlockSizes(
    block_q=128,
    block_k=64,
    block_q_dkv=32,
    block_kv_dkv=64,
    block_q_dq=64,
    block_kv_dq=32,
)
WARPS = 8


def triton(q, k, v, segment_ids, key_segment_ids, offset, window):
    """As `attention.attention`. Raises ValueError for what the kernel cannot express."""
    t, d = q.shape[1], q.shape[3]
    if not (isinstance(offset, int) and offset == 0) or k.shape[1] != t:
        raise ValueError("attention 'triton' has no cache; use 'reference'")
    if isinstance(window, jax.Array) or (window is not None and window < t):
        raise ValueError(
            "attention 'triton' has no sliding window; use 'reference', or rows no longer than it"
        )
    if key_segment_ids is not segment_ids:
        raise ValueError(
            "attention 'triton' needs the same segments of queries and keys; use 'reference'"
        )
    if d < SMALLEST:
        raise ValueError(
            f"attention 'triton' needs a head_dim of at least {SMALLEST}, not {d}; use 'reference'"
        )
    if segment_ids is None:
        segment_ids = jnp.ones(q.shape[:2], jnp.int32)
    return by_rows_and_heads(_rows, q, k, v, segment_ids)


def _rows(q, k, v, segment_ids):
    """Every row of what one device holds."""
    b, t, h, d = q.shape
    q = q.reshape(b, t, k.shape[2], -1, d)
    short = -t % BLOCKS.block_q  # the longest
    if short:
        q, k, v, segment_ids = (
            jnp.pad(x, [(0, short if axis == 1 else 0) for axis in range(x.ndim)])
            for x in (q, k, v, segment_ids)
        )
    attend = partial(
        kernel.mha,
        segment_ids=jnp.asarray(segment_ids, jnp.int32),
        sm_scale=d**-0.5,
        causal=True,
        block_sizes=BLOCKS,
        num_warps=WARPS,
        interpret=jax.default_backend() != "gpu",
    )
    out = jax.vmap(attend, in_axes=(3, None, None), out_axes=3)(q, k, v)
    return out[:, :t].reshape(b, t, h, d)
