"""The pairwise JSD as one Pallas kernel for a TPU (Mosaic), in place of affinity/jsd.py.

It holds a tile of models against a tile of models and goes along the vocabulary once: exponentials
are taken as a tile is read, and nothing but sums [n n t] goes back to memory. A tile of 8 x 8 pairs
reads 16 rows for 64 pairs. Tiles below the diagonal return at once.

Checked in interpret mode on a CPU and by lowering for a TPU. It has not run on its hardware, so it
is used only where affinity.kernel="pallas" asks for it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from taskpgm.kernels.jsd_term import spread, term

_TILE = 8  # models on each side of a tile
_BLOCK = (128, 512)  # positions and vocabulary entries of a program's block


def _kernel(left, right, out, lost, held, *, v: int):
    a, b, c = (pl.program_id(axis) for axis in (1, 2, 3))
    tile, span, lanes = left.shape

    @pl.when(c == 0)
    def _():
        out[...] = jnp.zeros_like(out)
        lost[...] = jnp.zeros_like(lost)

    def side(ref, i):
        # What a block holds past the end of the vocabulary is undefined.
        within = c * lanes + jax.lax.broadcasted_iota(jnp.int32, (span, lanes), 1) < v
        return spread(jnp.where(within, ref[i].astype(jnp.float32), -jnp.inf))

    def hold(i, _):
        held[0, i], held[1, i] = side(left, i)

    def column(j, _):
        q, g = side(right, j)

        def pair(i, _):
            add = term(held[0, i], held[1, i], q, g).sum(-1) - lost[i, j]
            after = out[i, j] + add
            lost[i, j] = (after - out[i, j]) - add
            out[i, j] = after

        jax.lax.fori_loop(0, tile, pair, None)

    @pl.when(b >= a)
    def _():
        jax.lax.fori_loop(0, tile, hold, None)
        jax.lax.fori_loop(0, tile, column, None)


@partial(jax.jit, static_argnames="interpret")
def pairwise(
    log_probs: Float[Array | np.ndarray, "n t v"],
    weights: Float[Array | np.ndarray, "e t"],
    *,
    interpret: bool = False,
) -> Float[Array, "e p"]:
    """sum_t weights[e, t] JSD(p_i, p_j)[t], nats, float32, for the pairs i < j in row order.

    interpret: run the kernel's operations one by one on any device, to test it.
    """
    n, t, v = log_probs.shape
    if n < 2:
        return jnp.zeros((weights.shape[0], 0), jnp.float32)
    tile, (span, lanes) = min(_TILE, n), map(min, _BLOCK, (t, v))
    tiles = pl.cdiv(n, tile)
    sums = pl.pallas_call(
        partial(_kernel, v=v),
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
