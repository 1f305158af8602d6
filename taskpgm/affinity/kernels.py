"""Pairwise Jensen-Shannon divergence of [n, t, v] log-probabilities, model pairs i < j only.

One vocabulary entry adds m [(1 + d) ln(1 + d) + (1 - d) ln(1 - d)] / 2 to JSD(p, q), where
m = (p + q)/2 and d = (p - q)/(p + q). No entry adds less than zero, so nothing cancels between
entries and nearly equal distributions keep their relative accuracy; H(m) - H(p)/2 - H(q)/2 would
lose all digits below 1e-7. The bracket is d^2 times a function that only moves from 1 to ln 4 and
is smooth in u = (1 - d^2)^(1/4) = (4 p q)^(1/4) / (p + q)^(1/2). With p^(1/4) at hand per model,
an entry of a pair costs one reciprocal square root and a polynomial: one call of the special
function unit, as its logarithm would be, and no division.

Error, against float64 on the same (rounded) log-probabilities, for distributions that sum to one:
    |error| <= 2e-6 JSD + 2e-7 sqrt(JSD) + 1e-13   nats,
the first term from the polynomial and the float32 sums, the second from rounding p and q.
Probabilities below e^-85 = 1e-37, exact zeros (-inf) among them, count as 1e-37.
"""

from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# [(1 + d) ln(1 + d) + (1 - d) ln(1 - d)] / (4 d^2) as a polynomial in w = 1 - u on [0, 1], by
# ascending power: the minimax fit in relative error (Lawson's iteration), 1.1e-6 in float32.
_BRACKET = 0.5 * np.array(
    [
        0.49999948299853386,
        0.33342424216156924,
        0.030734679684666928,
        -0.0954423599171767,
        -0.2692418690234528,
        0.4339252151671429,
        -0.7802939314467768,
        0.8396258476643101,
        -0.2995834100238861,
    ]
)
_FLOOR = -85.0
_LN2_QUARTER = float(np.log(2.0)) / 4
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


def spread(log_probs: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """What `term` asks of each model: p and (2 p)^(1/4), float32."""
    a = jnp.maximum(log_probs.astype(jnp.float32), _FLOOR)
    return jnp.exp(a), jnp.exp(0.25 * a + _LN2_QUARTER)


def term(
    p: Float[Array, "*s"], f: Float[Array, "*s"], q: Float[Array, "*s"], g: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """What each vocabulary entry adds to JSD(p, q), nats; (p, f) and (q, g) come from `spread`."""
    inverse = jax.lax.rsqrt(p + q)
    e = (p - q) * inverse
    w = 1.0 - f * g * inverse
    bracket = jnp.float32(_BRACKET[-1])
    for c in _BRACKET[-2::-1]:
        bracket = bracket * w + jnp.float32(c)
    return e * e * bracket


@jax.jit
def mass(log_probs: Float[Array, "n t v"]) -> Float[Array, "n t"]:
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
def pairwise(log_probs: Float[Array, "n t v"], weights: Float[Array, "e t"]) -> Float[Array, "e p"]:
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
            # Models 0..n/2 follow once more, so that a shift by k models is a slice. Written piece
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
    left: Float[Array, "a t v"], right: Float[Array, "b t v"], weights: Float[Array, "e t"]
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
