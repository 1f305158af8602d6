"""The pairwise JSD as one Pallas kernel: for a GPU (Triton) and for a TPU (Mosaic).

Both hold a tile of models against a tile of models and go along the vocabulary once: exponentials
are taken as a tile is read, and nothing but sums [t n n] goes back to memory. A tile of 8 x 8 pairs
reads 16 rows for 64 pairs. Tiles below the diagonal return at once.

Checked in interpret mode on a CPU and by lowering for both platforms; the GPU's also compiles for
an A100 and an H100 (Triton 3.9), no register spilled. Neither has been run on its hardware yet:
pairs.py uses one only where it agrees with kernels.pairwise.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from taskpgm.affinity import kernels

_TILE = 8  # models on each side of a tile
_LANES = 64  # vocabulary entries that a GPU program works on at a time
_RUN = 16  # uncompensated sums of so many, as in kernels.py
_TPU_BLOCK = (128, 512)  # positions and vocabulary entries of a TPU program's block


def _gpu_kernel(log_probs, out, *, tile: int):
    n, _, v = log_probs.shape
    k, a, b = (pl.program_id(axis) for axis in range(3))
    # Tiles and chunks at the end begin earlier: then every read is within the array.
    rows = [jnp.minimum(x * tile, n - tile) for x in (a, b)]
    chunks = pl.cdiv(v, _LANES)

    def chunk(c, total):
        start = jnp.minimum(c * _LANES, v - _LANES)
        # Emptied where an earlier chunk has been, and past the last chunk.
        fresh = (start + jnp.arange(_LANES) >= c * _LANES) & (c < chunks)
        sides = []
        for row in rows:
            x = log_probs[pl.ds(row, tile), k, pl.ds(start, _LANES)].astype(jnp.float32)
            sides.append(kernels.spread(jnp.where(fresh[None], x, -jnp.inf)))
        (p, f), (q, g) = sides
        return total + kernels.term(p[:, None], f[:, None], q[None], g[None])

    def run(r, state):
        value, lost = state
        zero = jnp.zeros((tile, tile, _LANES), jnp.float32)
        add = jax.lax.fori_loop(r * _RUN, (r + 1) * _RUN, chunk, zero) - lost
        after = value + add
        return after, (after - value) - add

    @pl.when(b >= a)
    def _():
        zero = jnp.zeros((tile, tile, _LANES), jnp.float32)
        value, _ = jax.lax.fori_loop(0, pl.cdiv(chunks, _RUN), run, (zero, zero))
        out[k, pl.ds(a * tile, tile), pl.ds(b * tile, tile)] = value.sum(-1)


@partial(jax.jit, static_argnames="interpret")
def pairwise_gpu(
    log_probs: Float[Array, "n t v"], weights: Float[Array, "e t"], *, interpret: bool = False
) -> Float[Array, "e p"]:
    """`kernels.pairwise` as one GPU kernel, same error; vocabularies of 64 entries or more."""
    n, t, v = log_probs.shape
    if n < 2 or v < _LANES:
        return kernels.pairwise(log_probs, weights)
    tile = min(_TILE, 1 << (n.bit_length() - 1))  # a power of two, as Triton's blocks must be
    tiles = -(-n // tile)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    sums = pl.pallas_call(
        partial(_gpu_kernel, tile=tile),
        out_shape=jax.ShapeDtypeStruct((t, tiles * tile, tiles * tile), jnp.float32),
        grid=(t, tiles, tiles),
        in_specs=[whole],
        out_specs=whole,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="pairwise_jsd",
    )(log_probs)
    # The last tile begins early, but writes in its own place.
    place = np.arange(n) + (np.arange(n) >= (tiles - 1) * tile) * (tiles * tile - n)
    i, j = np.triu_indices(n, 1)
    pairs = sums[:, place[i], place[j]]
    return jnp.matmul(weights.astype(jnp.float32), pairs, precision="highest")


def _tpu_kernel(left, right, out, lost, held, *, v: int):
    a, b, c = (pl.program_id(axis) for axis in (1, 2, 3))
    tile, span, lanes = left.shape

    @pl.when(c == 0)
    def _():
        out[...] = jnp.zeros_like(out)
        lost[...] = jnp.zeros_like(lost)

    def side(ref, i):
        # What a block holds past the end of the vocabulary is undefined.
        within = c * lanes + jax.lax.broadcasted_iota(jnp.int32, (span, lanes), 1) < v
        return kernels.spread(jnp.where(within, ref[i].astype(jnp.float32), -jnp.inf))

    def hold(i, _):
        held[0, i], held[1, i] = side(left, i)

    def column(j, _):
        q, g = side(right, j)

        def pair(i, _):
            add = kernels.term(held[0, i], held[1, i], q, g).sum(-1) - lost[i, j]
            after = out[i, j] + add
            lost[i, j] = (after - out[i, j]) - add
            out[i, j] = after

        jax.lax.fori_loop(0, tile, pair, None)

    @pl.when(b >= a)
    def _():
        jax.lax.fori_loop(0, tile, hold, None)
        jax.lax.fori_loop(0, tile, column, None)


@partial(jax.jit, static_argnames="interpret")
def pairwise_tpu(
    log_probs: Float[Array, "n t v"], weights: Float[Array, "e t"], *, interpret: bool = False
) -> Float[Array, "e p"]:
    """`kernels.pairwise` as one TPU kernel, same error."""
    n, t, v = log_probs.shape
    if n < 2:
        return kernels.pairwise(log_probs, weights)
    tile, (span, lanes) = min(_TILE, n), map(min, _TPU_BLOCK, (t, v))
    tiles = pl.cdiv(n, tile)
    sums = pl.pallas_call(
        partial(_tpu_kernel, v=v),
        out_shape=jax.ShapeDtypeStruct((n, n, t), jnp.float32),
        grid=(pl.cdiv(t, span), tiles, tiles, pl.cdiv(v, lanes)),
        in_specs=[
            pl.BlockSpec((tile, span, lanes), lambda k, a, b, c: (a, k, c)),
            pl.BlockSpec((tile, span, lanes), lambda k, a, b, c: (b, k, c)),
        ],
        out_specs=pl.BlockSpec((tile, tile, span), lambda k, a, b, c: (a, b, k)),
        scratch_shapes=[
            pltpu.VMEM((tile, tile, span), jnp.float32),
            pltpu.VMEM((2, tile, span, lanes), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="pairwise_jsd",
    )(log_probs, log_probs)
    pairs = sums[np.triu_indices(n, 1)]
    return jnp.matmul(weights.astype(jnp.float32), pairs.T, precision="highest")
