"""Cross entropy, chunked over tokens: the logits of a whole batch never exist at once.

For hidden states h [n d], the unembedding U [d v], targets y and weights w,

    sum_nll = sum_i w_i (logsumexp(h_i U) - (h_i U)[y_i]).

The gradient of a chunk's sum needs only that chunk's logits, so it is taken in the same pass that
computes them: dU and dh are what is carried to the backward pass, not the logits, and the product
h U is done once rather than twice. Rows of weight zero (prompts, padding) are not multiplied: the
others are lined up first, and what does not fill a chunk goes in small ones, of REST rows. Softmax
and sums are float32 whatever the inputs' dtype.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Rows of a small chunk, by platform: at most so many less one are multiplied in vain. On the 49,152
# entries of SmolLM2, 512 rows of which a tenth is scored take an eighth of the time of a whole
# chunk; an accelerator wants larger products.
REST = {"cpu": 64}
_LARGE_REST = 256


def cross_entropy(
    hidden: Float[Array, "n d"],
    unembedding: Float[Array, "_ v"],  # [d v]; that sizes agree is checked below, in one line
    targets: Int[Array, "_"],  # [n]
    weights: Float[Array, "_"],  # [n]
    *,
    chunk: int = 1024,
    shards: int = 1,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of -log softmax(hidden @ unembedding)[target], in nats, and the sum of weights.

    At most `chunk` rows of logits live at a time. The product is taken in the dtype of `hidden`
    with float32 sums; the gradient of `unembedding` is summed in float32 and has its dtype.
    Differentiable in `hidden` and `unembedding` (reverse mode). An argument that is not
    differentiated costs no gradient product. `weights` are constants.

    Args:
      shards: number of contiguous blocks into which the rows are split over devices. Every chunk
        takes its part of each block, so all devices work on rows of their own, and the gradient of
        `unembedding` is added up over the devices once, not per chunk.
      axis_name: name of an enclosing `vmap` axis; all its members then run the same number of
        chunks.

    Raises:
      ValueError: when the shapes do not fit together, `chunk` < 1, or a gradient with respect to
        `weights` is asked for.
    """
    n, d = hidden.shape
    if unembedding.shape[0] != d or targets.shape != (n,) or weights.shape != (n,):
        raise ValueError(
            f"cross_entropy: hidden {hidden.shape}, unembedding {unembedding.shape}, targets "
            f"{targets.shape}, weights {weights.shape} do not fit [n d], [d v], [n], [n]"
        )
    if chunk < 1:
        raise ValueError(f"cross_entropy: chunk is {chunk}; it must be at least 1")
    if n % shards:
        raise ValueError(f"cross_entropy: {n} rows are not split evenly by {shards} shards")
    hidden, targets, weights = (
        x.reshape(shards, n // shards, *x.shape[1:]) for x in (hidden, targets, weights)
    )
    size = min(max(1, chunk // shards), n // shards)
    weights = weights.astype(jnp.float32)
    nll: Any = _sum_nll((size, axis_name), hidden, unembedding, targets, weights)
    return nll, jnp.sum(weights)


class _Rounds(NamedTuple):
    """Which rows each round takes: the scored ones of every block, in their order, come first."""

    order: Int[Array, "s m"]  # row at each place, past-the-end = n; the last round has room
    place: Int[Array, "s n"]  # place of each row
    count: Int[Array, ""]  # scored rows of the block that has most


def _rounds(weights: Float[Array, "s n"], size: int, axis_name: str | None) -> _Rounds:
    n = weights.shape[1]
    scored = weights != 0
    first = jnp.cumsum(scored, axis=1)
    place = jnp.where(scored, first - 1, first[:, -1:] + jnp.cumsum(~scored, axis=1) - 1)
    order = jnp.argsort(~scored, axis=1, stable=True).astype(jnp.int32)
    order = jnp.pad(order, ((0, 0), (0, size)), constant_values=n)
    count = jnp.max(first[:, -1])
    return _Rounds(order, place, jax.lax.pmax(count, axis_name) if axis_name else count)


def _for_each_round(
    rounds: _Rounds, size: int, body: Callable[[Array, Array, Any], Any], carry: Any
) -> Any:
    """`body(rows [s c], place of the first, carry)` for all scored rows: whole chunks, then what is
    left in small ones."""
    rest = min(size, REST.get(jax.default_backend(), _LARGE_REST))
    whole = rounds.count // size

    def loop(begin: Array | int, size: int, count: Array, carry: Any) -> Any:
        def one(index: Array, carry: Any) -> Any:
            at = begin + index * size
            return body(jax.lax.dynamic_slice_in_dim(rounds.order, at, size, axis=1), at, carry)

        return jax.lax.fori_loop(0, count, one, carry)

    carry = loop(0, size, whole, carry)
    return loop(whole * size, rest, (rounds.count - whole * size + rest - 1) // rest, carry)


def _pick(x: Array, rows: Int[Array, "s c"]) -> Array:
    """x[s, rows[s]] for each block, zeros past the end."""
    return jax.vmap(partial(jnp.take, axis=0, mode="fill", fill_value=0))(x, rows)


def _logits(hidden: Float[Array, "s c d"], matrix: Float[Array, "d v"]) -> Float[Array, "s c v"]:
    return jnp.einsum("scd,dv->scv", hidden, matrix, preferred_element_type=jnp.float32)


def _chunk_nll(logits: Float[Array, "s c v"], hit: Array) -> tuple[Array, Array, Array]:
    """-log softmax at the target [s c], with exp(logits - max) and its sum [s c 1]."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    exponential = jnp.exp(logits - top)
    total = jnp.sum(exponential, axis=-1, keepdims=True)
    # A masked sum, not a gather: it fuses with the reduction beside it, and a vocabulary that is
    # sharded needs one number per row from each shard rather than the row.
    target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    return (jnp.log(total) + top)[..., 0] - target, exponential, total


def _hits(targets: Int[Array, "s c"], vocabulary: int) -> Array:
    return targets[..., None] == jax.lax.broadcasted_iota(targets.dtype, (1, 1, vocabulary), 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_nll(static, hidden, unembedding, targets, weights):
    """The weighted sum over rows [s n], by rounds of `size` rows of each of the s blocks."""
    size, axis_name = static
    rounds, matrix = _rounds(weights, size, axis_name), unembedding.astype(hidden.dtype)

    def body(rows, at, total):
        h, y, w = (_pick(x, rows) for x in (hidden, targets, weights))
        nll, _, _ = _chunk_nll(_logits(h, matrix), _hits(y, matrix.shape[1]))
        return total + jnp.sum(nll * w)

    return _for_each_round(rounds, size, body, jnp.float32(0.0))


def _forward(static, hidden, unembedding, targets, weights):
    if weights.perturbed:
        raise ValueError("cross_entropy: the weights are constants; there is no gradient of them")
    wants_hidden, wants_unembedding = hidden.perturbed, unembedding.perturbed
    hidden, unembedding, targets, weights = (
        x.value for x in (hidden, unembedding, targets, weights)
    )
    size, axis_name = static
    rounds, matrix = _rounds(weights, size, axis_name), unembedding.astype(hidden.dtype)

    def body(rows, at, carry):
        total, d_hidden, d_matrix = carry
        h, y, w = (_pick(x, rows) for x in (hidden, targets, weights))
        hit = _hits(y, matrix.shape[1])
        nll, exponential, normaliser = _chunk_nll(_logits(h, matrix), hit)
        d_logits = ((exponential / normaliser - hit) * w[..., None]).astype(h.dtype)
        if wants_hidden:
            d_h = jnp.einsum("scv,dv->scd", d_logits, matrix, preferred_element_type=jnp.float32)
            d_hidden = jax.lax.dynamic_update_slice_in_dim(
                d_hidden, d_h.astype(h.dtype), at, axis=1
            )
        if wants_unembedding:
            d_matrix += jnp.einsum("scd,scv->sdv", h, d_logits, preferred_element_type=jnp.float32)
        return total + jnp.sum(nll * w), d_hidden, d_matrix

    blocks, _, d = hidden.shape
    d_hidden = jnp.zeros((*rounds.order.shape, d), hidden.dtype) if wants_hidden else None
    d_matrix = jnp.zeros((blocks, *matrix.shape), jnp.float32) if wants_unembedding else None
    total, d_hidden, d_matrix = _for_each_round(
        rounds, size, body, (jnp.float32(0.0), d_hidden, d_matrix)
    )
    if wants_hidden:
        d_hidden = _pick(d_hidden, rounds.place)
    if wants_unembedding:
        d_matrix = jnp.sum(d_matrix, axis=0).astype(unembedding.dtype)
    return total, (d_hidden, d_matrix)


def _backward(static, saved, cotangent):
    d_hidden, d_matrix = (None if x is None else (x * cotangent).astype(x.dtype) for x in saved)
    return d_hidden, d_matrix, None, None


_sum_nll.defvjp(_forward, _backward, symbolic_zeros=True)
