"""Attention on a GPU by JAX's own Pallas kernel (Triton): segments, scores never stored.

The kernel knows neither a window nor grouped queries, and wants whole blocks of a row. Queries of a
group are mapped over with their keys held still, so these are not repeated; a row is filled up
with padding behind it, which no query before it sees. Checked in interpret mode on a CPU, by
lowering and by compiling; not yet run on a GPU, where attention.admitted decides about it.

jax 0.12 says that the kernel, and Pallas on Triton with it, will be removed some day. Without it
the import fails, which is one more reason not to admit.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as kernel

from taskpgm.models.mapped import by_rows_and_heads

SMALLEST = 16  # inner size of a product in Triton
# Never timed, only compiled for an A100 and an H100 (Triton 3.9), at head_dim 128. Forward: with
# the library's 128 keys float32 takes 320 KiB of an H100's shared memory, more than there is; with
# 64 it takes 192, and 16 bits take 96. Backward: 64 held against 32 that stream by read half of
# what the library's 32 against 32 do, and suit an H100's wider products. At eight warps no register
# of theirs spills in 16 bits; 64 against 64 spill.
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
