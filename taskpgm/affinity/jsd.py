"""Pairwise Jensen-Shannon divergence of [n, t, v] log-probabilities in XLA, pairs i < j only.

The arithmetic of an entry and its error bound are those of kernels/jsd_term.py. Here it is blocked,
so that operands stay in cache, and summed: plain float32 over short runs, compensated over runs.
"""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from taskpgm.kernels.jsd_term import spread, term

LN2 = float(np.log(2.0))
AnyArray: TypeAlias = jax.Array | np.ndarray

# Entries of one elementwise operation, by platform: its operands stay in a core's L2 cache, or in
# an accelerator's.
_TILE = {"cpu": 1 << 16}
_LARGE_TILE = 1 << 20
# Entries in one float32 sum. Longer ones would lose more than the polynomial does when the entries
# are alike (a uniform distribution); sums of sums are compensated.
_RUN = 256
# Parts of a run that are added entry by entry: what an elementwise operation writes, and the sum
# reads back, is then a quarter of a run.
_FOLD = 4


@jax.jit
def mass(log_probs: Float[AnyArray, "n t v"]) -> Float[Array, "n t"]:
    """Sums of the probabilities, float32; NaN where a log-probability is NaN."""
    return jnp.exp(log_probs.astype(jnp.float32)).sum(-1)


def _blocks(t: int, v: int, models: int) -> tuple[int, int, int]:
    """(positions, runs, run length) of a block: about one tile of entries for `models` models."""
    tile = _TILE.get(jax.default_backend(), _LARGE_TILE)
    run = min(v, _RUN)
    runs = max(1, min(16, v // run, tile // (models * run)))
    return max(1, min(t, tile // (models * runs * run))), runs, run


def _sum_runs(*parts: Float[Array, "r c"]) -> Float[Array, "r"]:
    """Sums over the parts of runs and their last axis; the latter on a CPU a product with ones.

    XLA would fuse a sum with what it sums, and its CPU code for that is a scalar loop.
    """
    x = reduce(add, parts)
    ones = jnp.ones(x.shape[-1], jnp.float32)
    return jax.lax.platform_dependent(x, cpu=lambda x: x @ ones, default=lambda x: x.sum(-1))


def _cut(log_probs, t0, v0, size: tuple[int, int, int]):
    """The block that begins at (t0, v0), spread: each factor as the parts of its runs [rows c].

    What an earlier block has had is emptied: blocks at the ends begin earlier than asked, instead
    of padding a copy of the whole array. Entries of -inf in all models add exactly nothing.
    """
    n, t, v = log_probs.shape
    span, width = size[0], size[1] * size[2]
    start = jnp.minimum(t0, t - span), jnp.minimum(v0, v - width)
    x = jax.lax.dynamic_slice(log_probs, (0, *start), (n, span, width))
    new = (start[0] + jnp.arange(span) >= t0)[:, None] & (start[1] + jnp.arange(width) >= v0)
    run = size[2]
    fold = _FOLD if run % _FOLD == 0 else 1
    parts = (y.reshape(-1, fold, run // fold) for y in spread(jnp.where(new, x, -jnp.inf)))
    return [[y[:, part] for part in range(fold)] for y in parts]


def _reduce(weights, t: int, v: int, size: tuple[int, ...], shape: tuple[int, ...], block):
    """Sum `block(t0, v0)`, runs of shape + (positions, runs), weighed by `weights` ["e t"]."""
    span, runs, run = size

    def over_t(i, total):
        def over_v(j, state):
            # Kahan's compensated sum: hundreds of blocks make up a large vocabulary.
            value, lost = state
            new = block(i * span, j * runs * run).reshape(*shape, span, runs).sum(-1) - lost
            after = value + new
            return after, (after - value) - new

        zero = jnp.zeros((*shape, span), jnp.float32)
        value, _ = jax.lax.fori_loop(0, -(-v // (runs * run)), over_v, (zero, zero))
        w = jax.lax.dynamic_slice_in_dim(weights, jnp.minimum(i * span, t - span), span, axis=1)
        return total + jnp.tensordot(w, value, (1, -1), precision="highest")

    zero = jnp.zeros((weights.shape[0], *shape), jnp.float32)
    return jax.lax.fori_loop(0, -(-t // span), over_t, zero)


@jax.jit
def pairwise(
    log_probs: Float[AnyArray, "n t v"], weights: Float[AnyArray, "e t"]
) -> Float[Array, "e p"]:
    """sum_t weights[e, t] JSD(p_i, p_j)[t], nats, float32, for the pairs i < j in row order.

    Model i of a block meets model i + k (mod n), for k = 1..n/2: with n odd every pair once, with n
    even the n/2 pairs of the last k twice. A meeting is one elementwise operation over a block that
    is reduced at once; exponentials are taken once per model and entry, not per pair.
    """
    n, t, v = log_probs.shape
    size, shifts = _blocks(t, v, n), n // 2
    each = size[0] * size[1]  # rows of a model in a block

    def block(t0, v0):
        def table(x):
            # Models 0..n/2 follow again, so that a shift by k models is a slice. Written piece
            # by piece: XLA's CPU code for exponentials inside a concatenation is scalar.
            out = jnp.zeros(((n + shifts) * each, x.shape[1]), jnp.float32)
            out = jax.lax.dynamic_update_slice_in_dim(out, x, 0, 0)
            return jax.lax.dynamic_update_slice_in_dim(out, x[: shifts * each], n * each, 0)

        spread_out = [[table(x) for x in parts] for parts in _cut(log_probs, t0, v0, size)]

        def part(k, p, f):
            q, g = (jax.lax.dynamic_slice_in_dim(x, k * each, n * each) for x in (p, f))
            return term(p[: n * each], f[: n * each], q, g)

        def meet(k):
            return _sum_runs(*(part(k, p, f) for p, f in zip(*spread_out, strict=True)))

        return jax.lax.map(meet, jnp.arange(1, shifts + 1))

    met = _reduce(weights.astype(jnp.float32), t, v, size, (shifts, n), block)
    i, j = np.triu_indices(n, 1)
    far = j - i > shifts
    return met[:, np.where(far, n - (j - i), j - i) - 1, np.where(far, j, i)]


@jax.jit
def between(
    left: Float[AnyArray, "a t v"], right: Float[AnyArray, "b t v"], weights: Float[AnyArray, "e t"]
) -> Float[Array, "e a b"]:
    """sum_t weights[e, t] JSD(p_i, q_j)[t], nats, float32, for i in one set, j in another."""
    if left.shape[0] > right.shape[0]:
        return jnp.swapaxes(between(right, left, weights), 1, 2)
    (a, t, v), b = left.shape, right.shape[0]
    size = _blocks(t, v, b)

    def block(t0, v0):
        def cut(log_probs, *models):
            parts = zip(*_cut(log_probs, t0, v0, size), strict=True)
            return [[x.reshape(*models, -1, x.shape[1]) for x in part] for part in parts]

        here, there = cut(left, a, 1), cut(right, b)

        def meet(row):
            terms = (term(*x, *y) for x, y in zip(row, there, strict=True))
            return _sum_runs(*(x.reshape(-1, x.shape[-1]) for x in terms))

        return jax.lax.map(meet, here)

    return _reduce(weights.astype(jnp.float32), t, v, size, (a, b), block)


def choose_kernel(name: str) -> Callable[..., Array]:
    """What reduces all pairs of a block, by `config.affinity.kernel`: "xla" is `pairwise`.

    Raises:
      ValueError: an unknown name, or "pallas" where that kernel cannot run.
    """
    if name == "xla":
        return pairwise
    if name != "pallas":
        raise ValueError(f"affinity.kernel must be 'xla' or 'pallas'; got {name!r}")
    if jax.default_backend() != "tpu" or jax.sharding.get_abstract_mesh().size > 1:
        raise ValueError(
            f"affinity.kernel='pallas' runs on one TPU device only, and this is "
            f"{jax.device_count()} x {jax.default_backend()}: use 'xla'"
        )
    from taskpgm.kernels import jsd_pallas  # here, as it brings all of Pallas along

    return jsd_pallas.pairwise
